"""Errors of the intermediate representation.

Every error of this package derives from :class:`PdssmError`, so one ``except`` clause catches them
all. The classes of the runtime live beside the runtime; they share this root.
"""

# More of a value tells no more.
_SHOWN = 80


class PdssmError(Exception):
    """Root of every error this package raises on purpose."""


def shown(value: object) -> str:
    """A value as an error shows it: on one line, and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        # Whatever a stranger's repr raises, the error to tell is another.
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class IRError(PdssmError, ValueError):
    """A program, an op or a type was used in a way its rules forbid."""


class VerificationError(IRError):
    """A whole program breaks a rule of :mod:`pdssm_compiler.ir.verify`."""


class ParseError(IRError):
    """The text form could not be read; the message names the line."""


class PassError(IRError):
    """A pass does not apply to the program it was given."""
