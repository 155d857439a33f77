"""What the tests of the automata share: random patterns and texts, and Python's answer."""

import re

from hypothesis import strategies as st

from pdssm_compiler.automata import Bimachine, build_bimachine, byte_automaton

# One-byte parts in which a parser may go wrong, and a literal of two bytes.
PARTS = ["a", "b", ".", "[ab]", "[^a]", r"\d", r"\W", r"\x00", r"[\xff\n]", "é"]
PARTS += ["[]a]", "[^]a]", r"[\W\D]", r"[a\-z-]", r"\.", "{", "]", r"\101", r"[\b\0]"]
QUANTIFIERS = ["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "{,}", "{0}"]
BYTES = b"aab0-. \n]A{\x00\x08\xff\xc3\xa9"


def _longer(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    quantifiers = st.builds(str.__add__, st.sampled_from(QUANTIFIERS), st.sampled_from(["", "?"]))
    return st.one_of(
        st.builds(str.__add__, parts, parts),
        st.lists(parts | st.just(""), min_size=2, max_size=3).map(
            lambda options: f"(?:{'|'.join(options)})"
        ),
        st.builds("({}){}".format, parts, quantifiers),
    )


any_patterns = st.recursive(st.sampled_from(PARTS), _longer, max_leaves=8)
texts = st.lists(st.sampled_from(BYTES), max_size=16).map(bytes) | st.binary(max_size=40)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """A pattern, with flags or without, that does not match the empty string."""
    pattern = draw(any_patterns)
    if re.match(pattern.encode(), b"") is not None:
        pattern = f"(?:{pattern}){draw(st.sampled_from(PARTS))}"
    frames = ["{}", "(?P<name>{})", "(?#note){}", "(?i){}", "(?s){}", "(?is){}"]
    return draw(st.sampled_from(frames)).format(pattern)


def machine(pattern: str, limit: int = 4096) -> Bimachine:
    """The two scans of a pattern, with room for what random patterns need."""
    return build_bimachine(byte_automaton(pattern, limit), limit, limit)


def python_spans(pattern: str, data: bytes) -> list[list[int]]:
    """What Python's ``re`` finds."""
    return [list(match.span()) for match in re.finditer(pattern.encode(), data)]
