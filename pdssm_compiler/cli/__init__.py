"""The command line: ``pdssm-compiler``. One command a file."""

import sys

from pdssm_compiler.ir.errors import PdssmError


def main() -> None:
    """Run a command; an expected error is one line on standard error and exit status 1."""
    from pdssm_compiler.cli.app import app

    try:
        app()
    except PdssmError as error:
        print(f"pdssm-compiler: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does.
        sys.stderr.close()
        sys.exit(1)
