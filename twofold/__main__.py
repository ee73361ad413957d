"""`python -m twofold` is the command line."""

from twofold.cli.main import main

main()
