"""``cu_seqlens``: packed sequences give what each gives alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from pdssm_compiler import (
    ArgumentError,
    IndexRangeError,
    OffsetError,
    ScanSpec,
    compile,
    flash_pd_scan,
    packed,
    pd_scan,
    reference,
)
from pdssm_compiler.arguments import read_call
from pdssm_compiler.runtime import packing
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.dispatch import call
from pdssm_compiler.runtime.ops import adjoint_of
from pdssm_compiler.runtime.ops import scan as scan_op
from pdssm_compiler.runtime.packed_states import at_places, begun
from pdssm_compiler.runtime.packing import follows
from pdssm_compiler.runtime.tuning.inputs import random_tensors
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunksConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokensConfig
from tests.public.accuracy import wide
from tests.public.packed import assert_packed_is_separate, offsets, packed_inputs
from tests.public.scans import CASES, KINDS, MAPS, Case, Draw, Tensors
from tests.public.test_flash_pd_scan import NAMES, flash_inputs

CASE = Case(3, "dictionary", "row")
LENGTHS = (3, 0, 1, 7, 0, 0, 4, 0)
FLASH = [("column", False), pytest.param("row", True, marks=pytest.mark.stress)]
lengths_of = st.lists(st.integers(0, 5), max_size=6)


def assert_case(case: Case, lengths: Any, seed: int, **options: Any) -> None:
    tensors = packed_inputs(case, lengths, seed, maps=MAPS[case.map_class][0])
    assert_packed_is_separate(pd_scan, tensors, lengths, **case.options, **options)


@pytest.mark.parametrize(("case", "reverse"), [(CASE, False), (KINDS[7], True)], ids=str)
@settings(max_examples=6)
@given(lengths=lengths_of, seed=st.integers(0, 2**16))
def test_packed_is_separate(case: Case, reverse: bool, lengths: list[int], seed: int) -> None:
    assert_case(case, lengths, seed, reverse=reverse)


@pytest.mark.stress
@pytest.mark.parametrize("case", [*CASES, *KINDS], ids=str)
@settings(max_examples=20)
@given(lengths=lengths_of, seed=st.integers(0, 2**16), reverse=st.booleans())
def test_every_kind_of_map(case: Case, lengths: list[int], seed: int, reverse: bool) -> None:
    assert_case(case, lengths, seed, reverse=reverse)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0), (1,), (9,), (1, 1, 1)], ids=str)
def test_few_and_empty_sequences(lengths: tuple[int, ...]) -> None:
    for reverse in (False, True):
        assert_case(CASE, lengths, 3, reverse=reverse)


@pytest.mark.parametrize(
    "config",
    [TorchTokensConfig(), TorchChunksConfig(2), TorchChunksConfig(4, split=True), None],
    ids=["tokens", "chunks", "split chunks", "cpu"],
)
def test_templates_of_the_cpu(config: Any) -> None:
    """Sequences begin within chunks, at their edges, and more than one in one."""
    spec = ScanSpec(3, 3, orientation="row")
    scan = compile(spec, "cpu", config=config)
    lengths = (3, 0, 1, 7, 0, 2, 4, 0)
    tensors = packed_inputs(CASE, lengths, 5)
    for reverse in (False, True):
        assert_packed_is_separate(scan, tensors, lengths, reverse=reverse, orientation="row")


def test_ahead_of_time() -> None:
    """What ``packed=True`` compiles is what a call runs."""
    states = {"initial_state": True, "output_final_state": True}
    scan = compile(
        ScanSpec(3, 3), "cpu", config="torch-tokens", packed=True, reverse=True, **states
    )
    assert set(scan.kernels) == {"forward", "backward", "start", "start-backward"}
    ran: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "call", lambda text, *more: ran.append(text) or call(text, *more))
        scan(
            **packed_inputs(CASE, LENGTHS, 5),
            cu_seqlens=offsets(LENGTHS),
            reverse=True,
            output_final_state=True,
        )
    assert ran == [scan.kernels[name].program.text for name in ("start", "forward")]


def test_without_initial_states() -> None:
    tensors = packed_inputs(CASE, LENGTHS, 2)
    del tensors["initial_state"]
    assert_packed_is_separate(pd_scan, tensors, LENGTHS, **CASE.options)
    states, final = pd_scan(**tensors, **CASE.options, cu_seqlens=offsets(LENGTHS))
    assert final is None
    want, _ = reference.pd_scan(**tensors, **CASE.options, cu_seqlens=offsets(LENGTHS))
    torch.testing.assert_close(states, want)


def test_offsets_of_int32() -> None:
    tensors = packed_inputs(CASE, LENGTHS, 2)
    results = [
        pd_scan(**tensors, cu_seqlens=offsets(LENGTHS, dtype), output_final_state=True)
        for dtype in (torch.int32, torch.int64)
    ]
    for narrow, wide_ in zip(*results, strict=True):
        assert torch.equal(narrow, wide_)


@pytest.mark.parametrize(
    ("payload", "ends"), [(torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_pairs(payload: torch.dtype, ends: bool) -> None:
    """States come back as the drive is stored, final states in float32: not rounded on the way."""
    tensors = packed_inputs(CASE, LENGTHS, 4)
    drive = torch.view_as_real(tensors["drive"]).to(payload)
    tensors["drive"] = torch.view_as_complex(drive.float())
    options = {"cu_seqlens": offsets(LENGTHS), "output_final_state": ends, **CASE.options}
    if not ends:
        del tensors["initial_state"]
    want, last = pd_scan(**tensors, **options)
    pairs = {n: torch.view_as_real(x) if x.is_complex() else x for n, x in tensors.items()}
    got, final = pd_scan(**pairs | {"drive": drive.requires_grad_()}, **options)
    assert got.dtype == payload
    torch.testing.assert_close(got.float(), torch.view_as_real(want).to(payload).float())
    if ends:
        assert final is not None
        assert final.dtype == torch.float32
        torch.testing.assert_close(torch.view_as_complex(final), last, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(got.float().sum(), drive)
    assert gradient.dtype == payload
    leaf = tensors["drive"].requires_grad_()
    states, _ = pd_scan(**tensors, **options)
    (true,) = torch.autograd.grad(torch.view_as_real(states).sum(), leaf)
    close = {"rtol": torch.finfo(payload).eps, "atol": torch.finfo(payload).eps}
    torch.testing.assert_close(gradient.float(), torch.view_as_real(true), **close)


@pytest.mark.parametrize(("orientation", "reverse"), FLASH)
def test_flash(orientation: str, reverse: bool) -> None:
    """Gradients of both logits too, through the first tokens' initial states as well."""
    lengths = (3, 0, 1, 5)
    case = Case(7, "dictionary", orientation, dictionary_size=4)
    tensors = flash_inputs(case, Draw(1, sum(lengths), 3, "random", "disk", 2))
    random = torch.Generator().manual_seed(3)
    shape = (len(lengths), 3, case.state_size)
    tensors["initial_state"] = torch.randn(shape, dtype=case.dtype, generator=random)
    options = {
        "orientation": orientation, "reverse": reverse, "temperature": 0.5,
        "cu_seqlens": offsets(lengths), "output_final_state": True,
    }  # fmt: skip

    def results(scan: Any, change: Any) -> list[torch.Tensor]:
        # Logits choose: they are not made absolute values.
        leaves = {n: (wide if "logits" in n else change)(x) for n, x in tensors.items()}
        leaves = {name: x.clone().requires_grad_() for name, x in leaves.items()}
        outputs = scan(**leaves, **options)
        grads = [change(x) for x in arriving]
        found = torch.autograd.grad(outputs, [leaves[name] for name in NAMES], grads)
        return [*(x.detach() for x in outputs), *(x.resolve_conj() for x in found)]

    arriving = [
        torch.randn(x, dtype=case.dtype, generator=random) for x in (tensors["drive"].shape, shape)
    ]
    got = results(flash_pd_scan, lambda x: x)
    want = results(reference.flash_pd_scan, wide)
    torch.testing.assert_close(got, [w.to(g.dtype) for g, w in zip(got, want, strict=True)])


