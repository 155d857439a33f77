"""Binding: what a call's tensors must look like, and what the kernel then reads."""

import pytest
import torch

from pdssm_compiler.ir.types import Index, Map, Scalar, Table, Vector
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.binding import Slot, allocate, bind
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.schedules.signature import Argument

N = 4
NUMBERS = Slot.of(Argument("z", Vector("c64"), "c64", "token"), N)
MAPS = Slot.of(Argument("table", Table(3), "i32", "head"), N)
CHOSEN = Slot.of(Argument("index", Index(3), "u8", "token"), N)
START = Slot.of(Argument("start", Vector("c64"), "c64", "row"), N)
SLOTS = (NUMBERS, MAPS, CHOSEN, START)


def tensors() -> list[torch.Tensor]:
    return [
        torch.randn(2, 5, 3, N, dtype=torch.complex64),
        torch.zeros(3, 3, N, dtype=torch.int32),
        torch.zeros(2, 5, 3, dtype=torch.uint8),
        torch.randn(2, 3, N, dtype=torch.complex64),
    ]


def test_bind_gives_views_and_sizes() -> None:
    given = tensors()
    bound, sizes = bind(SLOTS, given)
    assert sizes == Sizes(batch=2, length=5, heads=3)
    assert bound[0].shape == (2, 5, 3, N, 2)
    for mine, theirs in zip(bound, given, strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
        assert not mine.is_complex()


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (
            0,
            torch.zeros(2, 5, 3, N),
            "z must be torch.complex64, got torch.float32; convert it with .to(torch.complex64)",
        ),
        (
            2,
            torch.zeros(2, 5, 3).int(),
            "index must be torch.uint8, got torch.int32; convert it with .to(torch.uint8)",
        ),
        (
            0,
            torch.zeros(2, 5, 3, N + 1, dtype=torch.complex64),
            "z must have the shape [B, T, H, 4] = [2, 5, 3, 4], got [2, 5, 3, 5]; reshape it",
        ),
        (
            0,
            torch.zeros(5, 3, N, dtype=torch.complex64),
            "z must have the shape [B, T, H, 4], got [5, 3, 4]; reshape it",
        ),
        (
            1,
            torch.zeros(2, 3, N, dtype=torch.int32),
            "table must have the shape [H, 3, 4] = [3, 3, 4], got [2, 3, 4]; make it agree with z",
        ),
        (
            2,
            torch.zeros(2, 5, 3, 1, dtype=torch.uint8),
            "index must have the shape [B, T, H] = [2, 5, 3], got [2, 5, 3, 1]; make it "
            "agree with z",
        ),
        (
            3,
            torch.zeros(1, 3, N, dtype=torch.complex64),
            "start must have the shape [B, H, 4] = [2, 3, 4], got [1, 3, 4]; make it agree with z",
        ),
    ],
)
def test_bind_refuses(position: int, wrong: torch.Tensor, message: str) -> None:
    given = tensors()
    given[position] = wrong
    with pytest.raises(ArgumentError) as caught:
        bind(SLOTS, given)
    assert str(caught.value) == message


def test_bind_counts() -> None:
    with pytest.raises(ArgumentError) as caught:
        bind(SLOTS, tensors()[:3])
    assert str(caught.value) == "expected 4 tensors (z, table, index, start), got 3"


def assert_same(slot: Slot, tensor: torch.Tensor) -> torch.Tensor:
    """The kernel reads the tensor's numbers, with the own axes dense."""
    view = slot.kernel_view(tensor)
    plain = tensor.resolve_conj().resolve_neg()
    want = torch.view_as_real(plain) if plain.is_complex() else plain
    assert torch.equal(view, want)
    assert not view.is_neg()
    assert view.stride()[slot.leading :] == slot.dense
    return view


