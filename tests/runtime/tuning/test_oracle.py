"""The gate before a candidate is timed: right kernels of every direction pass it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import LEARNED, PdScan, mixture, pd_scan
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.binding import Slot
from pdssm_compiler.runtime.ops import slots_of
from pdssm_compiler.runtime.plan import Plan, caller_inputs, program_of
from pdssm_compiler.runtime.tuning import doubled, oracle
from pdssm_compiler.runtime.tuning.guarded import guarded
from pdssm_compiler.runtime.tuning.inputs import random_tensors
from pdssm_compiler.runtime.tuning.oracle import _sum, probes
from tests.runtime.tuning.planted import CHUNK, LATE, Does, plant
from tests.schedules.programs import squares

CPU = torch.device("cpu")
SIZES = Sizes(3, 50, 2)


def programs() -> dict[str, Program]:
    found = {
        "none": PdScan(5, None, map_source="none"),
        "token": PdScan(5, None, map_source="token", orientation="row"),
        "identity": PdScan(5, 3, map_class="identity"),
        "permutation": PdScan(5, 3, map_class="permutation", map_storage="u8"),
        "states": PdScan(5, 3, initial_state=True, final_state=True, selection_storage="i64"),
        "bfloat16": PdScan(5, 3, payload_storage="cb32"),
        "double": PdScan(5, 3, element="c128"),
        "packed": PdScan(5, 3, map_class="permutation", packed=True),
    }
    made = {name: pd_scan(spec) for name, spec in found.items()}
    backward = {f"{name} backward": adjoint(p).program for name, p in made.items()}
    active = adjoint(made["states"], surrogate="active").program
    return made | backward | {"active": active}


PROGRAMS = programs()


# From how many tokens and numbers the truth is found otherwise.
WAYS = pytest.mark.parametrize(
    ("long", "many"),
    [(SIZES.length + 1, 0), (1, 1 << 22), (1, 0)],
    ids=["in order", "in chunks", "in double"],
)


@WAYS
@pytest.mark.parametrize("name", PROGRAMS)
def test_right_kernels_pass(
    name: str, long: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "_LONG", long)
    monkeypatch.setattr(oracle, "_MANY", many)
    monkeypatch.setattr(oracle, "_FAST", ("cpu",))
    program = PROGRAMS[name]
    tensors = random_tensors(program, SIZES, CPU, seed=3)
    kernel = Plan(program, CPU, config="torch-tokens")
    small, timed = probes(program, tensors, SIZES)
    assert (small.sizes, timed.sizes) == (Sizes(2, 37, 3), SIZES)
    assert small.fault(kernel) is None
    assert timed.fault(kernel) is None


@WAYS
@pytest.mark.parametrize(
    ("does", "small_says", "timed_says"),
    [
        (
            Does.wrong_values,
            "states[1, 36, 2, 4] is ",
            "states[2, 49, 1, 4] is ",
        ),
        (Does.leaves_out, "states[0, 0, 0, 0] is nan", "states[0, 0, 0, 0] is nan"),
        (Does.wrong_at_full_size, None, "states[0, 49, 0, 0] is "),
        (Does.writes_beside, "wrote beside states", "wrote beside states"),
        (Does.writes_inputs, "wrote to its input diagonal", "wrote to its input diagonal"),
        (Does.writes_inputs_late, None, "wrote to its input diagonal"),
    ],
)
def test_wrong_kernels_do_not(
    monkeypatch: pytest.MonkeyPatch,
    does: Does,
    small_says: str | None,
    timed_says: str | None,
    long: int,
    many: int,
) -> None:
    monkeypatch.setattr(oracle, "_LONG", long)
    monkeypatch.setattr(oracle, "_MANY", many)
    monkeypatch.setattr(oracle, "_FAST", ("cpu",))
    plant(monkeypatch.setitem)
    program = PROGRAMS["double"]
    kernel = Plan(program, CPU, config=f'planted {{"does": {int(does)}}}')
    found = probes(program, random_tensors(program, SIZES, CPU, seed=3), SIZES)
    for probe, says in zip(found, (small_says, timed_says), strict=True):
        fault = probe.fault(kernel)
        assert (fault is None) == (says is None)
        assert (fault or "").startswith(says or "")


@pytest.mark.parametrize("does", [Does.right, Does.loses_a_late_carry, Does.begins_again_late])
@pytest.mark.parametrize("many", [1 << 22, 0], ids=["in chunks", "in double"])
def test_what_is_wrong_late_in_a_long_row_is_found(
    does: Does, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "_MANY", many)
    monkeypatch.setattr(oracle, "_FAST", ("cpu",))
    # Few numbers at a time, so that the place is found in one of several stretches.
    monkeypatch.setattr(oracle, "_TOGETHER", 1 << 12)
    plant(monkeypatch.setitem)
    program, sizes = PROGRAMS["permutation"], Sizes(2, LATE + 100, 1)
    kernel = Plan(program, CPU, config=f'planted {{"does": {int(does)}}}')
    small, timed = probes(program, random_tensors(program, sizes, CPU, seed=3), sizes)
    assert small.fault(kernel) is None
    fault = timed.fault(kernel)
    assert (fault is None) == (does is Does.right)
    if fault is not None:
        assert fault.startswith(f"states[0, {LATE}, 0, ")


@pytest.mark.parametrize("name", ["permutation", "token", "none", "packed"])
@pytest.mark.parametrize("many", [1 << 22, 0], ids=["in chunks", "in double"])
def test_what_looks_back_at_one_chunk_alone_is_found(
    name: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was before must not have been forgotten by then."""
    monkeypatch.setattr(oracle, "_MANY", many)
    monkeypatch.setattr(oracle, "_FAST", ("cpu",))
    plant(monkeypatch.setitem)
    program, sizes = PROGRAMS[name], Sizes(2, LATE + 100, 1)
    kernel = Plan(program, CPU, config=f'planted {{"does": {int(Does.looks_back_once)}}}')
    small, timed = probes(program, random_tensors(program, sizes, CPU, seed=3), sizes)
    assert small.fault(kernel) is None
    fault = timed.fault(kernel)
    assert fault is not None
    # Packed sequences that begin within three chunks have forgotten nothing.
    place = "" if name == "packed" else f"{2 * CHUNK}, 0, "
    assert fault.startswith(f"states[0, {place}")
    # Of two rows, most of what follows, not what is near the edges of chunks.
    assert int(fault.split("; ")[1].split()[0]) > sizes.length * program.state_size // 2


