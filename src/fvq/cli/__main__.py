"""``python -m fvq.cli`` is ``fvq``."""

from fvq.cli.app import main

main()
