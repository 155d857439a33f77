"""Whether a candidate computes what its program says: the gate before it is timed.

The truth is the interpreter's, in complex128, on the very numbers that the tensors hold. A
backward program's outputs are the gradients, so the same gate serves both ways. Each candidate
runs twice: on a small problem of odd sizes, all of which is compared, and on the problem that is
timed, of which the first and the last rows are, and where that takes little time some in the
middle: all of their tokens. What they leave at the first tokens shows at the last
(:mod:`~pdssm_compiler.runtime.tuning.memory`). If these are many, the
interpreter runs them in chunks, and if they are more, the device itself does, in double precision
(:mod:`~pdssm_compiler.runtime.tuning.doubled`), so that the truth of a long sequence takes no
longer than its kernels take to compile. Outputs stand poisoned between margins, and nothing of the
poison may be left in any row.

``|out - true| <= (c·ε + 4·σ) · max(1, |true|)``, the largest ``|true|`` of the row, ``ε`` of what
is computed and ``σ`` of what is stored.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch

from pdssm_compiler.ir.chunked_interpreter import interpret_in_chunks
from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.interpreter import Arrays, interpret
from pdssm_compiler.ir.program import LEADING_AXES, Program
from pdssm_compiler.ir.types import is_complex, is_numeric, precision
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.ops import slots_of
from pdssm_compiler.runtime.plan import Plan, caller_inputs
from pdssm_compiler.runtime.tuning.doubled import exact, in_double
from pdssm_compiler.runtime.tuning.guarded import guarded
from pdssm_compiler.runtime.tuning.inputs import random_tensors
from pdssm_compiler.schedules.signature import Argument, Signature

# As for random programs in the tests: a token adds a few roundings to what it carries.
_FACTOR = 4096.0
_STORED = 4.0
# Tokens from which the interpreter would be waited for.
_LONG = 2048
# Numbers of a vector of all tokens that are compared, from which it would be in chunks as well.
_MANY = 1 << 22
# Where plain PyTorch in double precision takes less than the interpreter; on a CPU it takes more.
_FAST = ("cuda",)
# Numbers that are compared at a time: what is compared takes little memory.
_TOGETHER = 1 << 22
# Numbers beside one another are far apart when multiplied by it.
_SCATTERS = 0x1E3779B97F4A7C15


@dataclass
class Probe:
    """A program on some tensors, and what comes out of it.

    Attributes:
        program: the program, as calls have it.
        tensors: a caller's.
        sizes: ``B``, ``T``, ``H``.
        whole: whether every row is compared, or the first and the last and some in the middle.
    """

    program: Program
    tensors: Sequence[torch.Tensor]
    sizes: Sizes
    whole: bool

    @cached_property
    def _corners(self) -> tuple[list[int], list[int]]:
        """The sequences and the heads whose rows are compared."""
        batch, length, heads = self.sizes
        if self.whole:
            return list(range(batch)), list(range(heads))
        # Those in the middle where they take little time.
        few = 9 * length * self.program.state_size <= _MANY
        middles = ((batch // 2, heads // 2),) if few else ()
        places = ((0, 0), *middles, (batch - 1, heads - 1))
        return sorted({b for b, _ in places}), sorted({h for _, h in places})

    @cached_property
    def _true(self) -> dict[str, torch.Tensor]:
        inputs = caller_inputs(self.program)
        picked = [
            self._rows(tensor, LEADING_AXES[input_.role])
            for input_, tensor in zip(inputs, self.tensors, strict=True)
        ]
        rows = len(self._corners[0]) * len(self._corners[1])
        device, length = self.tensors[0].device, self.sizes.length
        many = rows * length * self.program.state_size > _MANY
        if length >= _LONG and many and device.type in _FAST:
            found = in_double(self.program, picked)
            if found is not None:
                return found
        arrays = {
            input_.name: exact(tensor.cpu(), is_complex(input_.type)).numpy()
            for input_, tensor in zip(inputs, picked, strict=True)
        }
        return {n: torch.from_numpy(a).to(device) for n, a in self._interpreted(arrays).items()}

    def _interpreted(self, arrays: Arrays) -> Arrays:
        if self.sizes.length >= _LONG:
            with suppress(PassError):
                return interpret_in_chunks(self.program, arrays)
        return interpret(self.program, arrays)

    @cached_property
    def _allowed(self) -> dict[str, torch.Tensor]:
        """By how much numbers may be off, over what is allowed of 1: the largest of each row."""
        found = {}
        for argument in self._arguments:
            true = self._true[argument.name]
            own = [n for n in range(true.ndim) if n not in (0, len(argument.leading) - 1)]
            if is_numeric(argument.type) and true.numel():
                size = true.abs()
                size = size.amax(own, keepdim=True) if own else size
                self._check_range(argument, float(size.max()))
                found[argument.name] = size.clamp(min=1)
        return found

    def _check_range(self, argument: Argument, largest: float) -> None:
        """Raises OverflowError: nothing right could be written, and nothing wrong be told."""
        computed = torch.float32 if precision(argument.type) == 32 else torch.float64
        stored = next(s.dtype for s in slots_of(self.program.text)[1] if s.name == argument.name)
        most = min(torch.finfo(computed).max, torch.finfo(stored).max)
        # NaN is not within any bound.
        if not largest <= most:
            told = "B={} T={} H={}".format(*self.sizes)
            raise OverflowError(
                f"{argument.name} of random inputs is as large as {largest:.3g} at {told}, and at "
                f"most {most:.3g} can be written: no candidate can be held to it"
            )

    @cached_property
    def _sums(self) -> list[int]:
        """Of each input's bytes, before anything ran."""
        return list(map(_sum, self.tensors))

    def prepare(self) -> None:
        """Find the truth out before it is needed."""
        assert self._allowed is not None

    def _rows(self, tensor: torch.Tensor, axes: tuple[str, ...]) -> torch.Tensor:
        if self.whole:
            return tensor
        for axis, places in zip("BH", self._corners, strict=True):
            if axis in axes:
                index = torch.tensor(places, device=tensor.device)
                tensor = tensor.index_select(axes.index(axis), index)
        return tensor

    def fault(self, plan: Plan) -> str | None:
        """None if a plan computes it, otherwise what is wrong."""
        device = self.tensors[0].device
        before = [tensor.clone() for tensor in self.tensors] if self.whole else []
        sums = [] if self.whole else self._sums
        outputs = [guarded(slot, self.sizes, device) for slot in slots_of(self.program.text)[1]]
        # What is promised about the maps holds by their making.
        plan.run(self.tensors, trusted=True, out=[output.tensor for output in outputs])
        names = [argument.name for argument in self._arguments]
        for name, output in zip(names, outputs, strict=True):
            if not output.is_intact():
                return f"wrote beside {name}"
        inputs = caller_inputs(self.program)
        for input_, was, tensor in zip(inputs, before, self.tensors, strict=bool(before)):
            if not torch.equal(_bytes(was), _bytes(tensor)):
                return f"wrote to its input {input_.name}"
        # A copy would take too much there.
        for input_, total, tensor in zip(inputs, sums, self.tensors, strict=bool(sums)):
            if _sum(tensor) != total:
                return f"wrote to its input {input_.name}"
        for argument, output in zip(self._arguments, outputs, strict=True):
            wrong = self._differs(argument, output.tensor)
            if wrong:
                return wrong
            if not self.whole and _is_poisoned(output.tensor):
                return f"left out some of {argument.name}, in rows between those compared"
        return None

    @cached_property
    def _arguments(self) -> tuple[Argument, ...]:
        return Signature(self.program).outputs

    def _differs(self, argument: Argument, output: torch.Tensor) -> str | None:
        true = self._true[argument.name]
        got = self._rows(output, argument.leading)
        # Of a final state or a sum there is one for all tokens.
        tokens = true.shape[1] if "L" in argument.leading else 1
        step = max(1, _TOGETHER // max(1, true.numel() // max(1, tokens)))
        count, place = 0, None
        for start in range(0, tokens, step):
            part = slice(start, start + step) if "L" in argument.leading else slice(None)
            wrong = self._wrong(argument, got[:, part], true[:, part])
            number = int(wrong.sum())
            if number and place is None:
                first, second, *rest = wrong.nonzero()[0].tolist()
                place = (first, second + start, *rest)
            count += number
        if place is None:
            return None
        where: list[int] = list(map(int, place))
        for axis, rows in zip("BH", self._corners, strict=True):
            where[argument.leading.index(axis)] = rows[place[argument.leading.index(axis)]]
        found = exact(got, argument.complex)[place].item()
        told = f"{argument.name}{where} is {found:.6g}, not {true[place].item():.6g}"
        return f"{told}; {count} are wrong" + ("" if self.whole else " in the rows compared")

    def _wrong(self, argument: Argument, got: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Which numbers of some tokens are."""
        stored, got = got.dtype, exact(got, argument.complex)
        if not is_numeric(argument.type) or not true.numel():
            return got != true
        epsilon = torch.finfo(torch.float32 if precision(argument.type) == 32 else torch.float64)
        allowed = _FACTOR * epsilon.eps + _STORED * torch.finfo(stored).eps
        # NaN is not within any bound.
        return ~((got - true).abs() <= allowed * self._allowed[argument.name])


# Numbers of the matrices of the tokens that a candidate is checked on.
_MATRIX_NUMBERS = 2**22


def probes(
    program: Program, tensors: Sequence[torch.Tensor], sizes: Sizes, seed: int = 1
) -> list[Probe]:
    """The two problems that every candidate has to solve.

    Args:
        program: as calls have it.
        tensors: of the problem that is timed.
        sizes: its sizes.
        seed: of the small problem.
    """
    small = Sizes(2, 1 if sizes.length == 1 else 37, 3)
    if program.over_matrices:
        # No token needs another, and each has a matrix that the interpreter writes out.
        small = Sizes(1, 5, 2)
        few = max(1, min(sizes.length, _MATRIX_NUMBERS // program.state_size**2))
        sizes = sizes._replace(length=few)
        inputs = zip(caller_inputs(program), tensors, strict=True)
        tensors = [t[:, :few].contiguous() if i.role == "token" else t for i, t in inputs]
    drawn = random_tensors(program, small, tensors[0].device, seed)
    return [Probe(program, drawn, small, True), Probe(program, tensors, sizes, False)]


def _sum(tensor: torch.Tensor) -> int:
    """Of a tensor's bytes, eight at a time, each times an odd number of its place: hardly ever the
    same where some were written, or changed places.
    """
    found = _bytes(tensor)
    whole = len(found) // 8 * 8
    words, total = found[:whole].view(torch.int64), int(found[whole:].sum())
    for start in range(0, len(words), _TOGETHER):
        some = words[start : start + _TOGETHER]
        places = torch.arange(start, start + len(some), device=words.device)
        # Modulo 2^64.
        total += int((some * (places * _SCATTERS | 1)).sum())
    return total


def _is_poisoned(tensor: torch.Tensor) -> bool:
    """Whether something stands there as :func:`guarded` leaves it."""
    if tensor.is_complex() or tensor.is_floating_point():
        return bool(tensor.isnan().any())
    # Of unsigned bytes every one may be right.
    return tensor.dtype.is_signed and bool((tensor < 0).any())


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
