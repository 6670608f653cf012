"""`python -m hetrun` is `hetrun`."""

from hetrun.cli.main import main

main()