def test_leading_axes_may_have_any_strides() -> None:
    tensor = torch.randn(3, 5, 2, N, dtype=torch.complex64).transpose(0, 2)
    assert assert_same(NUMBERS, tensor).data_ptr() == tensor.data_ptr()
    every_other = torch.randn(4, 5, 6, N, dtype=torch.complex64)[::2, :, ::2]
    assert assert_same(NUMBERS, every_other).data_ptr() == every_other.data_ptr()


def test_expanded_axes_are_not_written_out() -> None:
    tensor = torch.randn(1, 1, 3, N, dtype=torch.complex64).expand(2, 1000, 3, N)
    assert assert_same(NUMBERS, tensor).data_ptr() == tensor.data_ptr()
    # Also where the numbers have to be copied.
    for other in (tensor.conj(), torch._neg_view(tensor)):
        view = assert_same(NUMBERS, other)
        assert view.stride()[:2] == (0, 0)
        assert view.untyped_storage().nbytes() <= 3 * N * 8


def test_own_axes_are_made_dense() -> None:
    apart = torch.randn(2, 5, 3, 2 * N, dtype=torch.complex64)[..., ::2]
    assert_same(NUMBERS, apart)
    assert_same(NUMBERS, torch.randn(2, 5, N, 3, dtype=torch.complex64).transpose(2, 3))
    assert_same(NUMBERS, torch.randn(2, 5, 3, 1, dtype=torch.complex64).expand(2, 5, 3, N))
    assert_same(MAPS, torch.zeros(3, N, 3, dtype=torch.int32).transpose(1, 2))


def test_lazy_conjugates_and_negatives() -> None:
    tensor = torch.randn(2, 5, 3, N, dtype=torch.complex64)
    for lazy in (tensor.conj(), torch._neg_view(tensor), torch._neg_view(tensor.conj())):
        assert_same(NUMBERS, lazy)


@pytest.mark.parametrize("storage", ["c64", "c128", "cb32"])
def test_a_state_of_one_number(storage: str) -> None:
    element = "c128" if storage == "c128" else "c64"
    slot = Slot.of(Argument("z", Vector(element), storage, "token"), 1)
    assert slot.strict
    shape = (2, 5, 3, 1) if slot.dtype.is_complex else (2, 5, 3, 1, 2)
    tensor = torch.randn(shape, dtype=torch.float32).to(slot.dtype)
    # Axes of size 1 may have any stride and are contiguous all the same.
    odd = tensor.as_strided(tensor.shape, (*tensor.stride()[:3], 77, *tensor.stride()[4:]))
    assert odd.is_contiguous()
    assert_same(slot, odd)


def test_empty_tensors_have_dense_strides() -> None:
    tensor = torch.zeros(2, 0, 3, 1, dtype=torch.complex64).expand(2, 0, 3, N)
    assert tensor.is_contiguous()
    assert_same(NUMBERS, tensor)
    maps = Slot.of(Argument("p", Map(), "i32", "token"), N)
    assert_same(maps, torch.zeros(0, 5, 3, 1, dtype=torch.int32).expand(0, 5, 3, N))


def test_odd_storage_offsets() -> None:
    memory = torch.randn(2 * 5 * 3 * N * 2 + 1)
    payload = Slot.of(Argument("z", Vector("c64"), "cb32", "token"), N)
    pairs = memory.bfloat16()[1:].view(2, 5, 3, N, 2)
    assert assert_same(payload, pairs).data_ptr() == pairs.data_ptr()
    scalar = Slot.of(Argument("s", Scalar("f32"), "f32", "token"), N)
    assert_same(scalar, memory[1:31].view(2, 5, 3))


def test_allocate() -> None:
    sizes = Sizes(2, 5, 3)
    cpu = torch.device("cpu")
    assert allocate(NUMBERS, sizes, cpu).shape == (2, 5, 3, N)
    assert allocate(NUMBERS, sizes, cpu).dtype == torch.complex64
    assert allocate(START, sizes, cpu).shape == (2, 3, N)
