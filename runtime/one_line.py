"""Programs as arguments of torch operators: their text on one line.

Inductor writes what a fused kernel reads into a comment of its source, an operator a line, with
its arguments as they are: a text of several lines would end the comment, and the source would be
none (torch 2.11 to 2.13 on NVIDIA's GPUs). Operators take both forms.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

from pdssm_compiler.runtime.tracing import constant

ResultT = TypeVar("ResultT")

# In no program's text.
_END = "; "


@constant
def one_line(text: str) -> str:
    """A program's text as an operator is handed it."""
    return _joined(text)


@lru_cache(maxsize=4096)
def _joined(text: str) -> str:
    return text.replace("\n", _END)


@lru_cache(maxsize=4096)
def lines_of(text: str) -> str:
    """A program's text, of what an operator was handed."""
    return text.replace(_END, "\n")


def of_one_line(function: Callable[..., ResultT]) -> Callable[..., ResultT]:
    """Have an operator's function get the text of its first argument, the program."""

    @wraps(function)
    def called(program: str, *others: Any, **named: Any) -> ResultT:
        return function(lines_of(program), *others, **named)

    return called


__all__ = ["lines_of", "of_one_line", "one_line"]
