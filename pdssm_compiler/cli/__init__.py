"""The command line: ``pdssm-compiler``. One command a file."""

import errno
import io
import os
import sys
import warnings
from contextlib import suppress

from pdssm_compiler.ir.errors import PdssmError

# What a disk says that takes no more, where a command's output goes.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# What a shell says of a command that was.
_INTERRUPTED = 130


def main() -> None:
    """Run a command; an expected error is one line on standard error and exit status 1. So is a
    warning, but for the status.
    """
    for name in ("stdout", "stderr"):
        # A shell may close it (`>&-`): then nobody reads what is said.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A locale may have no letters for a name that users gave: then their numbers stand there.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Seconds, in which somebody may think better of it.
        from pdssm_compiler.cli.app import app

        with warnings.catch_warnings():
            _said.clear()
            warnings.showwarning = _one_line
            app()
    except PdssmError as error:
        print(f"pdssm-compiler: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("pdssm-compiler: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        print(f"pdssm-compiler: the output cannot be written: {error}", file=sys.stderr)
        # Nor can the rest of it, which Python would complain of at the end.
        with suppress(OSError):
            sys.stdout.close()
        sys.exit(1)


_said: set[str] = set()


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    # Once, from wherever in the code it comes.
    if str(message) not in _said:
        _said.add(str(message))
        print(f"pdssm-compiler: {message}", file=sys.stderr)
