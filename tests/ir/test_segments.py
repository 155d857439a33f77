"""``in_segments``: any program, run segment by segment, computes what it computes as a whole."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.ir import PassError, Program, ProgramBuilder, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint, in_segments, segment_adjoint
from pdssm_compiler.ir.passes.adjoint import Surrogate
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Vector
from tests.ir.agreement import assert_close, cotangents_for
from tests.ir.one_hot_oracle import gradients as of_one_hots
from tests.ir.test_active_surrogate import choosable
from tests.ir.torch_oracle import differentiable, gradients
from tests.strategies import Sizes, arrays_for, programs, seeds

Arrays = dict[str, np.ndarray]
SIZES = Sizes(2, 7, 2)


def cut(program: Program, length: int) -> list[slice]:
    """The segments of the sequence, in the order the program runs them."""
    found = [slice(at, at + length) for at in range(0, SIZES.length, length)]
    return found if program.direction == "forward" else found[::-1]


def part(program: Program, arrays: Mapping[str, np.ndarray], tokens: slice) -> Arrays:
    """The inputs of one segment."""
    return {
        i.name: arrays[i.name][:, tokens] if i.role in ("token", "lagged") else arrays[i.name]
        for i in program.inputs
        if i.name in arrays
    }


def starts_of(program: Program, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """What the first segment starts from."""
    found: Arrays = {}
    for boundary in in_segments(program).boundaries:
        type_ = program.carry(boundary.carry).type
        own = (program.state_size,) if isinstance(type_, Vector) else ()
        zero = np.zeros((SIZES.batch, SIZES.heads, *own))
        found[boundary.start] = arrays[boundary.start] if boundary.given else zero
    return found


def run_forward(program: Program, arrays: Arrays, length: int) -> tuple[Arrays, list[Arrays]]:
    """Results, and the carries before each segment."""
    segments = in_segments(program)
    state, before, found = starts_of(program, arrays), [], []
    for tokens in cut(program, length):
        before.append(state)
        found.append(interpret(segments.forward, part(program, arrays, tokens) | state))
        state = {each.start: found[-1][each.end] for each in segments.boundaries}
    in_order = found if program.direction == "forward" else found[::-1]
    results = {
        out.name: np.concatenate([each[out.name] for each in in_order], axis=1)
        for out in program.token_outputs
    }
    results |= {final.name: found[-1][final.name] for final in program.final_outputs}
    results |= {s.name: sum(each[s.name] for each in found) for s in program.sum_outputs}
    return results, before


def run_backward(
    program: Program,
    arrays: Arrays,
    cotangents: Arrays,
    before: list[Arrays],
    length: int,
    surrogate: Surrogate | None = None,
) -> Arrays:
    """Gradients by input name, those of choices by a surrogate."""
    segments = in_segments(program)
    ends = {boundary.end for boundary in segments.boundaries}
    wrt = choosable(program) if surrogate else differentiable(program)
    derived = segment_adjoint(segments, wrt, set(cotangents) - ends, surrogate)
    passed = {
        f"grad_{each.end}": cotangents.get(each.end, np.zeros_like(before[0][each.start]))
        for each in derived.passed
    }
    tokens_of = {out.name for out in program.token_outputs}
    found: list[Arrays] = []
    for tokens, state in reversed(list(zip(cut(program, length), before, strict=True))):
        reads = part(program, arrays, tokens) | state
        if derived.replay is not None:
            saved = interpret(derived.replay, reads)
            reads |= {name: saved[output] for name, output in derived.adjoint.saved.items()}
        reads |= {
            f"grad_{name}": array[:, tokens] if name in tokens_of else array
            for name, array in cotangents.items()
            if name not in ends
        }
        found.append(interpret(derived.adjoint.program, reads | passed))
        passed = {f"grad_{b.end}": found[-1][f"grad_{b.start}"] for b in derived.passed}
    in_order = found if derived.adjoint.program.direction == "forward" else found[::-1]
    adjoint_program = derived.adjoint.program
    results = {
        out.name: np.concatenate([each[out.name] for each in in_order], axis=1)
        for out in adjoint_program.token_outputs
    }
    results |= {s.name: sum(each[s.name] for each in found) for s in adjoint_program.sum_outputs}
    results |= {final.name: found[-1][final.name] for final in adjoint_program.final_outputs}
    for name in derived.adjoint.summed:
        results[name] = results[name].sum(axis=0)
    return {name.removeprefix("grad_"): array for name, array in results.items()}


@given(program=programs(), length=st.integers(1, 8), seed=seeds())
def test_values_and_gradients(program: Program, length: int, seed: int) -> None:
    arrays = arrays_for(program, SIZES, seed)
    results, before = run_forward(program, arrays, length)
    assert_close(results, interpret(program, arrays))
    cotangents = cotangents_for(program, SIZES, seed)
    got = run_backward(program, arrays, cotangents, before, length)
    wanted = differentiable(program)
    want = gradients(program, arrays, SIZES, cotangents, wanted)
    assert_close(got, want, wanted)


@settings(max_examples=50)
@given(program=programs(), length=st.integers(1, 8), seed=seeds())
def test_gradients_of_choices(program: Program, length: int, seed: int) -> None:
    """Each segment has its share of a table's, and the indices of its own tokens."""
    arrays = arrays_for(program, SIZES, seed)
    _, before = run_forward(program, arrays, length)
    cotangents = cotangents_for(program, SIZES, seed)
    got = run_backward(program, arrays, cotangents, before, length, "active")
    wanted = choosable(program)
    assert_close(got, of_one_hots(program, arrays, SIZES, cotangents, wanted), wanted)


