"""``python -m mscale``: the command line."""

from mscale.cli import main

main()
