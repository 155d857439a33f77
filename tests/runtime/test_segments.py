"""The operator that runs a program in segments: any program, and what torch asks of it."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler import ArgumentError, IndexRangeError, PromiseError
from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import is_number
from pdssm_compiler.runtime.backends import Sizes as KernelSizes
from pdssm_compiler.runtime.binding import TORCH_DTYPES
from pdssm_compiler.runtime.faults import Reporter
from pdssm_compiler.runtime.ops import scan
from pdssm_compiler.runtime.plan import caller_inputs
from pdssm_compiler.runtime.segmented import Segmented
from pdssm_compiler.runtime.segments import scan_in_segments
from pdssm_compiler.schedules.signature import CHECK_SHIFT, Signature
from tests.ir.agreement import assert_close, cotangents_for
from tests.ir.torch_oracle import differentiable, gradients
from tests.strategies import Sizes, arrays_for, programs, seeds

SIZES = Sizes(2, 7, 2)
TOKENS = "torch-tokens"


def leaves_of(program: Program, arrays: dict[str, np.ndarray]) -> list[torch.Tensor]:
    """The program's inputs, numbers as leaves."""
    return [
        torch.tensor(arrays[i.name]).to(TORCH_DTYPES[i.storage]).requires_grad_(is_number(i.type))
        for i in caller_inputs(program)
    ]


