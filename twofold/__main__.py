"""`python -m twofold` is the command line."""

from twofold.cli.stages import main

main()
