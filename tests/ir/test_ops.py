"""The op table: type rules and meanings. Adjoints have their own file."""

import numpy as np
import pytest

from pdssm_compiler.ir import IRError, interpret
from pdssm_compiler.ir.ops import OPS, apply
from pdssm_compiler.ir.ops.matrices import MATRIX_OPS
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.types import Index, Map, Scalar, Table, Type, Vector
from tests.ir.agreement import assert_close
from tests.ir.op_samples import SAMPLES, Sample, build, covers_the_table
from tests.ir.torch_oracle import outputs
from tests.strategies import Sizes, arrays_for

SIZES = Sizes(2, 3, 2)


def test_every_op_has_a_sample() -> None:
    assert covers_the_table()


@pytest.mark.parametrize("name", sorted(set(OPS) - MATRIX_OPS))
def test_entry_is_complete(name: str) -> None:
    op = OPS[name]
    assert op.name == name
    assert callable(op.infer)
    assert callable(op.evaluate)
    assert callable(op.adjoint)
    assert {len(sample.args) for sample in SAMPLES if sample.op == name} == {op.arity}


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_infer(sample: Sample) -> None:
    assert build(sample)[1].type == sample.result


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_evaluate_agrees_with_torch(sample: Sample) -> None:
    program, _ = build(sample)
    arrays = arrays_for(program, SIZES, seed=7)
    if sample.op in ("log", "sqrt", "reciprocal"):
        arrays["a0"] = arrays["a0"] + 1.25
    assert_close(interpret(program, arrays), outputs(program, arrays, SIZES))


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_elementwise_means_what_it_says(sample: Sample) -> None:
    """Element j of the result changes exactly with element j of a vector argument."""
    vectors = [i for i, type_ in enumerate(sample.args) if isinstance(type_, Vector)]
    if not vectors:
        # Ops of scalars, maps and indices alone: none moves an element of a vector.
        assert OPS[sample.op].elementwise == (sample.op not in ("select", "compose", "invert"))
        return
    program, _ = build(sample)
    arrays = arrays_for(program, SIZES, seed=7)
    arrays = {k: a + 1.25 if a.dtype == np.float64 else a for k, a in arrays.items()}
    # A map under which element 2 of the argument moves; identities move nothing.
    moved = np.array([2, 0, 1, 3, 4])
    if len(sample.args) > 1 and isinstance(sample.args[1], Map):
        arrays["a1"] = np.broadcast_to(moved, arrays["a1"].shape)
    before = interpret(program, arrays)["y"]
    arrays[f"a{vectors[0]}"] = arrays[f"a{vectors[0]}"].copy()
    arrays[f"a{vectors[0]}"][..., 2] += 0.5 + (0.25j if sample.op == "imag" else 0)
    changed = (interpret(program, arrays)["y"] != before).reshape(2 * 3 * 2, -1).any(axis=0)
    here = [False, False, True, False, False]
    assert (changed.tolist() == here) == OPS[sample.op].elementwise


@pytest.mark.parametrize(
    ("x", "name", "want"),
    [
        (800.0, "softplus", 800.0),
        (-800.0, "softplus", 0.0),
        (800.0, "sigmoid", 1.0),
        (-800.0, "sigmoid", 0.0),
    ],
)
def test_evaluate_is_stable_far_from_zero(x: float, name: str, want: float) -> None:
    with np.errstate(all="raise", under="ignore"):
        assert OPS[name].evaluate(1, {}, np.float64(x)) == want


def test_scatter_add_sums_collisions_and_leaves_zeros() -> None:
    x, p = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1, 1, 3, 1])
    got = OPS["scatter_add"].evaluate(4, {}, x, p)
    np.testing.assert_array_equal(got, [0.0, 11.0, 0.0, 4.0])


def test_gather_and_compose_read_the_map_from_the_right() -> None:
    x, p, q = np.array([1.0, 2.0, 4.0]), np.array([2, 0, 0]), np.array([1, 1, 2])
    np.testing.assert_array_equal(OPS["gather"].evaluate(3, {}, x, p), [4.0, 1.0, 1.0])
    np.testing.assert_array_equal(OPS["compose"].evaluate(3, {}, p, q), p[q])


def test_invert_of_a_permutation_and_of_a_broken_promise() -> None:
    invert = OPS["invert"].evaluate
    np.testing.assert_array_equal(invert(4, {}, np.array([2, 0, 3, 1])), [1, 3, 0, 2])
    # The largest source wins, and what nothing reaches reads 0.
    np.testing.assert_array_equal(invert(4, {}, np.array([1, 1, 3, 1])), [0, 3, 0, 2])


