"""Errors of the automata: one class per mistake, each message one line with its remedy."""

from pdssm_compiler.ir.errors import PdssmError

_SHOWN = 60


class PatternError(PdssmError, ValueError):
    """A regular expression cannot be run as a scan."""


class InvalidPatternError(PatternError):
    """The text is not a regular expression; Python's ``re`` rejects it too."""


class UnsupportedPatternError(PatternError):
    """Python's ``re`` accepts the pattern, but it is not a finite automaton's or not read here."""


class EmptyMatchError(PatternError):
    """The pattern matches the empty string, so its matches are not runs of bytes."""


class PatternTooLargeError(PatternError):
    """The automaton of the pattern has more states or symbols than the caller allows."""


class SymbolError(PdssmError, ValueError):
    """Symbols or states handed in are not those of the automaton."""


class CorpusError(PdssmError, ValueError):
    """The text to be searched cannot be read."""


def shown(pattern: str) -> str:
    """The pattern as it stands in a message: on one line, and cut if it is long."""
    text = repr(pattern)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}...{text[-1]}"


def too_deep(pattern: str) -> UnsupportedPatternError:
    """The error of a pattern whose reading exhausts Python's stack."""
    return UnsupportedPatternError(
        f"the groups of pattern {shown(pattern)} are nested too deeply; flatten them"
    )
