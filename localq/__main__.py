"""`python -m localq` is `localq`."""

from localq.cli.main import main

main()
