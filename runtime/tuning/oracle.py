"""Whether a candidate computes what its program says: the gate before it is timed.

The truth is the interpreter's, in complex128, on the very numbers that the tensors hold. A
backward program's outputs are the gradients, so the same gate serves both ways. Each candidate
runs twice: on a small problem of odd sizes, all of which is compared, and on the problem that is
timed, of which the first and the last rows are; if that is long, the interpreter runs it in
chunks. Its outputs stand poisoned between margins.

``|out - true| <= (c·ε + 4·σ) · max(1, |true|)``, the largest ``|true|`` of the row, ``ε`` of what
is computed and ``σ`` of what is stored.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pdssm_compiler.ir.chunked_interpreter import interpret_in_chunks
from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.interpreter import interpret
from pdssm_compiler.ir.program import LEADING_AXES, Program
from pdssm_compiler.ir.types import is_complex, is_numeric, precision
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.ops import slots_of
from pdssm_compiler.runtime.plan import Plan, caller_inputs
from pdssm_compiler.runtime.tuning.guarded import guarded
from pdssm_compiler.runtime.tuning.inputs import random_tensors
from pdssm_compiler.schedules.signature import Argument, Signature

# As for random programs in the tests: a token adds a few roundings to what it carries.
_FACTOR = 4096.0
_STORED = 4.0
# Tokens from which the interpreter would be waited for.
_LONG = 2048


@dataclass
class Probe:
    """A program on some tensors, and what comes out of it.

    Attributes:
        program: the program, as calls have it.
        tensors: a caller's.
        sizes: ``B``, ``T``, ``H``.
        whole: whether every row is compared, or the first and the last alone.
    """

    program: Program
    tensors: Sequence[torch.Tensor]
    sizes: Sizes
    whole: bool

    @cached_property
    def _corners(self) -> tuple[list[int], list[int]]:
        """The sequences and the heads whose rows are compared."""
        batch, _, heads = self.sizes
        if self.whole:
            return list(range(batch)), list(range(heads))
        return sorted({0, batch - 1}), sorted({0, heads - 1})

    @cached_property
    def _true(self) -> dict[str, np.ndarray]:
        arrays = {}
        for input_, tensor in zip(caller_inputs(self.program), self.tensors, strict=True):
            picked = self._rows(tensor, LEADING_AXES[input_.role])
            arrays[input_.name] = _exact(picked, is_complex(input_.type))
        if self.sizes.length >= _LONG:
            with suppress(PassError):
                return interpret_in_chunks(self.program, arrays)
        return interpret(self.program, arrays)

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
        for argument, output in zip(self._arguments, outputs, strict=True):
            wrong = self._differs(argument, output.tensor)
            if wrong:
                return wrong
        return None

    @cached_property
    def _arguments(self) -> tuple[Argument, ...]:
        return Signature(self.program).outputs

    def _differs(self, argument: Argument, output: torch.Tensor) -> str | None:
        true = self._true[argument.name]
        got = _exact(self._rows(output, argument.leading), argument.complex)
        if not is_numeric(argument.type):
            wrong = got != true
        else:
            own = tuple(n for n in range(true.ndim) if n not in (0, len(argument.leading) - 1))
            size = np.abs(true).max(axis=own, keepdims=True, initial=0.0)
            epsilon = np.finfo(np.float32 if precision(argument.type) == 32 else np.float64).eps
            allowed = _FACTOR * epsilon + _STORED * torch.finfo(output.dtype).eps
            # NaN is not within any bound.
            wrong = ~(np.abs(got - true) <= allowed * np.maximum(1.0, size))
        if not wrong.any():
            return None
        place = tuple(int(n[0]) for n in np.nonzero(wrong))
        where = f"{argument.name}{list(place)}" + ("" if self.whole else " of the corner rows")
        return f"{where} is {got[place]:.6g}, not {true[place]:.6g}; {int(wrong.sum())} are wrong"


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


def _exact(tensor: torch.Tensor, complex_: bool) -> np.ndarray:
    """The numbers of a tensor in double precision, pairs of reals as complex ones."""
    tensor = tensor.detach().cpu().resolve_conj()
    if complex_ and not tensor.is_complex():
        tensor = torch.view_as_complex(tensor.double().contiguous())
    if tensor.is_complex():
        return tensor.to(torch.complex128).numpy()
    return tensor.double().numpy() if tensor.is_floating_point() else tensor.long().numpy()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
