"""Ops over matrices: what a mixture adds up to, what it chooses, and the adjoint of the choice."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import IRError, Program, ProgramBuilder, VerificationError, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.ops import OPS, apply
from pdssm_compiler.ir.ops.matrices import MATRIX_OPS, fused
from pdssm_compiler.ir.ops.noise import gumbel_noise, philox
from pdssm_compiler.ir.parser import parse_program
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.programs import LEARNED, mixture
from pdssm_compiler.ir.types import Coefficients, Index, Map, Matrices, Matrix, Scalar, Vector
from tests.strategies import seeds

ORIENTATIONS = st.sampled_from(("column", "row"))
ALONG = {"column": -2, "row": -1}


def in_long_doubles(a: np.ndarray, b_: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``a·b + c`` rounded once, float32; 64 bits of a long double hold all but the rarest sums."""
    wide = np.longdouble
    return (a.astype(wide) * b_.astype(wide) + c.astype(wide)).astype(np.float32)


@given(seeds(), st.sampled_from((0, 20, 60)))
def test_fused_rounds_once(seed: int, spread: int) -> None:
    """No neighbour is nearer to the sum, in fractions."""
    random = np.random.default_rng(seed)
    a, m, c = random.standard_normal((3, 50)).astype(np.float32)
    c *= np.float32(2.0) ** random.integers(-spread, spread + 1, 50).astype(np.float32)
    got = fused(a, m, c)
    assert got.dtype == np.float32
    neighbours = [np.nextafter(got, np.float32(end)) for end in (-np.inf, np.inf)]
    for number in range(50):
        exact = Fraction(float(a[number])) * Fraction(float(m[number])) + Fraction(
            float(c[number])
        )
        off, *others = (abs(Fraction(float(each[number])) - exact) for each in (got, *neighbours))
        assert all(off <= other for other in others)


def test_fused_knows_what_float64_loses() -> None:
    """Half way between two float32 numbers but for a bit that float64 has no room for."""
    one = np.float32([1.0])
    a, m = np.float32([2.0**-12 + 2.0**-35]), np.float32([2.0**-12 - 2.0**-35])
    # a m = 2^-24 - 2^-70: 1 + a m is just below the middle of 1 and the next number.
    assert fused(a, m, one) == 1.0
    assert (a.astype(np.float64) * m.astype(np.float64) + 1.0).astype(np.float32) == 1.0
    # From an odd neighbour the middle would be rounded away from it.
    odd = np.float32([1.0 + 2.0**-23])
    assert fused(a, m, odd) == odd
    assert (a.astype(np.float64) * m + odd.astype(np.float64)).astype(np.float32) != odd


@given(st.integers(1, 6), st.integers(1, 5), ORIENTATIONS, st.sampled_from(("f32", "f64")))
def test_text_round_trips(n: int, entries: int, orientation: str, element: str) -> None:
    program = mixture(n, entries, element, orientation, noisy=True)
    backward = adjoint(program, LEARNED, surrogate="dense").program
    for each in (program, backward, mixture(n, entries, element, orientation)):
        assert parse_program(each.text) == each
        assert each.over_matrices
    assert {v.op for p in (program, backward) for v in p.body if not v.is_leaf} == MATRIX_OPS


