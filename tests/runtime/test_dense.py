"""The operators of the dense surrogate, ``map_products`` and ``map_scores``."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pdssm_compiler import ArgumentError
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import dense, sums
from pdssm_compiler.runtime.blocks import cut
from pdssm_compiler.runtime.dense import map_products, map_scores
from pdssm_compiler.runtime.ops import scan
from tests.public.accuracy import epsilon, wide

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
# Fixed in few, as each has a kernel of its own.
KINDS = (
    (3, 5, torch.complex64),
    (1, 1, torch.complex128),
    (4, 9, torch.float32),
    (3, 17, torch.float64),
)
C = 8


def inputs(
    n: int, maps: int, dtype: torch.dtype, rows: tuple[int, int, int], seed: int, skew: float = 0
) -> Inputs:
    """Factors, dictionary and selection; with a skew most tokens have one map."""
    random = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(*rows, n, dtype=dtype, generator=random) for _ in range(2))
    dictionary = torch.randint(n, (rows[2], maps, n), generator=random, dtype=torch.int32)
    selection = torch.randint(maps, rows, generator=random, dtype=torch.int32)
    usual = torch.rand(rows, generator=random) < skew
    return left, right, dictionary, torch.where(usual, maps // 2, selection)


def of_entries(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``∂P_t``, ``[B, T, H, N, N]``."""
    found = wide(left).conj().unsqueeze(-1) * wide(right).unsqueeze(-2)
    return found.real if found.is_complex() else found


