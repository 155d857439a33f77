"""Where commands write: results to standard output, the rest to standard error."""

import os
import sys
from typing import TextIO

from rich.console import Console
from rich.table import Column, Table
from rich.text import TextType

# Where no terminal says how wide it is, a line is as long as it needs to be: whoever reads a pipe
# cannot make it wider. Tables take no more of it than their cells need.
_WIDTH = 1 << 16
# In a terminal that is narrower, columns would vanish; it breaks lines by itself.
_NARROWEST = 30


def results() -> Console:
    """Standard output, for what was asked for."""
    return _console(sys.stdout, stderr=False)


def messages() -> Console:
    """Standard error, for progress and what was left out."""
    return _console(sys.stderr, stderr=True)


def new_table(*headings: str, title: TextType | None = None, show_header: bool = True) -> Table:
    """A table that loses nothing in a narrow terminal: what does not fit a cell goes on below."""
    columns = (Column(heading, overflow="fold") for heading in headings)
    return Table(*columns, title=title, show_header=show_header)


def _console(stream: TextIO, stderr: bool) -> Console:
    told = stream.isatty() or "COLUMNS" in os.environ
    # What is printed comes from users and compilers: a bracket in it is a bracket.
    console = Console(stderr=stderr, width=None if told else _WIDTH, markup=False, emoji=False)
    console.width = max(console.width, _NARROWEST)
    return console