def test_what_is_dropped_may_be_no_number() -> None:
    x, drop = np.array([np.nan, np.inf, 1.0]), np.array([0, 1])
    keep = OPS["keep"].evaluate(3, {}, x, drop)
    np.testing.assert_array_equal(keep, [[0.0, 0.0, 0.0], [np.nan, np.inf, 1.0]])
    with np.errstate(all="raise"):
        got = OPS["scale"].evaluate(3, {}, np.array([0.0, 0.0, 2.0]), x)
    np.testing.assert_array_equal(got, [0.0, 0.0, 2.0])


def test_select_takes_the_table_of_its_own_head() -> None:
    table = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # [H, K, N]
    index = np.array([[2, 0], [1, 1]])  # [B, H]
    got = OPS["select"].evaluate(4, {}, table, index)
    np.testing.assert_array_equal(got, [[table[0, 2], table[1, 0]], [table[0, 1], table[1, 1]]])


REFUSED: list[tuple[str, tuple[Type, ...], str]] = [
    ("add", (Scalar("f64"), Vector("f64")), "broadcast the scalar"),
    ("mul", (Vector("f32"), Vector("f64")), "differ in precision"),
    ("sub", (Vector("f64"), Map()), "needs numbers"),
    ("neg", (Map(),), "needs a number"),
    ("conj", (Vector("f64"),), "needs a complex number"),
    ("real", (Scalar("f32"),), "needs a complex number"),
    ("imag", (Index(3),), "needs a complex number"),
    ("complex", (Vector("c64"), Vector("f32")), "needs two real numbers"),
    ("complex", (Vector("f32"), Scalar("f32")), "broadcast the scalar"),
    ("tanh", (Vector("c64"),), "needs a real number"),
    ("exp", (Map(),), "needs a real number"),
    ("broadcast", (Vector("f32"),), r"argument 0 must be a scalar, not vec<f32>"),
    ("sum", (Scalar("f32"),), r"argument 0 must be a vector, not f32"),
    ("gather", (Scalar("f32"), Map()), r"argument 0 must be a vector"),
    ("scatter_add", (Vector("f32"), Vector("f32")), r"argument 1 must be a map, not vec<f32>"),
    ("select", (Table(3), Index(4)), r"an index below 4 selects from a table of 3"),
    ("select", (Table(4), Index(3)), r"an index below 3 selects from a table of 4"),
    ("select", (Map(), Index(4)), r"argument 0 must be a table"),
    ("compose", (Map(), Index(4)), r"argument 1 must be a map, not index<4>"),
    ("keep", (Scalar("f32"), Index(2)), r"argument 0 must be a vector, not f32"),
    ("keep", (Vector("f32"), Scalar("f32")), r"argument 1 must be an? index, not f32"),
    ("keep", (Vector("f32"), Index(3)), r"needs an index below 2, yes or no, not below 3"),
    ("invert", (Map("general"),), "a general map has no inverse; promise a permutation"),
]


@pytest.mark.parametrize(
    ("name", "types", "message"), REFUSED, ids=[f"{r[0]}-{r[2]}" for r in REFUSED]
)
def test_infer_refuses(name: str, types: tuple[Type, ...], message: str) -> None:
    args = [Input(f"a{i}", type_).value for i, type_ in enumerate(types)]
    listed = ", ".join(map(str, types))
    with pytest.raises(IRError, match=message) as caught:
        apply(name, *args)
    assert str(caught.value).startswith(f"{name}({listed}): ")


def test_apply_names_the_known_ops_for_an_unknown_one() -> None:
    with pytest.raises(
        IRError, match=r"unknown op 'matmul'; known: add, argmax, broadcast, .*tanh"
    ):
        apply("matmul")


def test_apply_counts_arguments_and_attributes() -> None:
    x = Input("x", Vector("f32")).value
    with pytest.raises(IRError, match=r"neg takes 1 arguments, got 2"):
        apply("neg", x, x)
    with pytest.raises(IRError, match=r"neg takes attributes \(\), got \('axis',\)"):
        apply("neg", x, axis=0)
    with pytest.raises(IRError, match=r"constant takes attributes \('value', 'element'\)"):
        apply("constant", value=1.0)


def test_constant_is_a_float_of_a_real_element() -> None:
    with pytest.raises(IRError, match=r"a constant's value is a float, not 1$"):
        apply("constant", value=1, element="f32")
    with pytest.raises(IRError, match=r"a constant is f32 or f64, not 'c64'"):
        apply("constant", value=1.0, element="c64")
