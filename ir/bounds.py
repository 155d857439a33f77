"""How large numbers can be, as far as it is known whatever the inputs are.

A function may cost less where its argument is known to be small; a phase of
``2π sigmoid(x)`` is.
"""

from functools import lru_cache
from math import inf

from pdssm_compiler.ir.types import is_complex
from pdssm_compiler.ir.value import Value

_WITHIN_ONE = frozenset({"sigmoid", "tanh", "sin", "cos"})
_AS_ITS_ARGUMENT = frozenset({"neg", "conj", "real", "imag", "broadcast", "gather"})


@lru_cache(maxsize=4096)
def largest(value: Value) -> float:
    """The largest magnitude that a number can have, of a complex one that of its parts; ``inf``
    where nothing is known. Rounding may exceed it by some units in the last place, and NaN is
    within any bound.
    """
    if value.op in _WITHIN_ONE:
        return 1.0
    if value.op == "constant":
        return abs(float(value.attribute("value")))
    args = [largest(arg) for arg in value.args]
    if value.op in _AS_ITS_ARGUMENT:
        return args[0]
    if value.op == "complex":
        return max(args)
    if value.op in ("add", "sub"):
        return sum(args)
    if value.op == "mul" and inf not in args:
        products = 2 if all(is_complex(arg.type) for arg in value.args) else 1
        return products * args[0] * args[1]
    return inf
