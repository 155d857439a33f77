"""What a compiler that traces a call is told of functions: :func:`constant`."""

from collections.abc import Callable
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def constant(function: FunctionT) -> FunctionT:
    """Have a compiler that traces a call of it ask once, and put what it gives into the graph:
    what torch.compiler.assume_constant_result does, which would import Dynamo, two seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
