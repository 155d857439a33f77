"""What the tests of this package compare with, and how closely."""

from collections.abc import Iterable, Mapping

import numpy as np

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.passes import Adjoint, adjoint
from pdssm_compiler.ir.types import Vector, is_complex, is_number
from tests.ir.torch_oracle import differentiable, gradients
from tests.strategies import Sizes

# Of the largest number in the array, or of 1: results that cancel have lost these digits before.
TOLERANCE = 1e-12


def assert_close(
    got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], only: Iterable[str] = ()
) -> None:
    """The same arrays by the same names, to 1e-12."""
    names = sorted(only) or sorted(want)
    assert sorted(only) or sorted(got) == names
    for name in names:
        assert got[name].shape == want[name].shape, name
        assert got[name].dtype == want[name].dtype, name
        scale = max(1.0, np.abs(want[name]).max(initial=0.0))
        np.testing.assert_allclose(
            got[name], want[name], rtol=0, atol=TOLERANCE * scale, err_msg=name
        )


def cotangents_for(
    program: Program, sizes: Sizes, seed: int, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """A random cotangent for each number output but sums by an index, or for each in ``names``."""
    batch, length, heads = sizes
    outputs = [(out.name, out.value.type, (batch, length, heads)) for out in program.token_outputs]
    outputs += [
        (out.name, program.carry(out.carry).type, (batch, heads)) for out in program.final_outputs
    ]
    outputs += [(s.name, s.value.type, (batch, heads)) for s in program.sum_outputs if not s.index]
    rng = np.random.default_rng([seed, 1])
    cotangents: dict[str, np.ndarray] = {}
    for name, type_, rows in outputs:
        if not is_number(type_):
            continue
        shape = (*rows, program.state_size) if isinstance(type_, Vector) else rows
        value = rng.uniform(-1, 1, shape)
        if is_complex(type_):
            value = value + 1j * rng.uniform(-1, 1, shape)
        if names is None or name in names:
            cotangents[name] = value
    return cotangents


def run_adjoint(
    derived: Adjoint, arrays: Mapping[str, np.ndarray], cotangents: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Gradients by the forward and backward programs of an adjoint, by input name."""
    results = interpret(derived.forward, arrays)
    inputs = dict(arrays)
    inputs |= {name: results[output] for name, output in derived.saved.items()}
    inputs |= {f"grad_{name}": array for name, array in cotangents.items()}
    found = interpret(derived.program, inputs)
    for name in derived.summed:
        found[name] = found[name].sum(axis=0)
    return {name.removeprefix("grad_"): array for name, array in found.items()}


def assert_adjoint_agrees(
    program: Program,
    arrays: Mapping[str, np.ndarray],
    sizes: Sizes,
    seed: int,
    wrt: list[str] | None = None,
    arriving: list[str] | None = None,
) -> None:
    """The derived gradients are autograd's."""
    cotangents = cotangents_for(program, sizes, seed, arriving)
    derived = adjoint(program, wrt, arriving)
    got = run_adjoint(derived, arrays, cotangents)
    wanted = differentiable(program) if wrt is None else wrt
    assert_close(got, gradients(program, arrays, sizes, cotangents, wanted))
