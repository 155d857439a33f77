"""``largest``: no input makes a number larger than it says."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import ProgramBuilder, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.bounds import largest
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.types import Vector, is_complex
from pdssm_compiler.ir.value import Value
from tests.strategies import seeds

N = 3
REAL = Vector("f32")


@st.composite
def bodies(draw: st.DrawFn) -> tuple[ProgramBuilder, list[Value]]:
    """A body of elementwise ops on one input, as a builder, and its values."""
    build = ProgramBuilder(N)
    given_ = build.input("x", REAL)
    reals, pairs = [given_], [apply("complex", given_, given_)]
    for _ in range(draw(st.integers(1, 12))):
        one, other = draw(st.sampled_from(reals)), draw(st.sampled_from(reals))
        two, more = draw(st.sampled_from(pairs)), draw(st.sampled_from(pairs))
        number = b.constant(draw(st.floats(-8, 8, width=32)))
        made = draw(
            st.sampled_from(
                [
                    *(apply(op, one) for op in ("sigmoid", "tanh", "sin", "cos", "exp", "neg")),
                    *(apply(op, one, other) for op in ("add", "sub", "mul", "complex")),
                    *(apply(op, two, more) for op in ("add", "mul")),
                    *(apply(op, two) for op in ("conj", "real", "imag")),
                    apply("mul", one, apply("broadcast", number)),
                ]
            )
        )
        (pairs if is_complex(made.type) else reals).append(made)
    return build, [*reals, *pairs]


@given(bodies(), seeds())
def test_no_number_is_larger(made: tuple[ProgramBuilder, list[Value]], seed: int) -> None:
    build, values = made
    bounds = {}
    for number, value in enumerate(values):
        if largest(value) < math.inf:
            build.emit(f"y{number}", value)
            bounds[f"y{number}"] = largest(value)
    build.emit("x_again", values[0])
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, 9, 1, N)) * 10.0 ** random.integers(-3, 30, (2, 9, 1, N))
    with np.errstate(all="ignore"):
        found = interpret(build.build(), {"x": x.astype(np.float32)})
    for name, most in bounds.items():
        parts = np.stack([found[name].real, found[name].imag])
        assert (np.abs(parts) <= most * (1 + 1e-5) + 1e-30).all()


def test_a_phase_within_a_turn() -> None:
    """What fused diagonals have; a phase as it comes is unknown."""
    build = ProgramBuilder(N)
    x = build.input("x", REAL)
    turn = apply("broadcast", b.constant(2 * math.pi))
    assert largest(apply("mul", turn, apply("sigmoid", x))) == 2 * math.pi
    assert largest(x) == math.inf
    assert largest(apply("mul", x, apply("sigmoid", x))) == math.inf