@pytest.mark.parametrize(
    ("does", "many", "says"),
    [
        (Does.wrong_in_a_middle_row, 1 << 22, "states[1, 7, 2, 0] is "),
        (Does.leaves_out_a_middle_row, 1 << 22, "states[1, 0, 2, 0] is nan"),
        # Of much, rows in the middle are not compared, but they have to be there.
        (Does.leaves_out_a_middle_row, 1, "left out some of states, in rows between"),
        (Does.right, 1, None),
    ],
)
def test_rows_in_the_middle(
    does: Does, many: int, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "_MANY", many)
    plant(monkeypatch.setitem)
    program, sizes = PROGRAMS["states"], Sizes(3, 50, 5)
    kernel = Plan(program, CPU, config=f'planted {{"does": {int(does)}}}')
    small, timed = probes(program, random_tensors(program, sizes, CPU, seed=3), sizes)
    assert small.fault(kernel) is None
    fault = timed.fault(kernel)
    assert (fault is None) == (says is None)
    assert (fault or "").startswith(says or "")


def test_integers_that_are_left_out_are_found() -> None:
    """Where nothing is written to a row that is not compared."""
    signed = torch.zeros(4, 5, dtype=torch.int16)
    assert not oracle._is_poisoned(signed)
    signed[2, 3] = -1
    assert oracle._is_poisoned(signed)
    assert not oracle._is_poisoned(torch.full((3,), 255, dtype=torch.uint8))


