"""``of_symbols``: rows of a table by token, and sums of tokens by symbol."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.runtime import symbols as module
from pdssm_compiler.runtime.symbols import of_symbols

SHAPES = st.sampled_from(((), (1,), (3,), (1, 4, 2)))
DTYPES = st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.complex64))


@given(st.integers(1, 9), st.sampled_from(((2, 7), (1, 1), (0, 3), (3, 0))), SHAPES, DTYPES)
def test_rows_and_sums(count: int, tokens: tuple[int, int], shape: tuple[int, ...], dtype) -> None:  # type: ignore[no-untyped-def]
    """As an index of torch's, whose gradient is summed in float64."""
    random = torch.Generator().manual_seed(count)
    table = torch.randn(count, *shape, generator=random).to(dtype).requires_grad_()
    places = torch.randint(count, tokens, generator=random)
    found = of_symbols(table, places.to(torch.int16))
    assert torch.equal(found, table[places])
    arriving = torch.randn(found.shape, generator=random).to(dtype)
    (got,) = torch.autograd.grad(found, table, arriving)
    wide = torch.promote_types(dtype, torch.float64)
    want = torch.zeros(table.shape, dtype=wide)
    want.index_add_(0, places.flatten(), arriving.to(wide).flatten(0, 1))
    assert got.dtype == dtype
    torch.testing.assert_close(got, want.to(dtype))


def test_many_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the one-hot form of all of them: the same sums."""
    table = torch.randn(7, 5, requires_grad=True)
    places = torch.tensor([[0, 6, 6, 2], [2, 6, 0, 0]])
    arriving = torch.randn(2, 4, 5)
    found = []
    for few in (128, 3):
        monkeypatch.setattr(module, "_FEW", few)
        found += torch.autograd.grad(of_symbols(table, places), table, arriving)
    torch.testing.assert_close(*found)
    assert not found[1][[1, 3, 4, 5]].any()


def test_what_is_out_of_range_is_the_nearest() -> None:
    table = torch.randn(3, 2)
    assert torch.equal(of_symbols(table, torch.tensor([[-1, 3, 1]])), table[[0, 2, 1]][None])


def test_opcheck_and_second_derivatives() -> None:
    table = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([[0, 2], [2, 2]])
    checks = torch.library.opcheck(of_symbols, (table, places))
    checks |= torch.library.opcheck(module._sum_by_symbol, (of_symbols(table, places), places, 3))
    assert set(checks.values()) == {"SUCCESS"}
    assert torch.autograd.gradgradcheck(lambda t: of_symbols(t, places).sin(), table)
