"""The command line ``fvq``: parts of the library for a person at a terminal."""

from fvq.cli.app import main

__all__ = ["main"]
