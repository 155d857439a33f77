"""Where commands write: results to standard output, the rest to standard error."""

import os
import sys
from typing import TextIO

from rich.console import Console

# Where no terminal says how wide it is, tables are as wide as they need to be up to this.
_WIDTH = 200


def results() -> Console:
    """Standard output, for what was asked for."""
    return _console(sys.stdout, stderr=False)


def messages() -> Console:
    """Standard error, for progress and what was left out."""
    return _console(sys.stderr, stderr=True)


def _console(stream: TextIO, stderr: bool) -> Console:
    told = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if told else _WIDTH)
