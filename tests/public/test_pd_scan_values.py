"""``pd_scan``: its values, for every kind of map, diagonal and length, against the plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler import pd_scan, reference
from tests.kernels import under_stress
from tests.public.accuracy import FORWARD, assert_within, epsilon, expected
from tests.public.scans import CASES, KINDS, Case, Draw, Tensors, draws, inputs


def assert_values(case: Case, tensors: Tensors) -> None:
    states, final = pd_scan(**tensors, **case.options, output_final_state=True)
    assert final is not None
    assert states.dtype == final.dtype == case.dtype
    want, scale = expected(tensors, case.options), expected(tensors, case.options, True)
    assert_within(states, want[0], scale[0], FORWARD, "states")
    assert_within(final, want[1], scale[1], FORWARD, "final_state")


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=12)
@given(data=st.data())
def test_values(case: Case, data: st.DataObject) -> None:
    assert_values(case, inputs(case, data.draw(draws(case))))


@pytest.mark.parametrize("case", KINDS, ids=str)
@settings(max_examples=8)
@given(data=st.data())
def test_every_kind(case: Case, data: st.DataObject) -> None:
    assert_values(case, inputs(case, data.draw(draws(case))))


@pytest.mark.parametrize("diagonal", ["disk", "nearly one", "one", "rotation"])
@pytest.mark.parametrize("case", [CASES[0], CASES[8], CASES[9]], ids=str)
def test_a_long_sequence(case: Case, diagonal: str) -> None:
    maps = "permutation" if case.map_class == "permutation" else "random"
    assert_values(case, inputs(case, Draw(1, 3001, 2, maps, diagonal, 5)))


@pytest.mark.parametrize("case", CASES[:12:3], ids=str)
@given(data=st.data())
@settings(max_examples=10)
def test_splitting_anywhere_equals_the_whole(case: Case, data: st.DataObject) -> None:
    tensors = inputs(case, data.draw(draws(case)))
    length = tensors["drive"].shape[1]
    cut = data.draw(st.integers(0, length))
    whole, final = pd_scan(**tensors, **case.options, output_final_state=True)
    first, state = pd_scan(**part(tensors, 0, cut), **case.options, output_final_state=True)
    rest = part(tensors, cut, length) | {"initial_state": state}
    second, end = pd_scan(**rest, **case.options, output_final_state=True)
    # The same arithmetic in the same order, so to the last bit.
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(end, final)


def part(tensors: Tensors, start: int, stop: int) -> Tensors:
    """The tokens from start to stop."""
    tokens = ("diagonal", "drive", "selection", "destination")
    return {n: t[:, start:stop] if n in tokens else t for n, t in tensors.items()}


@pytest.mark.parametrize("case", [CASES[2], CASES[3], CASES[5]], ids=str)
def test_without_initial_state_it_starts_at_zero(case: Case) -> None:
    tensors = inputs(case, Draw(2, 5, 3, "random", "disk", 1))
    zero = tensors | {"initial_state": torch.zeros_like(tensors["initial_state"])}
    del tensors["initial_state"]
    states, final = pd_scan(**tensors, **case.options)
    assert final is None
    assert torch.equal(states, pd_scan(**zero, **case.options)[0])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_real_pairs_are_complex_numbers(dtype: torch.dtype) -> None:
    case = Case(7, "dictionary", dtype=dtype)
    tensors = inputs(case, Draw(2, 5, 3, "random", "disk", 2))
    states, final = pd_scan(**tensors, output_final_state=True)
    pairs = {n: torch.view_as_real(t) if t.is_complex() else t for n, t in tensors.items()}
    real_states, real_final = pd_scan(**pairs, output_final_state=True)
    assert real_states.dtype == real_final.dtype == torch.view_as_real(states).dtype
    assert torch.equal(real_states, torch.view_as_real(states))
    assert torch.equal(real_final, torch.view_as_real(final))


def test_pairs_that_are_no_complex_view() -> None:
    tensors = inputs(Case(3, "none"), Draw(2, 4, 3, "random", "disk", 2))
    want, _ = pd_scan(**tensors)
    pairs = {name: torch.view_as_real(tensor) for name, tensor in tensors.items()}
    # Real parts apart from imaginary ones, and a storage that starts at an odd offset.
    apart = {n: torch.stack([t[..., 0], t[..., 1]]).movedim(0, -1) for n, t in pairs.items()}
    assert torch.equal(pd_scan(**apart)[0], torch.view_as_real(want))
    odd = {n: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for n, t in pairs.items()}
    assert all(tensor.storage_offset() == 1 for tensor in odd.values())
    assert torch.equal(pd_scan(**odd)[0], torch.view_as_real(want))


@pytest.mark.parametrize("payload", [torch.bfloat16, torch.float16])
@given(data=st.data())
@settings(max_examples=15)
def test_low_precision_payload(payload: torch.dtype, data: st.DataObject) -> None:
    case = Case(16, "dictionary")
    tensors = inputs(case, data.draw(draws(case)))
    assert_payload_values(payload, tensors)


def assert_payload_values(payload: torch.dtype, tensors: Tensors) -> None:
    drive = torch.view_as_real(tensors["drive"]).to(payload)
    pairs = tensors | {"drive": drive}
    states, final = pd_scan(**pairs, output_final_state=True)
    assert states.dtype == payload
    assert final.dtype == torch.complex64 or final.dtype == torch.float32
    rounded = tensors | {"drive": torch.view_as_complex(drive.float())}
    want, scale = expected(rounded, {}), expected(rounded, {}, True)
    assert_within(torch.view_as_complex(final.contiguous()), want[1], scale[1], FORWARD, "final")
    # Stored states are rounded once more, to the nearest number of the payload.
    error = (states.double() - torch.view_as_real(want[0])).abs()
    spacing = epsilon(payload) * torch.view_as_real(want[0]).abs() + torch.finfo(payload).tiny
    accumulated = FORWARD * epsilon(torch.float32) * scale[0].abs()[..., None]
    assert (error <= spacing / 2 * (1 + epsilon(payload)) + accumulated).all()


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        ("dictionary", torch.uint8),
        ("token", torch.int16),
        ("token", torch.int64),
        pytest.param("dictionary", torch.int64, marks=pytest.mark.stress),
        pytest.param("token", torch.uint8, marks=pytest.mark.stress),
    ],
)
def test_integer_dtypes(source: str, dtype: torch.dtype) -> None:
    case = Case(8, source, map_class="permutation")
    tensors = inputs(case, Draw(2, 5, 2, "permutation", "disk", 3))
    want, _ = pd_scan(**tensors, **case.options)
    other = {n: t if t.is_complex() else t.to(dtype) for n, t in tensors.items()}
    assert torch.equal(pd_scan(**other, **case.options)[0], want)


@pytest.mark.parametrize("case", [CASES[3], CASES[4], CASES[6], CASES[10]], ids=str)
@pytest.mark.parametrize("layout", ["expanded", "transposed", "every other", "offset"])
def test_layouts(case: Case, layout: str) -> None:
    maps = "permutation" if case.map_class == "permutation" else "random"
    tensors = inputs(case, Draw(3, 5, 3, maps, "disk", 4))
    if layout == "expanded":
        # A diagonal and a map for all sequences and tokens.
        for name in ("diagonal", "destination"):
            if name in tensors:
                tensors[name] = tensors[name][:1, :1].expand(tensors[name].shape)
    other = {name: laid_out(tensor, layout) for name, tensor in tensors.items()}
    want, final = pd_scan(
        **{n: t.contiguous() for n, t in tensors.items()}, **case.options, output_final_state=True
    )
    states, end = pd_scan(**other, **case.options, output_final_state=True)
    assert torch.equal(states, want)
    assert torch.equal(end, final)


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same tensor with other strides."""
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "every other":
        return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1).flatten(-2)[..., ::2]
    if layout == "offset":
        return torch.cat([tensor.new_zeros(3), tensor.flatten()])[3:].view(tensor.shape)
    return tensor


