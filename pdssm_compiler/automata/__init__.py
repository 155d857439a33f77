"""Regular expressions as PD-SSM scans: a symbol is a destination map, a text a selection.

``build_bimachine(byte_automaton(pattern))`` gives two automata, one that reads a text from its
end and one that then reads it from its beginning; their states together say where every match of
Python's ``re.finditer(pattern.encode(), text)`` lies. :func:`find_spans` does so by table look-up
and is the reference; running the two dictionaries of destination maps through a scan gives the
same states.
"""

from pdssm_compiler.automata.batching import Batch, batches
from pdssm_compiler.automata.bimachine import Bimachine, build_bimachine
from pdssm_compiler.automata.corpus import Corpus, Text, load_corpus
from pdssm_compiler.automata.dfa import ByteAutomaton, byte_automaton
from pdssm_compiler.automata.errors import (
    CorpusError,
    EmptyMatchError,
    InvalidPatternError,
    PatternError,
    PatternTooLargeError,
    SymbolError,
    UnsupportedPatternError,
)
from pdssm_compiler.automata.patterns import DEFAULT_PATTERNS, NamedPattern
from pdssm_compiler.automata.scan import ScanAutomaton, walk
from pdssm_compiler.automata.spans import backward_symbols, decode_spans, find_spans

__all__ = [
    "DEFAULT_PATTERNS",
    "Batch",
    "Bimachine",
    "ByteAutomaton",
    "Corpus",
    "CorpusError",
    "EmptyMatchError",
    "InvalidPatternError",
    "NamedPattern",
    "PatternError",
    "PatternTooLargeError",
    "ScanAutomaton",
    "SymbolError",
    "Text",
    "UnsupportedPatternError",
    "backward_symbols",
    "batches",
    "build_bimachine",
    "byte_automaton",
    "decode_spans",
    "find_spans",
    "load_corpus",
    "walk",
]
