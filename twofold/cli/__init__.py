"""The command line: one module per group of commands; only this package prints."""
