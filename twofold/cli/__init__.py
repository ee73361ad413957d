"""The command line: one module per group of commands, joined in `main.py`. Only this package prints."""
