"""Errors of the runtime, one class a mistake."""

from pdssm_compiler.ir.errors import PdssmError


class ArgumentError(PdssmError, ValueError):
    """A tensor or an option that a scan cannot take; the message names it and the remedy."""


class IndexRangeError(PdssmError, IndexError):
    """An entry of a map, a dictionary or a selection lies outside its range."""


class OffsetError(PdssmError, ValueError):
    """Offsets of packed sequences do not cut the tokens into sequences."""


class PromiseError(PdssmError, ValueError):
    """A map is not of the class the caller promised."""


class NanLogitError(PdssmError, ValueError):
    """A logit of a hard choice is NaN, so nothing can be chosen."""


class BackendUnavailableError(PdssmError, RuntimeError):
    """What a kernel needs is not installed or does not work here."""


class NoTemplateError(PdssmError, RuntimeError):
    """No template can run a program on a target."""


class SettingError(PdssmError, ValueError):
    """An environment variable has a value that means nothing."""


class TuningTimeoutError(PdssmError, RuntimeError):
    """Another process holds what tuning needs, and does not go on."""


class CacheWarning(UserWarning):
    """The kernel cache could not be used, or an entry was corrupt; the work goes on without."""


class TuningWarning(UserWarning):
    """A tuning log, a row of one, or a lock could not be used; the work goes on without."""
