r"""The characters of a regular expression, as Python's bytes ``re`` reads them.

A pattern is split into two questions. Which bytes does each of its single-character parts stand
for? Python's own ``re`` answers that, so ``\w``, ``[^\W\d]``, ``.`` or ``(?i)`` cannot disagree
with it. How are the parts put together? That is left to ``interegular``, which is shown the
pattern with every part replaced by one letter and so never sees a character class, where its
reading differs from Python's (``[]a]``, ``[\W\D]``).
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdssm_compiler.automata.errors import (
    InvalidPatternError,
    PatternTooLargeError,
    UnsupportedPatternError,
    shown,
    too_deep,
)

MAX_PATTERN_BYTES = 10_000
FIRST_LETTER = 0x10000  # beyond every character that means something in a pattern
LAZY_MARK = chr(0x10FFFF)  # follows a quantifier that prefers fewer repetitions

_ALL_BYTES = bytes(range(256))

_TOKEN = re.compile(
    r"""
    (?P<flags>\(\?[a-zA-Z]+\))
  | (?P<comment>\(\?\#[^)]*\))
  | (?P<open>\((?:\?:|\?P<[^>]*>|(?!\?)))
  | (?P<extension>\(\?(?:P=|<.|.))
  | (?P<close>\))
  | (?P<bar>\|)
  | (?P<quantifier>[*+?]|\{(?!\})[0-9]*(?:,[0-9]*)?\})(?P<mode>[?+]?)
  | (?P<anchor>[\^$]|\\[AbBZz])
  | (?P<octal>\\0[0-7]{0,2}|\\[1-7][0-7]{2})
  | (?P<reference>\\[1-9][0-9]?)
  | (?P<atom>\[\^?\]?(?:\\.|[^\]\\])*\]|\\x[0-9a-fA-F]{2}|\\.|.)
    """,
    re.VERBOSE | re.DOTALL,
)

_LOOK_AROUND = "look-around", "match the surrounding bytes too, or filter the matches afterwards"
_BACK_REFERENCE = "a back-reference", "it is no finite automaton: write the alternatives out"
_ATOMIC = "an atomic group", "write it with (?:...), if nothing depends on not backtracking"
_EXTENSIONS = {
    "(?=": _LOOK_AROUND,
    "(?!": _LOOK_AROUND,
    "(?<=": _LOOK_AROUND,
    "(?<!": _LOOK_AROUND,
    "(?P=": _BACK_REFERENCE,
    "(?(": ("a conditional group", "write its two cases as alternatives"),
    "(?>": _ATOMIC,
}
_SCOPED_FLAGS = "flags for a group", "set them for the whole pattern, as in (?i)..."
_FLAGS = {
    re.VERBOSE: ("the verbose flag", "remove the white space and comments of the pattern"),
    re.LOCALE: ("the locale flag", "name the bytes in a character class"),
}


@dataclass(frozen=True, eq=False)
class Syntax:
    """A pattern in two halves.

    Attributes:
        structure: the pattern with a letter for every single-character part: letter
            ``chr(FIRST_LETTER + k)`` stands for one byte of ``byte_sets[k]``, and
            :data:`LAZY_MARK` follows a lazy quantifier. Groups are all ``(?:...)``.
        byte_sets: bool ``[sets, 256]``, the bytes each letter stands for.
    """

    structure: str
    byte_sets: npt.NDArray[np.bool_]


def read_syntax(pattern: str) -> Syntax:
    """Read a pattern as ``re.compile(pattern.encode())`` would.

    The pattern is encoded as UTF-8: a literal beyond ASCII is the sequence of its bytes, and in a
    character class it stands for each of those bytes alone, as in any bytes pattern.

    Raises:
        InvalidPatternError: ``re`` rejects the pattern, or it cannot be encoded.
        UnsupportedPatternError: it uses a feature that has no automaton here: back-references,
            look-around, anchors and word boundaries, atomic groups and possessive quantifiers,
            conditional groups, flags for a group, the verbose and locale flags.
        PatternTooLargeError: it is longer than :data:`MAX_PATTERN_BYTES`.
    """
    flags = _compile(pattern)
    for flag, (feature, remedy) in _FLAGS.items():
        if flags & flag:
            raise _unsupported(pattern, feature, remedy)
    letters: dict[bytes, str] = {}
    sets: list[npt.NDArray[np.bool_]] = []
    structure: list[str] = []
    for kind, text, mode in _tokens(pattern):
        if kind in ("octal", "atom"):
            byte_set = _byte_set(text, flags)
            key = byte_set.tobytes()
            if key not in letters:
                letters[key] = chr(FIRST_LETTER + len(sets))
                sets.append(byte_set)
            structure.append(letters[key])
        elif kind == "open":
            structure.append("(?:")
        elif kind == "quantifier":
            structure.append(text + LAZY_MARK if mode else text)
        elif kind in ("close", "bar"):
            structure.append(text)
    byte_sets = np.array(sets, dtype=np.bool_).reshape(len(sets), 256)
    return Syntax("".join(structure), byte_sets)


def _compile(pattern: str) -> int:
    """The flags ``re`` finds in the pattern, after it has accepted it."""
    try:
        raw = pattern.encode()
        if len(raw) > MAX_PATTERN_BYTES:
            raise PatternTooLargeError(
                f"the pattern is {len(raw):,} bytes long, and at most {MAX_PATTERN_BYTES:,} are "
                "read; shorten it or search for its parts one by one"
            )
        return re.compile(raw).flags
    except RecursionError:
        raise too_deep(pattern) from None
    except PatternTooLargeError:
        raise
    except (re.error, OverflowError, ValueError) as error:
        reason = str(error).replace("\n", " ")
        raise InvalidPatternError(
            f"pattern {shown(pattern)} is not a regular expression: {reason}; correct it there"
        ) from None


def _tokens(pattern: str) -> Iterator[tuple[str, str, str]]:
    """The tokens of a valid pattern: kind, text (one character per byte), mode of a quantifier."""
    # latin-1 gives each byte one character, so positions are those of the bytes pattern.
    for match in _TOKEN.finditer(pattern.encode().decode("latin-1")):
        kind, mode = str(match.lastgroup), match["mode"] or ""
        if match["quantifier"] is not None:
            kind = "quantifier"
        text = match[kind]
        where = f"{match[0]} at byte {match.start()}"
        if kind == "extension":
            feature, remedy = _EXTENSIONS.get(text, _SCOPED_FLAGS)
            raise _unsupported(pattern, f"{feature} ({where})", remedy)
        if kind == "anchor":
            remedy = "remove it and filter the matches afterwards, or escape it if a byte is meant"
            raise _unsupported(pattern, f"an anchor ({where})", remedy)
        if kind == "reference":
            feature, remedy = _BACK_REFERENCE
            raise _unsupported(pattern, f"{feature} ({where})", remedy)
        if mode == "+":
            remedy = "remove the second +, if nothing depends on not backtracking"
            raise _unsupported(pattern, f"a possessive quantifier ({where})", remedy)
        yield kind, text, mode


def _byte_set(atom: str, flags: int) -> npt.NDArray[np.bool_]:
    """Bool ``[256]``: the bytes a single-character pattern matches, found by asking ``re``."""
    with warnings.catch_warnings():
        # Compiling the whole pattern has warned already of what may change its meaning.
        warnings.simplefilter("ignore", FutureWarning)
        part = re.compile(atom.encode("latin-1"), flags & (re.IGNORECASE | re.DOTALL))
    byte_set = np.zeros(256, dtype=np.bool_)
    byte_set[[found[0] for found in part.findall(_ALL_BYTES)]] = True
    return byte_set


def _unsupported(pattern: str, feature: str, remedy: str) -> UnsupportedPatternError:
    return UnsupportedPatternError(
        f"pattern {shown(pattern)} uses {feature}, which has no automaton here; {remedy}"
    )