def expected(given_: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    left, right, dictionary, selection = given_
    of_p, n, maps = of_entries(left, right), left.shape[3], dictionary.shape[1]
    chosen = torch.nn.functional.one_hot(selection.long(), maps).double()
    # [h, k, i, j] is 1 where p[j] = i.
    matrices = torch.nn.functional.one_hot(dictionary.long(), n).double().mT
    return (
        torch.einsum("bthk,bthij->hkij", chosen, of_p),
        torch.einsum("bthij,hkij->bthk", of_p, matrices),
    )


def found(given_: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    left, right, dictionary, selection = given_
    products = map_products(left, right, selection, dictionary.shape[1])
    return products, map_scores(left, right, dictionary)


def assert_as_defined(given_: Inputs) -> None:
    left, right, *rest = given_
    scales = expected((left.abs(), right.abs(), *rest))
    for got, want, scale in zip(found(given_), expected(given_), scales, strict=True):
        assert got.shape == want.shape
        assert got.dtype == left.abs().dtype
        error = (got.double() - want).abs()
        assert (error <= C * epsilon(got.dtype) * scale).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=8)
@given(
    rows=st.tuples(st.integers(0, 3), st.sampled_from((0, 1, 7, 16, 33, 140)), st.integers(0, 3)),
    skew=st.sampled_from((0.0, 0.9, 1.0)),
    seed=st.integers(0, 2**31 - 1),
)
def test_as_defined(
    kind: tuple[int, int, torch.dtype], rows: tuple[int, int, int], skew: float, seed: int
) -> None:
    assert_as_defined(inputs(*kind, rows, seed, skew))


def test_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks are multiplied together, and however long they are."""
    given_ = inputs(3, 5, torch.complex64, (2, 600, 3), 1, 0.5)
    for at_once in (1, 100, 3000):
        for longest in (1, 7, 1024):
            monkeypatch.setattr(dense, "_AT_ONCE_ON_CPU", at_once)
            monkeypatch.setattr(dense, "_SHORTEST_BLOCK", min(longest, 32))
            monkeypatch.setattr(dense, "_LONGEST_BLOCK", longest)
            assert_as_defined(given_)


@pytest.mark.parametrize("tokens", [15, 16, 300, 603])
def test_rows_of_any_length(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens are cut into longer rows; what is left over is scored as well."""
    cuts = {}
    for rows in (1, 4, 10**6):
        monkeypatch.setattr(dense, "_ROWS", rows)
        cuts[rows] = dense._rows_of(tokens, 2)
    assert cuts[10**6][0] == (0, tokens // 16 * 16, 16)
    assert cuts[1][0][2] == {15: 16, 16: 16, 300: 256, 603: 256}[tokens]
    assert cuts[4][0][2] == {15: 16, 16: 16, 300: 64, 603: 256}[tokens]
    for (begin, whole, row), rest in cuts.values():
        assert (begin, rest) == (0, (whole, tokens, 1))
        assert whole % row == 0 <= tokens - whole < row
    monkeypatch.setattr(dense, "_ROWS", 1)
    assert_as_defined(inputs(3, 5, torch.complex64, (1, tokens, 2), tokens))


def test_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices that do not have it."""
    monkeypatch.setattr(sums, "_WITH_FLOAT64", ())
    assert_as_defined(inputs(3, 5, torch.complex64, (2, 600, 3), 1, 0.5))


@pytest.mark.parametrize("rows", [0, 1, 40])
@pytest.mark.parametrize("maps", [1, 2, 9])
def test_blocks_hold_every_row_once(maps: int, rows: int) -> None:
    random = torch.Generator().manual_seed(3)
    map_of_row = torch.randint(maps, (rows,), generator=random)
    for length in (1, 4, 64):
        blocks = cut(map_of_row, maps, length)
        assert len(blocks.map) == rows // length + maps
        seen = []
        for first, end, of in zip(blocks.first, blocks.end, blocks.map, strict=True):
            places = range(int(first), min(int(end), int(first) + length))
            assert all(map_of_row[blocks.order[place]] == of for place in places)
            seen += [int(blocks.order[place]) for place in places]
        assert sorted(seen) == list(range(rows))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64])
def test_any_layout(dtype: torch.dtype) -> None:
    """Conjugated, transposed, expanded and padded tensors are read as they are."""
    left, right, dictionary, selection = inputs(3, 5, dtype, (2, 16, 3), 1)
    if dtype.is_complex:
        left = left.conj()
    right = right.transpose(0, 2).contiguous().transpose(0, 2)[:1].expand(right.shape)
    dictionary = dictionary[:1].expand(dictionary.shape).long()
    selection = selection[:, :, :1].to(torch.uint8).expand(selection.shape)
    assert_as_defined((left, right, dictionary, selection))


def test_an_index_out_of_range_does_no_harm() -> None:
    """The scan reports it; here it is clamped."""
    left, right, dictionary, selection = inputs(3, 5, torch.complex64, (1, 9, 2), 1)
    wrong = left, right, dictionary.clone(), selection.clone()
    wrong[2][0, 0, 0], wrong[3][0, 2, 1] = -1, 77
    dictionary[0, 0, 0], selection[0, 2, 1] = 0, 4
    for mine, theirs in zip(
        found(wrong), found((left, right, dictionary, selection)), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_infinities_stay_with_their_tokens() -> None:
    """What fills a block that is not full is zero, whatever the numbers are."""
    left, right, dictionary, selection = inputs(3, 5, torch.float64, (1, 9, 1), 1)
    selection.copy_(torch.arange(9).view(1, 9, 1) % 5)
    left[0, 8] = float("inf")  # of map 3
    products, scores = found((left, right, dictionary, selection))
    assert not products[0, 3].isfinite().any()
    assert products[0, [0, 1, 2, 4]].isfinite().all()
    assert scores[0, :8].isfinite().all()


class _Allocated(TorchDispatchMode):
    """The largest number of elements of a result."""

    numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_memory_is_linear(skew: float) -> None:
    """Nothing is larger than the factors, what is taken together, or the result."""
    n, maps, length, heads = 32, 32, 2500, 2
    given_ = inputs(n, maps, torch.complex64, (1, length, heads), 1, skew)
    left, right, dictionary, selection = given_
    with _Allocated() as of_products:
        dense._map_products(left, right, selection, maps)
    with _Allocated() as of_scores:
        dense._map_scores(left, right, dictionary)
    tokens = length * heads
    # The blocks taken together are rounded up to one.
    assert of_products.numel <= 2 * tokens * n
    assert of_scores.numel <= 2 * tokens * max(n, maps)
    assert 2 * tokens * n < tokens * min(n * n, maps * n) / 8


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad: bool) -> None:
    left, right, dictionary, selection = inputs(3, 5, torch.complex64, (2, 8, 2), 1)
    for tensor in (left, right):
        tensor.requires_grad_(grad)
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    for operator, more in ((map_products, (selection, 5)), (map_scores, (dictionary,))):
        checked = torch.library.opcheck(operator, (left, right, *more), test_utils=utils)
        assert set(checked.values()) == {"SUCCESS"}


def test_no_gradient_of_their_own() -> None:
    left, right, dictionary, selection = inputs(3, 5, torch.complex64, (2, 8, 2), 1)
    left.requires_grad_()
    for each in found((left, right, dictionary, selection)):
        with pytest.raises(ArgumentError, match="no gradient of its own; differentiate flash_pd"):
            each.sum().backward()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 4, 3)], "expected an entry for each of dictionary, selection, or none, got 1"),
        (
            [(2, 4, 3, 3), (1, 5, 2)],
            r"got \[2, 4, 3, 3\] for dictionary, \[1, 5, 2\] for selection; give all of one",
        ),
        ([(2, 4), (1, 5)], "entries must have the shapes of the choices, or each one axis more"),
    ],
)
def test_entries_of_a_scan(shapes: list[tuple[int, ...]], message: str) -> None:
    """They are all of one surrogate."""
    numbers = torch.zeros(1, 5, 2, 3, dtype=torch.complex64)
    maps = torch.zeros(2, 4, 3, dtype=torch.int32), torch.zeros(1, 5, 2, dtype=torch.int32)
    given_ = [numbers, maps[0], numbers, maps[1]]
    entries = [torch.ones(shape) for shape in shapes]
    with pytest.raises(ArgumentError, match=message):
        scan(pd_scan(PdScan(3, 4)).text, given_, entries, "", False)