def test_lazily_conjugated_and_negated_inputs() -> None:
    tensors = inputs(Case(7, "token"), Draw(2, 5, 3, "random", "disk", 6))
    conjugated = {n: t.conj() if t.is_complex() else t for n, t in tensors.items()}
    assert conjugated["drive"].is_conj()
    want, _ = pd_scan(**{name: tensor.resolve_conj() for name, tensor in conjugated.items()})
    assert torch.equal(pd_scan(**conjugated)[0], want)
    # The imaginary part of a lazy conjugate is lazily negated.
    negated = {n: torch._neg_view(t) if t.is_complex() else t for n, t in tensors.items()}
    want, _ = pd_scan(**{n: -t if t.is_complex() else t for n, t in tensors.items()})
    assert negated["drive"].is_neg()
    assert torch.equal(pd_scan(**negated)[0], want)
    both = {n: t.conj() if t.is_complex() else t for n, t in negated.items()}
    assert torch.equal(pd_scan(**both)[0], pd_scan(**resolved(both))[0])


def resolved(tensors: Tensors) -> Tensors:
    """Nothing lazy left."""
    return {name: tensor.resolve_conj().resolve_neg() for name, tensor in tensors.items()}


def test_lazily_negated_pairs() -> None:
    tensors = inputs(Case(7, "none"), Draw(2, 5, 3, "random", "disk", 6))
    pairs = {name: torch._neg_view(torch.view_as_real(t)) for name, t in tensors.items()}
    assert all(tensor.is_neg() for tensor in pairs.values())
    assert torch.equal(pd_scan(**pairs)[0], pd_scan(**resolved(pairs))[0])
    low = pairs | {"drive": torch._neg_view(torch.view_as_real(tensors["drive"]).bfloat16())}
    assert torch.equal(pd_scan(**low)[0], pd_scan(**resolved(low))[0])


def test_inputs_are_not_written() -> None:
    tensors = inputs(Case(7, "dictionary"), Draw(2, 5, 3, "random", "disk", 6))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    pd_scan(**tensors, output_final_state=True)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("sizes", [(256, 3), (8, 256), *under_stress((300, 2), (8, 300))], ids=str)
def test_eight_bits_hold_every_index_they_can(sizes: tuple[int, int]) -> None:
    """256 and 300 are no numbers of eight bits, so as bounds they leave none out."""
    state_size, dictionary_size = sizes
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, 2, state_size)
    diagonal, drive = (
        torch.randn(shape, generator=generator, dtype=torch.complex64) for _ in "ab"
    )
    maps = (2, dictionary_size, state_size)
    dictionary = torch.randint(min(state_size, 256), maps, generator=generator)
    selection = torch.randint(min(dictionary_size, 256), shape[:3], generator=generator)
    found = [
        scan(
            diagonal,
            drive,
            dictionary=dictionary.to(dtype),
            selection=selection.to(dtype),
        )[0]
        for scan in (pd_scan, reference.pd_scan)
        for dtype in (torch.uint8, torch.int64)
    ]
    for states in found[:-1]:
        torch.testing.assert_close(states, found[-1])
