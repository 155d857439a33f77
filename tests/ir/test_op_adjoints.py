"""The op table is closed under the adjoint, and each adjoint is autograd's."""

import pytest

from pdssm_compiler.ir.ops import OPS
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.types import Index, Scalar, Vector, is_number
from pdssm_compiler.ir.value import topological
from tests.ir.agreement import assert_adjoint_agrees
from tests.ir.op_samples import SAMPLES, Sample, build
from tests.strategies import Sizes, arrays_for

SIZES = Sizes(2, 3, 2)
NUMBERS = [sample for sample in SAMPLES if is_number(sample.result)]
MAPS = [sample for sample in SAMPLES if not is_number(sample.result)]


@pytest.mark.parametrize("sample", NUMBERS, ids=str)
def test_adjoint_stays_in_the_table(sample: Sample) -> None:
    _, value = build(sample)
    cotangent = Input("g", value.type).value
    parts = OPS[sample.op].adjoint(cotangent, value)
    assert len(parts) == OPS[sample.op].arity
    for part, type_ in zip(parts, sample.args, strict=True):
        if not is_number(type_):
            assert part is None
            continue
        # Real or complex is the pass's business, the shape is the op's.
        assert part is not None
        assert type(part.type) is type(type_)
        assert all(below.is_leaf or below.op in OPS for below in topological([part]))


@pytest.mark.parametrize("sample", MAPS, ids=str)
def test_nothing_flows_through_maps(sample: Sample) -> None:
    _, value = build(sample)
    assert OPS[sample.op].adjoint(value, value) == (None,) * OPS[sample.op].arity


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_active_rules_stay_in_the_table(sample: Sample) -> None:
    """Real vectors for maps and tables, real scalars for indices, nothing for numbers."""
    _, value = build(sample)
    op = OPS[sample.op]
    assert (op.active is None) == all(is_number(type_) for type_ in sample.args)
    if op.active is None:
        return
    cotangent = Input("g", value.type if is_number(value.type) else Vector("f64")).value
    for part, type_ in zip(op.active(cotangent, value), sample.args, strict=True):
        if is_number(type_):
            assert part is None
            continue
        assert part is not None
        assert part.type == (Scalar("f64") if isinstance(type_, Index) else Vector("f64"))
        assert all(below.is_leaf or below.op in OPS for below in topological([part]))


@pytest.mark.parametrize("sample", NUMBERS, ids=str)
def test_adjoint_agrees_with_autograd(sample: Sample) -> None:
    program, _ = build(sample)
    arrays = arrays_for(program, SIZES, seed=11)
    if sample.op in ("log", "sqrt", "reciprocal"):
        arrays["a0"] = arrays["a0"] + 1.25
    assert_adjoint_agrees(program, arrays, SIZES, seed=11)