def test_a_reference_that_no_float_holds_condemns_nobody() -> None:
    """It raises, so that no candidate is known as wrong from then on."""
    text = """scan N=3 forward
input %x : token vec<c64>
carry %state : vec<c64> = zero
body {
  %0 = add %state, %state : vec<c64>
  %1 = add %0, %x : vec<c64>
  next %state = %1
  emit %states = %1
}
"""
    program, sizes = program_of(text), Sizes(1, 400, 1)
    _, timed = probes(program, random_tensors(program, sizes, CPU, seed=3), sizes)
    with pytest.raises(OverflowError, match=r"states of random inputs is as large as .* T=400 "):
        timed.fault(Plan(program, CPU, config="torch-tokens"))


@pytest.mark.parametrize("fault", ["piece", "late", "memory", None])
def test_a_reference_that_does_not_agree_is_none(
    fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the interpreter, or with itself in chunks of another length."""
    run = doubled._run

    def other(plan: Plan, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        if fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        found = run(plan, tensors)
        long = found["states"].shape[1] > doubled._PIECE
        if fault == "piece" or (fault == "late" and long and ": 48" in configs[plan]):
            found["states"][-1, -1, -1, -1] += 1e-6
        return found

    configs: dict[Plan, str] = {}

    class Told(Plan):
        def __init__(self, *arguments: Any, config: str) -> None:
            super().__init__(*arguments, config=config)
            configs[self] = config

    monkeypatch.setattr(doubled, "_run", other)
    monkeypatch.setattr(doubled, "Plan", Told)
    program, sizes = PROGRAMS["states"], Sizes(2, 700, 1)
    tensors = random_tensors(program, sizes, CPU, seed=3)
    found = doubled.in_double(program, tensors)
    assert (found is None) == (fault is not None)
    if found is not None:
        assert {name: str(each.dtype) for name, each in found.items()} == {
            "states": "torch.complex128",
            "final_state": "torch.complex128",
        }


def test_where_nothing_has_chunks_there_is_no_reference_in_double() -> None:
    """The carry's square is no sum of what came before."""
    assert doubled.in_double(squares(), [torch.zeros(1, 400, 1, 4)]) is None


@pytest.mark.parametrize("name", PROGRAMS)
def test_random_tensors_are_what_calls_take(name: str) -> None:
    program = PROGRAMS[name]
    slots, _ = slots_of(program.text)
    tensors = random_tensors(program, SIZES, CPU, seed=3)
    again = random_tensors(program, SIZES, CPU, seed=3)
    for input_, slot, tensor, other in zip(
        caller_inputs(program), slots, tensors, again, strict=True
    ):
        assert tensor.dtype == slot.dtype
        assert torch.equal(tensor, other)
        if tensor.is_complex() or tensor.is_floating_point():
            assert tensor.abs().max() <= 1
            # The diagonal's are near 1: see test_memory.py.
            assert tensor.abs().float().std() > (0.05 if input_.name == "diagonal" else 0.1)
        if input_.name == "dictionary":
            sorted_ = tensor.long().sort(-1).values
            one_to_one = bool((sorted_ == torch.arange(5)).all())
            assert one_to_one == (input_.type.map_class != "general")  # type: ignore[union-attr]


def test_packed_sequences_have_several_tokens_and_ends() -> None:
    program = pd_scan(PdScan(4, 3, packed=True))
    names = [input_.name for input_ in caller_inputs(program)]
    tensors = random_tensors(program, Sizes(1, 2000, 3), CPU, seed=3)
    follows = dict(zip(names, tensors, strict=True))["follows"]
    assert follows.unique().tolist() == [0, 1]
    assert 0.9 < follows[:, :500].float().mean() < 0.97
    # Few, but some: of longer sequences.
    assert 0.98 < follows[:, 500:].float().mean() < 0.999


def test_a_backward_is_held_to_the_gradients() -> None:
    """The gate's truth of a backward is what autograd says of the forward."""
    from pdssm_compiler import reference
    from pdssm_compiler.runtime.ops import adjoint_of

    forward = pd_scan(PdScan(4, 3))
    derived = adjoint_of(forward.text, ("diagonal", "drive"), ("states",))
    sizes = Sizes(2, 9, 2)
    read = dict(
        zip(
            [i.name for i in caller_inputs(forward)],
            random_tensors(forward, sizes, CPU, seed=5),
            strict=True,
        )
    )
    leaves = {n: read[n].to(torch.complex128).requires_grad_() for n in ("diagonal", "drive")}
    maps = {n: read[n] for n in ("dictionary", "selection")}
    states, _ = reference.pd_scan(**leaves, **maps)
    grad = torch.randn(states.shape, dtype=torch.complex128)
    found = torch.autograd.grad(states, list(leaves.values()), grad)
    saved = dict.fromkeys(derived.saved, states.detach())
    given = read | saved | {"grad_states": grad}
    tensors = [
        given[i.name].to(torch.complex64) if given[i.name].is_complex() else given[i.name]
        for i in caller_inputs(derived.program)
    ]
    _, probe = probes(derived.program, tensors, sizes)
    for name, want in zip(leaves, found, strict=True):
        np.testing.assert_allclose(probe._true[f"grad_{name}"], want.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16, torch.uint8, torch.int32])
