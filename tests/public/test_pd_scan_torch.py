"""``pd_scan`` where TVM is missing: generated PyTorch, held to what every backend is held to."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler import explain, pd_scan
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunks
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.public import test_flash_pd_scan as flash
from tests.public import test_pd_scan_errors as errors
from tests.public import test_pd_scan_gradients as gradients
from tests.public import test_pd_scan_values as values
from tests.public.scans import KINDS, Case, Draw, draws, inputs
from tests.torch_only import torch_only

C64 = (
    Case(1, "dictionary"),
    Case(7, "dictionary", "row"),
    Case(16, "token", "column", "permutation"),
    Case(33, "none"),
)
CASES = (*C64, *KINDS)
# Programs that only check or invert maps have no carry, and so no chunks.
FALLBACKS = {
    "torch-chunks": (TorchChunks(), TorchTokens()),
    "torch-tokens": (TorchTokens(),),
}


@pytest.fixture(autouse=True, scope="module", params=FALLBACKS)
def template(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every scan is of this template."""
    with torch_only(*FALLBACKS[request.param]):
        yield
        scans = [kernel for kernel in explain() if "\ncarry " in kernel.program]
        assert {kernel.template for kernel in scans} == {request.param}


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=4)
@given(data=st.data())
def test_values_and_gradients(case: Case, data: st.DataObject) -> None:
    tensors = inputs(case, data.draw(draws(case)))
    values.assert_values(case, tensors)
    gradients.assert_gradients(case, tensors, gradients.cotangents(tensors))


@pytest.mark.parametrize("case", flash.CASES, ids=str)
@settings(max_examples=4)
@given(draw=flash.flash_draws())
def test_flash(case: Case, draw: Draw) -> None:
    flash.assert_as_defined(case, flash.flash_inputs(case, draw), 0.5)


@pytest.mark.parametrize("diagonal", ["disk", "one", "rotation"])
def test_a_long_sequence(diagonal: str) -> None:
    tensors = inputs(C64[1], Draw(1, 1003, 2, "random", diagonal, 5))
    values.assert_values(C64[1], tensors)
    gradients.assert_gradients(C64[1], tensors, gradients.cotangents(tensors))


@pytest.mark.parametrize("payload", [torch.bfloat16, torch.float16])
def test_low_precision_payload(payload: torch.dtype) -> None:
    tensors = inputs(Case(16, "dictionary"), Draw(2, 23, 3, "random", "disk", 2))
    values.assert_payload_values(payload, tensors)
    gradients.test_low_precision_payload(payload)


def test_one_output_or_input_alone() -> None:
    for reached in (0, 1):
        gradients.test_one_output_alone((Case(2, "token"), reached))
    gradients.test_only_some_inputs(("diagonal",))
    gradients.test_without_an_initial_state()


@pytest.mark.parametrize("source", ["none", "token", "dictionary"])
def test_empty_calls(source: str) -> None:
    for shape in ((0, 5, 3), (2, 0, 3), (2, 5, 0)):
        errors.test_empty_calls(source, shape)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_integer_dtypes(dtype: torch.dtype) -> None:
    values.test_integer_dtypes("dictionary", dtype)
    values.test_integer_dtypes("token", dtype)
    errors.test_index_out_of_range_in_other_dtypes(dtype)


@pytest.mark.parametrize("value", [-1, 4, 2**31 - 1, -(2**31)])
def test_index_out_of_range(value: int) -> None:
    """The very messages of the other backends."""
    for grad in (False, True):
        errors.test_index_out_of_range(value, grad)
    errors.test_a_wide_index_does_not_wrap_into_range()
    errors.test_an_error_is_told_once()


@pytest.mark.parametrize("map_class", ["permutation", "identity"])
@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("source", ["token", "dictionary"])
def test_broken_promises(source: str, orientation: str, map_class: str) -> None:
    errors.test_broken_promises(source, orientation, map_class)


def test_a_state_size_that_no_int16_holds() -> None:
    size = 40_000
    maps = torch.arange(4, dtype=torch.int16).repeat(size // 4).expand(1, 2, 1, size)
    ones = torch.ones(1, 2, 1, size, dtype=torch.complex64)
    states, _ = pd_scan(ones, ones, destination=maps)
    assert torch.equal(states[0, 1, 0, :4], torch.full((4,), size / 4 + 1, dtype=torch.complex64))
    assert torch.equal(states[0, 1, 0, 4:], ones[0, 1, 0, 4:])