def arrays(program: Program, seed: int, sizes: tuple[int, int, int]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    batch, length, heads = sizes
    n = program.state_size
    leading = {"token": (batch, length, heads), "head": (heads,)}
    found = {}
    for input_ in program.inputs:
        shape = leading[input_.role]
        match input_.type:
            case Coefficients(size, _):
                found[input_.name] = random.dirichlet(np.ones(size), shape)
            case Matrices(size, _):
                found[input_.name] = random.standard_normal((*shape, size, n, n))
            case Map():
                found[input_.name] = random.integers(n, size=(*shape, n))
            case Vector():
                parts = random.standard_normal((2, *shape, n))
                found[input_.name] = parts[0] + 1j * parts[1]
            case Scalar():
                found[input_.name] = np.full(shape, 0.7)
    return found


@given(st.integers(1, 5), st.integers(1, 4), ORIENTATIONS, seeds())
def test_the_choice_is_the_largest(n: int, entries: int, orientation: str, seed: int) -> None:
    program = mixture(n, entries, "f64", orientation)
    given_ = arrays(program, seed, (2, 3, 2))
    mixed = np.einsum("bthk,hkij->bthij", *reversed(given_.values()))
    got = interpret(program, given_)["mixed_map"]
    np.testing.assert_array_equal(got, mixed.argmax(ALONG[orientation]))


def test_float32_is_added_up_in_order_and_fused() -> None:
    """Near-ties are decided as defined: all candidates of a column differ by a few roundings."""
    n, entries, random = 7, 6, np.random.default_rng(0)
    weights = random.random((3, 11, 1, entries), np.float32)
    tables = random.standard_normal((1, entries, 1, 1), np.float32).repeat(n, 2).repeat(n, 3)
    tables += np.float32(1e-7) * random.standard_normal((1, entries, n, n), np.float32)
    want = np.zeros((3, 11, 1, n, n), np.float32)
    for k in range(entries):
        want = in_long_doubles(weights[..., k, None, None], tables[:, k], want)
    program = mixture(n, entries, "f32", "column")
    got = interpret(program, {"dictionary_logits": tables, "mixture_weights": weights})
    np.testing.assert_array_equal(got["mixed_map"], want.argmax(-2))
    product = np.einsum("bthk,hkij->bthij", weights, tables)
    assert not np.array_equal(got["mixed_map"], product.argmax(-2))


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_ties_go_to_the_lowest_and_nan_to_none(orientation: str) -> None:
    tables = np.zeros((1, 1, 3, 3))
    tables[0, 0, 1, 1] = np.nan
    program = mixture(3, 1, "f64", orientation)
    given_ = {"dictionary_logits": tables, "mixture_weights": np.ones((1, 1, 1, 1))}
    assert interpret(program, given_)["mixed_map"].tolist() == [[[[0, -1, 0]]]]


@given(st.integers(1, 5), st.integers(1, 4), ORIENTATIONS, seeds())
def test_the_adjoint_is_autograd_s(n: int, entries: int, orientation: str, seed: int) -> None:
    derived = adjoint(mixture(n, entries, "f64", orientation), surrogate="dense")
    assert derived.saved == {"saved_mixed_map": "mixed_map"}
    given_ = arrays(derived.program, seed, (2, 3, 2))
    got = interpret(derived.program, given_)
    leaves = {name: torch.tensor(array) for name, array in given_.items()}
    weights = leaves["mixture_weights"].requires_grad_()
    tables = leaves["dictionary_logits"].requires_grad_()
    soft = torch.softmax(
        torch.einsum("bthk,hkij->bthij", weights, tables) / 0.7, ALONG[orientation]
    )
    left, right = leaves["left_mixed_map"], leaves["right_mixed_map"]
    of_map = (left.conj()[..., :, None] * right[..., None, :]).real
    # The matrix that a row's map stands for is the transposed.
    of_map = of_map if orientation == "column" else of_map.mT
    want = torch.autograd.grad(soft, (weights, tables), of_map)
    np.testing.assert_allclose(got["grad_mixture_weights"], want[0], rtol=1e-10, atol=1e-12)
    total = got["grad_dictionary_logits"].sum(0)
    np.testing.assert_allclose(total, want[1], rtol=1e-10, atol=1e-12)


def test_a_second_derivative_is_refused() -> None:
    backward = adjoint(mixture(3, 2, "f64", "row"), surrogate="dense").program
    with pytest.raises(IRError, match="has none of its own: a hard choice is differentiated once"):
        adjoint(backward, ["mixture_weights"])


def test_without_a_surrogate_a_choice_has_no_gradient() -> None:
    program = mixture(3, 2, "f64", "row")
    with pytest.raises(PassError, match="no cotangent for %mixed_map"):
        adjoint(program, cotangents=["mixed_map"])


W, M, X = Coefficients(3, "f64"), Matrices(3, "f64"), Matrix("f64")


@pytest.mark.parametrize(
    ("op", "types", "attributes", "message"),
    [
        ("mix", (W, M), {"element": "f64"}, "argument 0 must be a matrices, not coefs<3, f64>"),
        ("mix", (M, Coefficients(2, "f64")), {"element": "f64"}, "2 coefficients weigh 3"),
        ("mix", (M, Coefficients(3, "f32")), {"element": "f64"}, "differ in precision"),
        ("mix", (M, W), {"element": "f32"}, "adds up in f64, not in 'f32'"),
        ("argmax", (M,), {"orientation": "row"}, "argument 0 must be a matrix"),
        ("argmax", (X,), {"orientation": "up"}, "the orientation is column or row, not 'up'"),
        ("outer", (X, Vector("f64")), {}, "argument 0 must be a vector"),
        ("inner", (X, X), {}, "argument 0 must be a matrices"),
        ("weigh", (X, Vector("f64")), {}, "argument 1 must be a coefficients"),
    ],
)
def test_infer_refuses(op: str, types: tuple, attributes: dict, message: str) -> None:
    args = [Input(f"a{i}", type_).value for i, type_ in enumerate(types)]
    with pytest.raises(IRError, match=message):
        apply(op, *args, **attributes)


def test_no_other_op_takes_a_matrix() -> None:
    matrix = Input("m", X).value
    for name in set(OPS) - MATRIX_OPS - {"constant", "iota"}:
        with pytest.raises(IRError):
            apply(name, *[matrix] * OPS[name].arity)


@pytest.mark.parametrize(
    ("role", "type_", "message"),
    [
        ("token", X, "%m is a matrix, which is computed by every token and never stored"),
        ("token", M, "%m are matrices, and they belong to a head"),
        ("head", W, "%m are coefficients, and they belong to a token"),
        ("token", Coefficients(0, "f64"), "%m: needs at least 1 real coefficient"),
    ],
)
def test_verify_refuses(role: str, type_: object, message: str) -> None:
    build = ProgramBuilder(3)
    build.emit("y", b.argmax(b.mix(build.input("d", M, "head"), build.input("w", W)), "row"))
    build.input("m", type_, role)
    with pytest.raises(VerificationError, match=message):
        build.build()


def test_a_matrix_is_not_written() -> None:
    build = ProgramBuilder(3)
    mixed = b.mix(build.input("d", M, "head"), build.input("w", W))
    build.emit("y", mixed)
    build.sum("z", mixed)
    build.input("k", Index(2))
    with pytest.raises(VerificationError, match=r"%y: cannot emit .*%z: cannot sum matrix"):
        build.build()


def test_philox_is_as_published() -> None:
    """The known answers of Random123."""
    word = np.uint64(0xFFFFFFFF)
    zero = [np.uint64(0)] * 4
    assert [hex(w) for w in philox(zero, np.uint64(0))] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]
    assert [hex(w) for w in philox([word] * 4, np.uint64(2**64 - 1))] == [
        "0x408f276d",
        "0x41c83b0e",
        "0xa20bc7c6",
        "0x6d5451fd",
    ]


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_noise_is_gumbel_s(orientation: str) -> None:
    noise = gumbel_noise(9, orientation, np.int64(5), np.arange(2000))
    assert noise.shape == (2000, 9, 9)
    # Mean and variance within five standard deviations, of each entry and of all.
    assert abs(noise.mean() - np.euler_gamma) < 5 * 1.2825 / np.sqrt(noise.size)
    assert (np.abs(noise.mean(0) - np.euler_gamma) < 5 * 1.2825 / np.sqrt(2000)).all()
    assert abs(noise.var() - np.pi**2 / 6) < 0.05
    assert len(np.unique(noise)) > 0.97 * noise.size
    # A map's rows are another's columns.
    other = gumbel_noise(
        9, {"row": "column", "column": "row"}[orientation], np.int64(5), np.arange(3)
    )
    np.testing.assert_array_equal(noise[:3], other.swapaxes(-1, -2))