@settings(max_examples=25)
@given(program=programs(max_ops=8), length=st.integers(1, 8), seed=seeds())
def test_any_program(program: Program, length: int, seed: int) -> None:
    """Outputs, boundaries, and gradients, of random programs in either direction."""
    arrays = arrays_for(program, SIZES, seed)
    names = [i.name for i in caller_inputs(program)]
    leaves = leaves_of(program, arrays)
    scan = Segmented(program.text)
    outputs = scan_in_segments(program.text, leaves, [], TOKENS, length)
    results = dict(zip(scan.output_slots, outputs, strict=False))
    got = {name: out.detach().resolve_conj().numpy() for name, out in results.items()}
    got = {name: out if out.dtype.kind in "fc" else out.astype(int) for name, out in got.items()}
    assert_close(got, interpret(program, arrays))
    for boundary, out in zip(scan.start_slots, outputs[len(results) :], strict=True):
        segments = -(-SIZES.length // length)
        assert out.shape[1] == SIZES.length // length + 2 > segments, boundary
        assert not out[:, segments:].any()
    cotangents = cotangents_for(program, SIZES, seed)
    reached = [name for name in cotangents if results[name].requires_grad]
    wanted = differentiable(program)
    found = torch.autograd.grad(
        [results[name] for name in reached],
        [leaves[names.index(name)] for name in wanted],
        [torch.tensor(cotangents[name]) for name in reached],
        allow_unused=True,
        materialize_grads=True,
    )
    got = {name: grad.resolve_conj().numpy() for name, grad in zip(wanted, found, strict=True)}
    assert_close(got, gradients(program, arrays, SIZES, cotangents, wanted), wanted)


def call(**options: object) -> tuple[Program, list[torch.Tensor]]:
    program = pd_scan(PdScan(4, 3, initial_state=True, **options))
    return program, leaves_of(program, arrays_for(program, SIZES, 1))


@pytest.mark.parametrize("length", [3, None])
def test_opcheck(length: int | None) -> None:
    """The boundaries are results as well, with gradients of their own."""
    program, tensors = call(final_state=True)
    torch.library.opcheck(scan_in_segments, (program.text, tensors, [], TOKENS, length))


def entries_of(program: Program, tensors: list[torch.Tensor], dense: bool) -> list[torch.Tensor]:
    """Entries of the dictionary and the selection, as leaves."""
    n, size = program.state_size, program.input("selection").type.bound
    found = []
    for input_, tensor in zip(caller_inputs(program), tensors, strict=True):
        if not is_number(input_.type):
            more = (size if input_.name == "selection" else n,) * dense
            found.append(torch.ones(*tensor.shape, *more, requires_grad=True))
    return found


@pytest.mark.parametrize("dense", [False, True])
def test_opcheck_with_choices(dense: bool) -> None:
    program, tensors = call(final_state=True)
    entries = entries_of(program, tensors, dense)
    torch.library.opcheck(scan_in_segments, (program.text, tensors, entries, TOKENS, 3))


@settings(max_examples=10)
@given(
    dense=st.booleans(),
    orientation=st.sampled_from(("column", "row")),
    length=st.integers(1, 8),
    tokens=st.integers(0, 7),
    seed=seeds(),
)
def test_choices_have_the_gradients_of_the_whole(
    dense: bool, orientation: str, length: int, tokens: int, seed: int
) -> None:
    """What the operator without segments gives them."""
    spec = PdScan(4, 3, "c128", orientation=orientation, initial_state=True, final_state=True)
    program = pd_scan(spec)
    arrays = arrays_for(program, Sizes(2, tokens, 2), seed)
    found = []
    for operator, more in ((scan_in_segments, (length,)), (scan, ())):
        tensors = leaves_of(program, arrays)
        entries = entries_of(program, tensors, dense)
        trusted = () if more else (False,)
        outputs = operator(program.text, tensors, entries, TOKENS, *more, *trusted)[:2]
        total = sum(out.abs().square().sum() for out in outputs)
        wrt = [*entries, *(tensor for tensor in tensors if tensor.requires_grad)]
        found.append(torch.autograd.grad(total, wrt))
    torch.testing.assert_close(*found)


def test_entries_that_do_not_fit() -> None:
    program, tensors = call()
    entries = entries_of(program, tensors, dense=False)
    with pytest.raises(ArgumentError, match="an entry for each of dictionary, selection, or none"):
        scan_in_segments(program.text, tensors, entries[:1], TOKENS, 3)


def test_a_boundary_has_a_gradient() -> None:
    """That of the state before it: after a segment of three tokens."""
    program, tensors = call()
    states, boundaries = scan_in_segments(program.text, tensors, [], TOKENS, 3)
    torch.testing.assert_close(boundaries[:, 1], states[:, 2])
    weights = torch.randn(boundaries.shape, dtype=boundaries.dtype)
    wrt = [tensor for tensor in tensors if tensor.requires_grad]
    got = torch.autograd.grad(boundaries, wrt, weights)
    whole = scan_in_segments(program.text, tensors, [], TOKENS, 100)[0]
    start = next(t for t in tensors if t.dim() == 3 and t.is_complex())
    # And nothing behind the segments.
    after = torch.zeros_like(start)
    before = torch.stack([start, whole[:, 2], whole[:, 5], after], dim=1)
    want = torch.autograd.grad(before, wrt, weights)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_second_backward_is_refused() -> None:
    program, tensors = call()
    outputs = scan_in_segments(program.text, tensors, [], TOKENS, 3)
    wrt = next(tensor for tensor in tensors if tensor.requires_grad)
    (grad,) = torch.autograd.grad(outputs[0].abs().sum(), wrt, create_graph=True)
    with pytest.raises(ArgumentError, match="has no gradient of its own; for second"):
        torch.autograd.grad(grad.abs().sum(), wrt)


@pytest.mark.parametrize(
    ("sizes", "asked", "on_cpu", "on_gpu"),
    [
        (KernelSizes(1, 10**6, 32), None, 2048, 262144),
        (KernelSizes(8, 10**6, 32), None, 256, 32768),
        (KernelSizes(64, 10**6, 32), None, 256, 4096),
        (KernelSizes(1, 10**6, 3), None, 21840, 2796192),
        (KernelSizes(0, 5, 3), None, 65536, 8388608),
        (KernelSizes(8, 10**6, 32), 7, 7, 7),
    ],
)
def test_tokens_a_segment(sizes: KernelSizes, asked: int | None, on_cpu: int, on_gpu: int) -> None:
    """Of rows of four states: on a GPU by the room that states take."""
    scan = Segmented(pd_scan(PdScan(4, 3)).text)
    assert scan.length(sizes, asked, torch.device("cpu")) == on_cpu
    assert scan.length(sizes, asked, torch.device("cuda")) == on_gpu


@pytest.mark.parametrize("source", ["dictionary", "token"])
def test_errors_name_the_token_of_the_sequence(source: str) -> None:
    size = 3 if source == "dictionary" else None
    program = pd_scan(PdScan(4, size, map_source=source))
    arrays = arrays_for(program, SIZES, 1)
    name = "selection" if source == "dictionary" else "destination"
    arrays[name][1, 5, 0] = 9
    tensors = leaves_of(program, arrays)
    at = "1, 5, 0" if source == "dictionary" else "1, 5, 0, 0"
    with pytest.raises(IndexRangeError, match=rf"{name}\[{at}\] = 9: entries must lie"):
        scan_in_segments(program.text, tensors, [], TOKENS, 3)


def test_promises_are_verified_in_every_segment() -> None:
    program = pd_scan(PdScan(4, map_source="token", map_class="permutation"))
    arrays = arrays_for(program, SIZES, 1)
    arrays["destination"][0, 6, 1] = 0
    tensors = leaves_of(program, arrays)
    with pytest.raises(PromiseError, match=r"destination\[b=0, t=6, h=1\] is not the perm"):
        scan_in_segments(program.text, tensors, [], TOKENS, 3)


def test_on_a_gpu_the_place_is_told_within_its_segment() -> None:
    """The word of the last of many launches: which of them failed is not known."""
    program = pd_scan(PdScan(4, 3))
    reporter = Reporter(program)
    sizes = KernelSizes(2, 3, 2)
    number = next(
        n for n, c in enumerate(Signature(program).checks, 1) if c.subject == "selection"
    )
    word = (number << CHECK_SHIFT) + 1 * 3 * 2 + 2 * 2 + 1
    want = r"selection\[b=1, t=2 of a segment, h=1\] has an entry out of range"
    assert re.search(want, str(reporter.error(word, sizes, first=None)))
    assert "[b=1, t=5, h=1]" in str(reporter.error(word, sizes, first=3))


def test_it_is_not_mapped() -> None:
    program, tensors = call()
    with pytest.raises(ArgumentError, match="cannot be mapped by vmap"):
        torch.vmap(lambda *t: scan_in_segments(program.text, list(t), [], TOKENS, 3))(
            *(torch.stack([t, t]) for t in tensors)
        )


def test_no_rows_and_no_tokens() -> None:
    for sizes in (Sizes(0, 5, 3), Sizes(2, 0, 3), Sizes(2, 5, 0)):
        program = pd_scan(PdScan(4, 3, "c128", initial_state=True, final_state=True))
        arrays = arrays_for(program, sizes, 1)
        tensors = leaves_of(program, arrays)
        outputs = scan_in_segments(program.text, tensors, [], TOKENS, 2)
        assert list(outputs[0].shape) == [*sizes, 4]
        wrt = [tensor for tensor in tensors if tensor.requires_grad]
        found = torch.autograd.grad(outputs[1].real.sum(), wrt)
        start = found[[t.dim() for t in wrt].index(3)]
        assert (start == (1 if sizes.length == 0 else start)).all()
        assert all(grad.shape == leaf.shape for grad, leaf in zip(found, wrt, strict=True))
