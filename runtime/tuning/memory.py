"""Random inputs of which a program remembers a sequence: :func:`remember`.

A product of numbers of magnitude at most 1, drawn evenly, falls by ``e`` with each of them. A
state that is multiplied by them has forgotten after twenty tokens all that single precision shows,
and what a kernel hands on from one chunk to the one after the next is never seen: a look-back
that stops at its neighbour would be right. And what functions of a user's make of such numbers may
be larger than 1, so that the state of a long sequence is more than any float holds, and nothing
would be right.

So what the carry is multiplied by is evaluated on a few numbers, and of some simple ways to draw
each of its inputs those are taken by which it never grows and, as nearly as they can, decays by
``e⁻⁸`` in a sequence.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from pdssm_compiler.ir.ops import OPS
from pdssm_compiler.ir.program import Input, Program
from pdssm_compiler.ir.types import Index, Map, Scalar, Table, Vector, is_complex, is_number
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.runtime.plan import caller_inputs, program_of

Way = Callable[[torch.Tensor, float], torch.Tensor]

# By what power of e a state decays in a sequence, so that its beginning still shows at its end.
_DECAY = 8.0
# Numbers that a factor is evaluated on, of so many heads.
_SAMPLE, _HEADS = 1 << 14, 2
# Numbers that are drawn another way at a time, an even number.
_TOGETHER = 1 << 22
# A logarithm that says that nothing is left.
_NOTHING = -50.0
# The part of what was off before from which nothing has been won.
_COUNTS = 0.5
# Doubles that are 1 but for their rounding.
_ROUNDING = 1e-12


def remember(program: Program, tensors: Sequence[torch.Tensor], length: int) -> None:
    """Have those of a caller's tensors that decide how fast the carry decays drawn another way.

    Args:
        program: as calls have it.
        tensors: numbers in [-1, 1] or of magnitude at most 1, which are changed; indices, maps.
        length: ``T``.
    """
    if length <= 2 * _DECAY:
        return
    decay = _DECAY / length
    ways = _ways(program.text, decay)
    for input_, tensor in zip(caller_inputs(program), tensors, strict=True):
        if input_.name in ways:
            _draw(ways[input_.name], tensor, input_, decay)


def factors(program: Program) -> list[Value]:
    """What carries are multiplied by on their way to their next values."""
    carried: set[Value] = set()
    # Arguments stand before their users.
    for value in program.body:
        if value.op == "carry" or any(arg in carried for arg in value.args):
            carried.add(value)
    onward = topological([carry.next for carry in program.carries])
    products = [value for value in onward if value.op == "mul" and value in carried]
    return [arg for product in products for arg in product.args if arg not in carried]


def _as_drawn(x: torch.Tensor, decay: float) -> torch.Tensor:
    return x


def _near_one(x: torch.Tensor, decay: float) -> torch.Tensor:
    """Of magnitudes below 1 by the decay, on average, also when they are rounded."""
    most = 1 - (torch.finfo(x.dtype).eps if x.dtype.itemsize == 2 else 0.0)
    return torch.sgn(x) * (most - min(1.0, 2 * decay) * (1 - x.abs().clamp(max=1)))


def _shift(decay: float) -> float:
    """What a sigmoid lacks to 1 that far out, and a softplus has that far on the other side."""
    return math.log(1 / decay)


# How numbers in [-1, 1] may be drawn instead, simplest first.
_REAL: tuple[Way, ...] = (
    _as_drawn,
    lambda x, decay: x.abs(),
    lambda x, decay: -x.abs(),
    _near_one,
    lambda x, decay: x + _shift(decay),
    lambda x, decay: x - _shift(decay),
    lambda x, decay: -2 * decay * x.abs(),
    lambda x, decay: math.sqrt(2 * decay) * x,
)
_COMPLEX: tuple[Way, ...] = (_as_drawn, _near_one)


def _draw(way: Way, tensor: torch.Tensor, input_: Input, decay: float) -> None:
    """Draw a tensor another way, a part at a time: it may be much of a device's memory."""
    for part in tensor.view(-1).split(_TOGETHER):
        if is_complex(input_.type) and not tensor.is_complex():
            # Pairs of reals in few bits.
            pairs = torch.view_as_complex(part.float().view(-1, 2))
            found = way(pairs, decay + torch.finfo(tensor.dtype).eps)
            part.copy_(torch.view_as_real(found).view(-1))
        else:
            part.copy_(way(part, decay))


@lru_cache(maxsize=16)
def _ways(text: str, decay: float) -> dict[str, Way]:
    """How to draw the inputs that decide; without those that are drawn as ever."""
    program = program_of(text)
    wanted = factors(program)
    leaves = {leaf.name for leaf in topological(wanted) if leaf.op == "input"}
    inputs = [program.input(name) for name in sorted(leaves)]
    known = all(isinstance(i.type, Scalar | Vector | Index | Map | Table) for i in inputs)
    if not known or not any(is_number(i.type) for i in inputs):
        return {}
    sample = {i.name: _sample(i, program.state_size, n) for n, i in enumerate(inputs)}
    ways: dict[str, Way] = {i.name: _as_drawn for i in inputs if is_number(i.type)}

    def off(changed: dict[str, Way]) -> tuple[float, float]:
        """By how much the factors grow at most, and decay otherwise than they should."""
        arrays = {
            name: changed[name](x, decay).numpy() if name in changed else x.numpy()
            for name, x in sample.items()
        }
        logs = [_logarithms(factor, program.state_size, arrays) for factor in wanted]
        most = max(float(each.max()) for each in logs)
        return max(most, _ROUNDING), sum(abs(float(each.mean()) + decay) for each in logs)

    now = off(ways)
    # One at a time, the best first, as long as it counts: what decides little stays as it is.
    for _ in range(2 * len(ways)):
        tried = [
            ways | {input_.name: way}
            for input_ in inputs
            if is_number(input_.type)
            for way in (_COMPLEX if is_complex(input_.type) else _REAL)
        ]
        best = min(tried, key=off, default=ways)
        grows, apart = off(best)
        if grows >= now[0] and apart > _COUNTS * now[1]:
            break
        ways, now = best, (grows, apart)
    return {name: way for name, way in ways.items() if way is not _as_drawn}


def _sample(input_: Input, n: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    tokens = max(4, min(256, _SAMPLE // (_HEADS * n)))
    own = () if isinstance(input_.type, Scalar | Index) else (n,)
    shape = (_HEADS, *own) if input_.role == "head" else (tokens, _HEADS, *own)
    match input_.type:
        case Index():
            return torch.zeros(shape, dtype=torch.int64)
        case Map():
            return torch.arange(n).expand(shape)
        case Table(size, _):
            return torch.arange(n).expand(*shape[:-1], size, n)
    drawn = torch.rand(shape, dtype=torch.float64, generator=random)
    if not is_complex(input_.type):
        return drawn * 2 - 1
    phase = torch.rand(shape, dtype=torch.float64, generator=random)
    return torch.polar(drawn, phase * 2 * torch.pi)


def _logarithms(factor: Value, n: int, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Of the magnitudes that a factor has; infinity for one that is no number."""
    found: dict[Value, np.ndarray] = {}
    with np.errstate(all="ignore"):
        for value in topological([factor]):
            if value.op == "input":
                found[value] = arrays[value.name]
            else:
                args = [found[arg] for arg in value.args]
                found[value] = np.asarray(OPS[value.op].evaluate(n, dict(value.attributes), *args))
        logs = np.log(np.abs(found[factor]))
    return np.nan_to_num(logs, nan=np.inf, posinf=np.inf, neginf=_NOTHING).clip(min=_NOTHING)
