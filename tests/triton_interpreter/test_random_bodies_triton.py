"""The Triton emitter on programs no template was written for: what the interpreter computes."""

from hypothesis import assume
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes import Adjoint, adjoint, in_chunks, specialise
from tests.ir.agreement import cotangents_for
from tests.kernels import LAYOUTS, assert_runs, few
from tests.strategies import Sizes, affine_programs, arrays_for, programs, seeds
from tests.triton_interpreter.interpreted import (
    CHUNKS,
    CONFIGS,
    LOOKBACK,
    Config,
    Interpreted,
)

SHAPES = (Sizes(2, 3, 2), Sizes(1, 5, 3), Sizes(1, 1, 1), Sizes(2, 0, 1))


def assert_interpreted(program: Program, seed: int, config: Config) -> None:
    """Forward and backward, in every shape and layout."""
    assert_adjoint_interpreted(program, adjoint(program, surrogate="active"), seed, config)


def assert_adjoint_interpreted(
    program: Program, derived: Adjoint, seed: int, config: Config
) -> None:
    """A program that saves what its adjoint reads, and the adjoint, in every shape and layout."""
    forward, backward = (Interpreted(p, config) for p in (derived.forward, derived.program))
    for sizes, layout in zip(SHAPES, LAYOUTS, strict=True):
        arrays = arrays_for(program, sizes, seed)
        run = lambda _, tensors, shape: forward.run(tensors, shape)  # noqa: E731
        assert_runs(run, derived.forward, arrays, sizes, layout)
        results = interpret(derived.forward, arrays)
        arrays |= {name: results[output] for name, output in derived.saved.items()}
        cotangents = cotangents_for(program, sizes, seed)
        arrays |= {f"grad_{name}": array for name, array in cotangents.items()}
        reads = {i.name: arrays[i.name] for i in derived.program.inputs if i.inverse_of is None}
        run = lambda _, tensors, shape: backward.run(tensors, shape)  # noqa: E731
        assert_runs(run, derived.program, reads, sizes, layout)
        assert forward.error.item() == backward.error.item() == 0


configs = st.sampled_from(CONFIGS)


@few(7, program=programs(precision=32, max_ops=14), seed=seeds(), config=configs)
def test_float32(program: Program, seed: int, config: Config) -> None:
    assert_interpreted(program, seed, config)


@few(3, program=programs(precision=64), seed=seeds(), config=configs)
def test_float64(program: Program, seed: int, config: Config) -> None:
    assert_interpreted(program, seed, config)


@few(3, program=affine_programs(precision=64), seed=seeds(), config=configs)
def test_affine(program: Program, seed: int, config: Config) -> None:
    assert_interpreted(program, seed, config)


in_parts = st.sampled_from((*CHUNKS, *LOOKBACK))


@few(3, program=affine_programs(precision=64), seed=seeds(), config=in_parts)
def test_affine_in_chunks(program: Program, seed: int, config: Config) -> None:
    """The adjoint reads, at a chunk's last step, what was saved in the next one."""
    derived = adjoint(program, surrogate="active")
    try:
        in_chunks(specialise(derived.program))
    except PassError:
        assume(False)
    assert_adjoint_interpreted(program, derived, seed, config)
