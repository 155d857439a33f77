"""Random programs for the backends: a bounded number of them, each run on tensors of every layout.

A kernel and the interpreter are compared as ``|out - ref| <= c·ε·max(1, |ref|)``, ``ε`` of the
program's precision, the reference on the rounded inputs. :mod:`tests.random_bodies` keeps values
below 8 and carries below 2, so one op adds a few ``ε`` and passes an error on multiplied by at
most 8 (the slope of a product; a sum of N terms is scaled back by N); a dozen ops over five
tokens, most of which do not amplify, stay well below ``c`` = 4096. Float64 programs are held to
the same ``c``, that is to 1e-12, so the float32 bound hides no error of structure.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.types import is_numeric, precision
from pdssm_compiler.runtime.backends import Sizes as KernelSizes
from pdssm_compiler.runtime.binding import TORCH_DTYPES, Slot, allocate
from tests.strategies import Sizes

Arrays = dict[str, np.ndarray]

TOLERANCE = 4096
LAYOUTS = ("dense", "reversed", "spread", "expanded")


def pairwise(*factors: Sequence[Any]) -> list[Any]:
    """Every combination of three factors or more. Half of them, in which any values of two factors
    meet, are run each time, the others under stress.
    """
    places = itertools.product(*(range(len(factor)) for factor in factors))
    return [
        pytest.param(*values, marks=[pytest.mark.stress] if sum(at) % 2 else [])
        for at, values in zip(places, itertools.product(*factors), strict=True)
    ]


# Examples from which on a run is a long one.
_STRESS = 500


def under_stress(*values: Any) -> list[Any]:
    """Parameters that `make stress` runs, and the suite does not."""
    return [pytest.param(value, marks=pytest.mark.stress) for value in values]


def examples(count: int) -> int:
    """How many examples a costly test has: ``count``, eight times as many under ``stress``."""
    return count * (8 if settings.default.max_examples >= _STRESS else 1)


def few(count: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Run a test on some :func:`examples`, the same in every run: each costs compilations."""

    def decorate(test: Callable[..., None]) -> Any:
        # Shrinking would compile hundreds more; print_blob and the noted text say enough.
        chosen = settings(
            max_examples=examples(count),
            derandomize=True,
            database=None,
            phases=PHASES,
            deadline=None,
        )
        return chosen(given(**strategies)(test))

    return decorate


PHASES = [phase for phase in settings().phases if phase.name in ("explicit", "generate")]


def rounded(program: Program, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays as the program's tensors hold them, in double precision."""
    found: Arrays = {}
    for input_ in program.inputs:
        if input_.inverse_of is None:
            array = np.asarray(arrays[input_.name])
            if is_numeric(input_.type):
                tensor = torch.tensor(array).to(TORCH_DTYPES[input_.storage])
                array = tensor.to(torch.tensor(array).dtype).numpy()
            found[input_.name] = array
    return found


def tensors_of(program: Program, arrays: Arrays, layout: str) -> list[torch.Tensor]:
    """The caller's tensors, in order, in one of the :data:`LAYOUTS`."""
    given_ = [input_ for input_ in program.inputs if input_.inverse_of is None]
    found = []
    for input_ in given_:
        tensor = torch.tensor(arrays[input_.name]).to(TORCH_DTYPES[input_.storage])
        if layout == "expanded" and input_.role != "head":
            tensor = tensor[:1].expand(tensor.shape)
        found.append(_laid_out(tensor, layout))
    return found


def _laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "reversed":
        axes = tuple(reversed(range(tensor.dim())))
        return tensor.permute(axes).contiguous().permute(axes)
    if layout == "spread":
        # From an odd element on, every other one.
        memory = torch.zeros(2 * tensor.numel() + 1, dtype=tensor.dtype)
        return memory[1:][::2].view(tensor.shape).copy_(tensor)
    return tensor


def repeated(program: Program, arrays: Arrays) -> Arrays:
    """What an expanded layout holds: the first sequence, for all."""
    return {
        name: array
        if program.input(name).role == "head"
        else np.broadcast_to(array[:1], array.shape).copy()
        for name, array in arrays.items()
    }


Run = Callable[[Program, list[torch.Tensor], Sizes], list[torch.Tensor]]


def assert_runs(run: Run, program: Program, arrays: Arrays, sizes: Sizes, layout: str) -> None:
    """A way to run a program agrees with the interpreter."""
    arrays = rounded(program, arrays)
    if layout == "expanded":
        arrays = repeated(program, arrays)
    outputs = run(program, tensors_of(program, arrays, layout), sizes)
    want = interpret(program, arrays)
    types = {out.name: out.value.type for out in program.token_outputs}
    types |= {out.name: program.carry(out.carry).type for out in program.final_outputs}
    types |= {out.name: out.value.type for out in program.sum_outputs}
    assert len(outputs) == len(types)
    for (name, type_), output in zip(types.items(), outputs, strict=True):
        got = output.resolve_conj().numpy()
        assert got.shape == want[name].shape, name
        if not is_numeric(type_):
            np.testing.assert_array_equal(got, want[name], err_msg=name)
            continue
        epsilon = np.finfo(np.float32 if precision(type_) == 32 else np.float64).eps
        bound = TOLERANCE * epsilon * max(1.0, np.abs(want[name]).max(initial=0.0))
        np.testing.assert_allclose(got, want[name], rtol=0, atol=bound, err_msg=name)


def poisoned(slot: Slot, sizes: KernelSizes) -> torch.Tensor:
    """An output full of NaN, or of -1."""
    return poison(allocate(slot, sizes, torch.device("cpu")))


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with NaN, or with -1, so that what is not written shows."""
    numbers = tensor.is_floating_point() or tensor.is_complex()
    return tensor.fill_(float("nan") if numbers else -1)
