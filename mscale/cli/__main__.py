"""``python -m mscale.cli``."""

from mscale.cli import main

main()
