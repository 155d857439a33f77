"""Expected errors of the commands, told in one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pdssm_compiler.ir.errors import PdssmError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End with exit status 1 and the message of an expected error, on standard error."""
    try:
        yield
    except PdssmError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(1)