def test_outputs_stand_poisoned_between_margins(dtype: torch.dtype) -> None:
    slot = Slot("out", dtype, "token", ("B", "L", "H"), (3,), (1,))
    made = guarded(slot, Sizes(1, 7, 2), CPU)
    assert made.tensor.shape == (1, 7, 2, 3)
    poison = made.tensor.isnan() if made.tensor.dtype.is_complex else None
    if poison is None:
        poison = made.tensor.isnan() if dtype.is_floating_point else made.tensor == made.tensor[0]
    assert bool(poison.all())
    assert made.is_intact()
    made.tensor.zero_()
    assert made.is_intact()
    for beside in (made.memory[4095], made.memory[-4096]):
        before = beside.item()
        beside.fill_(0)
        assert not made.is_intact()
        beside.fill_(before)
    assert made.is_intact()


@pytest.mark.parametrize("noisy", [False, True])
def test_mixtures_are_held_to_some_of_their_tokens(
    noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "_MATRIX_NUMBERS", 7 * 36)
    program = mixture(6, 3, "f64", "row", noisy)
    for each in (program, adjoint(program, LEARNED, surrogate="dense").program):
        sizes = Sizes(1, 50, 1)
        tensors = random_tensors(each, sizes, CPU, seed=3)
        small, timed = probes(each, tensors, sizes)
        assert timed.sizes == Sizes(1, 7, 1)
        kernel = Plan(each, CPU, config="torch-matrices")
        assert (small.fault(kernel), timed.fault(kernel)) == (None, None)
        # Of another program, whose inputs are alike.
        other = mixture(6, 3, "f64", "column", noisy)
        if each is not program:
            other = adjoint(other, LEARNED, surrogate="dense").program
        assert small.fault(Plan(other, CPU, config="torch-matrices")) is not None


def test_a_sum_of_bytes_tells_places_apart() -> None:
    """Also of halves that do not fill a word, and of numbers that change places."""
    tensor = torch.randn(5, 7, 3)
    sums = {_sum(tensor), _sum(tensor.flip(0)), _sum(tensor.roll(1, 1)), _sum(tensor[:, :, :2])}
    assert len(sums) == 4
    assert _sum(tensor.clone()) == _sum(tensor)
    odd = torch.arange(11, dtype=torch.int8)
    assert _sum(odd) != _sum(odd + (torch.arange(11) == 10))
