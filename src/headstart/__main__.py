"""`python -m headstart`, for places where the `headstart` command is not installed."""

from headstart.cli import main

main()