@pytest.mark.parametrize("config", [None, TorchChunksConfig(2)], ids=["cpu", "chunks"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_nan_stays_in_its_sequence(reverse: bool, config: Any) -> None:
    """Nothing of one sequence reaches another, were it infinite or no number at all."""
    scan = compile(ScanSpec(3, 3, orientation="row"), "cpu", config=config)
    tensors = packed_inputs(CASE, LENGTHS, 4)
    options = {**CASE.options, "cu_seqlens": offsets(LENGTHS), "reverse": reverse}
    want, last = scan(**tensors, **options, output_final_state=True)
    tensors["drive"] = tensors["drive"].clone()
    tensors["drive"][0, 4:11] = float("nan")  # all of the fourth sequence
    tensors["drive"].requires_grad_()
    got, final = scan(**tensors, **options, output_final_state=True)
    others = [*range(4), *range(11, 15)]
    assert torch.equal(got[:, others], want[:, others])
    assert torch.equal(final[[0, 1, 2, 4, 5, 6, 7]], last[[0, 1, 2, 4, 5, 6, 7]])
    (gradient,) = torch.autograd.grad(got.real.sum(), tensors["drive"])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("reverse", [False, True])
def test_what_an_empty_sequence_starts_from_reaches_no_other(reverse: bool) -> None:
    tensors = packed_inputs(CASE, LENGTHS, 4)
    empty = [number for number, length in enumerate(LENGTHS) if length == 0]
    start = tensors["initial_state"].clone()
    start[empty] = float("nan")
    leaves = [t.clone().requires_grad_() for t in (tensors["diagonal"], tensors["drive"], start)]
    given = tensors | dict(zip(("diagonal", "drive", "initial_state"), leaves, strict=True))
    options = {**CASE.options, "cu_seqlens": offsets(LENGTHS), "reverse": reverse}
    states, final = pd_scan(**given, **options, output_final_state=True)
    assert states.isfinite().all()
    assert final[empty].isnan().all()
    for gradient in torch.autograd.grad(states.abs().sum(), leaves):
        assert gradient.isfinite().all()


# -- what is wrong ------------------------------------------------------------------------------

COMPLEX = torch.zeros(1, 6, 2, 3, dtype=torch.complex64)
GIVEN = {"diagonal": COMPLEX, "drive": COMPLEX}

BAD_OFFSETS: dict[str, tuple[list[int], str]] = {
    "decreasing": (
        [0, 4, 2, 6],
        r"cu_seqlens\[2\] = 2 is less than cu_seqlens\[1\] = 4: offsets must not decrease",
    ),
    "past the end": ([0, 4, 7], r"cu_seqlens\[-1\] = 7 past the end: offsets end at T = 6"),
    "short": ([0, 4, 5], r"cu_seqlens\[-1\] = 5 and leaves tokens over: offsets end at T = 6"),
    "start": ([1, 6], r"cu_seqlens\[0\] = 1: offsets start at 0"),
    "negative": ([-1, 6], r"cu_seqlens\[0\] = -1: offsets start at 0"),
    "none": ([0], r"cu_seqlens\[-1\] = 0 and leaves tokens over"),
}


@pytest.mark.parametrize("scan", [pd_scan, reference.pd_scan], ids=["kernel", "reference"])
@pytest.mark.parametrize("name", BAD_OFFSETS)
def test_bad_offsets(name: str, scan: Any) -> None:
    given, message = BAD_OFFSETS[name]
    with pytest.raises(OffsetError, match=message):
        scan(**GIVEN, cu_seqlens=torch.tensor(given))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", BAD_OFFSETS)
def test_bad_offsets_of_a_gpu_are_reported_by_the_scan(name: str, reverse: bool) -> None:
    """What a GPU does, on a CPU: nothing leaves its tensors, and the kernel tells."""
    cu_seqlens = torch.tensor(BAD_OFFSETS[name][0])
    flags = packing._follows(cu_seqlens, 6, reverse)
    assert flags[0] == packing.BAD
    spread = flags[None, :, None].expand(COMPLEX.shape[:3])
    options = (None, None, None, "general", "column", None, False, reverse, spread)
    request = read_call(COMPLEX, COMPLEX, *options)
    with pytest.raises(OffsetError, match="cu_seqlens does not cut the tokens into sequences"):
        torch.ops.pdssm_compiler.scan(request.text, request.tensors, [], "", False)


@pytest.mark.parametrize("lengths", [(6,), (0, 2, 0, 3, 1, 0), (1, 1, 1, 1, 1, 1)], ids=str)
def test_both_ways_to_find_where_sequences_begin(lengths: tuple[int, ...]) -> None:
    for reverse in (False, True):
        want, at = [1] * 6, 0
        for length in lengths:
            if length:
                want[at + length - 1 if reverse else at] = 0
            at += length
        for found in (follows, packing._follows):
            assert found(offsets(lengths), 6, reverse).tolist() == want


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no tensor": ({"cu_seqlens": [0, 6]}, "cu_seqlens must be a torch.Tensor, got list"),
    "dtype": (
        {"cu_seqlens": torch.tensor([0.0, 6.0])},
        "cu_seqlens must be int32 or int64, got torch.float32; convert it",
    ),
    "shape": (
        {"cu_seqlens": torch.tensor([[0, 6]])},
        r"cu_seqlens must have the shape \[S \+ 1\] for S sequences, got \[1, 2\]",
    ),
    "empty": (
        {"cu_seqlens": torch.tensor([], dtype=torch.int32)},
        r"cu_seqlens must have the shape \[S \+ 1\] for S sequences, got \[0\]",
    ),
    "device": (
        {"cu_seqlens": torch.tensor([0, 6], device="meta")},
        "cu_seqlens is on meta and the tokens on cpu; move it there",
    ),
    "batch": (
        {"diagonal": COMPLEX.expand(2, 6, 2, 3), "drive": COMPLEX.expand(2, 6, 2, 3)},
        r"packed sequences lie along T of one row, so B must be 1, got 2; reshape",
    ),
    "initial state": (
        {"initial_state": COMPLEX[:, 0]},
        r"initial_state of packed sequences must have the shape \[S, H, N\] = \[2, 2, 3\], got",
    ),
    "precision": (
        {"initial_state": torch.zeros(2, 2, 3, dtype=torch.complex128)},
        "initial_state must be torch.complex64 on cpu, got torch.complex128",
    ),
    "drive": (
        {"drive": COMPLEX[:, :5], "initial_state": torch.zeros(2, 2, 3, dtype=torch.complex64)},
        r"drive must have the shape \[B, T, H, 3\] = \[1, 6, 2, 3\], got \[1, 5, 2, 3\]",
    ),
    "reverse": ({"reverse": torch.zeros(2)}, "reverse must be True or False, got Tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(ArgumentError, match=message):
        pd_scan(**{**GIVEN, "cu_seqlens": torch.tensor([0, 4, 6])} | changed)


def test_indices_out_of_range_are_told() -> None:
    tensors = packed_inputs(CASE, LENGTHS, 4)
    tensors["selection"][0, 5, 1] = 7
    for start in (tensors["initial_state"], None):
        given = tensors | {"initial_state": start}
        with pytest.raises(IndexRangeError, match=r"selection\[0, 5, 1\] = 7"):
            pd_scan(**given, cu_seqlens=offsets(LENGTHS))


# -- torch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_opcheck(reverse: bool) -> None:
    found = torch.library.opcheck(follows, (offsets(LENGTHS), sum(LENGTHS), reverse))
    assert set(found.values()) == {"SUCCESS"}


def test_opcheck_of_the_scan_and_its_backward() -> None:
    tensors = packed_inputs(CASE, LENGTHS, 4)
    spread = follows(offsets(LENGTHS), sum(LENGTHS), False)[None, :, None].expand(1, -1, 2)
    names = ("diagonal", "drive", "dictionary", "selection")
    given = [tensors[name].requires_grad_(tensors[name].is_complex()) for name in names]
    request = read_call(*given, None, "general", "row", None, False, False, spread)
    found = torch.library.opcheck(scan_op, (request.text, request.tensors, [], "", False))
    assert set(found.values()) == {"SUCCESS"}
    backward = adjoint_of(request.text, ("diagonal", "drive"), ("states",)).program
    reads = random_tensors(backward, Sizes(1, sum(LENGTHS), 2), torch.device("cpu"), 0)
    found = torch.library.opcheck(scan_op, (backward.text, reads, [], "", True))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_states_at_the_ends(grad: bool) -> None:
    """The operators around a scan, with a drive that is widened by one of them."""
    random = torch.Generator().manual_seed(0)
    drive, states = torch.randn(2, 1, 5, 2, 3, generator=random, dtype=torch.complex64)
    moved = torch.randn(2, 2, 3, generator=random, dtype=torch.complex64).requires_grad_(grad)
    places = torch.tensor([0, 3])
    pairs = torch.view_as_real(drive).bfloat16()
    for given_ in (drive, pairs):
        leaf = given_.clone().requires_grad_(grad)
        assert set(torch.library.opcheck(begun, (leaf, moved, places)).values()) == {"SUCCESS"}
    leaf = states.clone().requires_grad_(grad)
    assert set(torch.library.opcheck(at_places, (leaf, places)).values()) == {"SUCCESS"}


def test_torch_compile_once_for_all_lengths() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(drive: torch.Tensor, cu_seqlens: torch.Tensor, **more: torch.Tensor) -> Any:
        options = {"orientation": "row", "output_final_state": True}
        return pd_scan(drive=drive + 1, cu_seqlens=cu_seqlens, **options, **more)

    # No size that is compiled in: Dynamo takes sizes that are equal at first for one.
    for lengths in ((3, 0, 4, 0, 2), (5, 1), (2, 2, 2, 9)):
        tensors: Tensors = packed_inputs(CASE, lengths, 3)
        leaf = tensors["diagonal"].requires_grad_()
        got = run(cu_seqlens=offsets(lengths), **tensors)
        given = tensors | {"drive": tensors["drive"] + 1}
        want = pd_scan(
            **given, cu_seqlens=offsets(lengths), orientation="row", output_final_state=True
        )
        torch.testing.assert_close(got, want)
        gradients = [
            torch.autograd.grad(states.abs().sum() + final.abs().sum(), leaf)[0]
            for states, final in (got, want)
        ]
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


def test_vmap_is_refused() -> None:
    with pytest.raises(ArgumentError, match="cannot be mapped by vmap"):
        torch.func.vmap(lambda at: pd_scan(**GIVEN, cu_seqlens=at)[0])(torch.tensor([[0, 6]] * 2))
