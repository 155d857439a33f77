"""Errors of the intermediate representation.

Every error of this package derives from :class:`PdssmError`, so one ``except`` clause catches them
all. The classes of the runtime live beside the runtime; they share this root.
"""


class PdssmError(Exception):
    """Root of every error this package raises on purpose."""


class IRError(PdssmError, ValueError):
    """A program, an op or a type was used in a way its rules forbid."""


class VerificationError(IRError):
    """A whole program breaks a rule of :mod:`pdssm_compiler.ir.verify`."""


class ParseError(IRError):
    """The text form could not be read; the message names the line."""


class PassError(IRError):
    """A pass does not apply to the program it was given."""
