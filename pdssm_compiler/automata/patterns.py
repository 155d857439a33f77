"""The patterns that ``pdssm-compiler run`` knows by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NamedPattern:
    """A regular expression with a name.

    Attributes:
        name: as it is written on the command line.
        pattern: the regular expression.
        description: one line on what it matches.
    """

    name: str
    pattern: str
    description: str


_DEFAULTS = (
    NamedPattern("integers", r"[0-9]+", "runs of decimal digits"),
    NamedPattern(
        "identifiers",
        r"[A-Za-z_][A-Za-z0-9_]*",
        "names of ASCII letters, digits and underscores, not beginning with a digit",
    ),
    NamedPattern(
        "strings",
        r'"(?:[^"\\\n]|\\[^\n])*"',
        'double-quoted strings on one line, with backslash escapes such as \\"',
    ),
    NamedPattern(
        "dotted-quads",
        r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}",
        "four numbers of one to three digits with dots between, as in 127.0.0.1",
    ),
)

DEFAULT_PATTERNS: dict[str, NamedPattern] = {named.name: named for named in _DEFAULTS}