def read_out() -> Program:
    """A scan whose states are read out and not written."""
    build = ProgramBuilder(4)
    d, c = (build.input(name, Vector("f32")) for name in "dc")
    state = build.carry("state", Vector("f32"))
    following = b.add(b.mul(d, state), 1.0)
    build.next("state", following)
    build.emit("y", b.mul(c, following))
    return build.build()


def test_a_boundary_has_the_programs_names_where_it_has_any() -> None:
    (boundary,) = in_segments(read_out()).boundaries
    assert (boundary.start, boundary.given) == ("before_state", False)
    assert (boundary.end, boundary.returned) == ("after_state", False)
    program = pd_scan(PdScan(4, 3, initial_state=True, final_state=True))
    segments = in_segments(program)
    assert segments.forward == program
    (boundary,) = segments.boundaries
    assert (boundary.start, boundary.given) == ("initial_state", True)
    assert (boundary.end, boundary.returned) == ("final_state", True)


def test_replay_writes_states_alone() -> None:
    derived = segment_adjoint(in_segments(read_out()), ["d", "c"], ["y"])
    assert derived.replay is not None
    assert [out.name for out in derived.replay.token_outputs] == ["saved_state"]
    assert derived.replay.final_outputs == ()
    assert "c" not in [i.name for i in derived.replay.inputs]


def test_what_no_earlier_token_needs_is_not_passed_on() -> None:
    derived = segment_adjoint(in_segments(read_out()), ["c"], ["y"])
    assert derived.passed == ()
    assert derived.adjoint.program.carries == ()
    assert segment_adjoint(in_segments(read_out()), ["d"], ["y"]).passed != ()


def test_nothing_is_replayed_where_no_state_is_read() -> None:
    segments = in_segments(pd_scan(PdScan(4, 3)))
    assert segment_adjoint(segments, ["drive"], ["states"]).replay is None


def test_refusals() -> None:
    with pytest.raises(PassError, match="%saved_state is lagged, and would reach into the next"):
        in_segments(adjoint(read_out()).program)
    build = ProgramBuilder(4)
    state = build.carry("state", Vector("f32"), "one")
    build.next("state", b.mul(state, build.input("d", Vector("f32"))))
    build.final("last", "state")
    with pytest.raises(PassError, match="carry %state starts from one, not from zero"):
        in_segments(build.build())
    build = ProgramBuilder(4)
    state = build.carry("state", Vector("f32"))
    build.next("state", b.add(state, build.input("d", Vector("f32"))))
    build.final("last", "state", "bf16")
    with pytest.raises(PassError, match="%last rounds %state, which the next segment starts"):
        in_segments(build.build())
