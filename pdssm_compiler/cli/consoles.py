"""Where commands write: results to standard output, the rest to standard error."""

import os
import sys

from rich.console import Console

# Where no terminal says how wide it is, tables are as wide as they need to be up to this.
_WIDTH = 200


def results() -> Console:
    """Standard output, for what was asked for."""
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if told else _WIDTH)


def messages() -> Console:
    """Standard error, for progress and what was left out."""
    return Console(stderr=True)
