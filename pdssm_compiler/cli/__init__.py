"""The command line: ``pdssm-compiler``. One command a file."""

import sys
import warnings

from pdssm_compiler.ir.errors import PdssmError


def main() -> None:
    """Run a command; an expected error is one line on standard error and exit status 1. So is a
    warning, but for the status.
    """
    from pdssm_compiler.cli.app import app

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            app()
    except PdssmError as error:
        print(f"pdssm-compiler: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does.
        sys.stderr.close()
        sys.exit(1)


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    print(f"pdssm-compiler: {message}", file=sys.stderr)
