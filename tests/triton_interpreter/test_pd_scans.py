"""PD scans by the Triton template: every kind of map, and what its checks report."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.ir import interpret
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, map_scores, pd_scan
from pdssm_compiler.runtime.backends import Sizes as KernelSizes
from pdssm_compiler.runtime.errors import IndexRangeError, PromiseError
from pdssm_compiler.runtime.faults import Reporter
from tests.ir.agreement import cotangents_for
from tests.kernels import LAYOUTS, assert_runs, rounded, tensors_of, under_stress
from tests.strategies import Sizes, arrays_for
from tests.triton_interpreter.interpreted import CHUNKS, CONFIGS, LOOKBACK, Config, Interpreted

KINDS = [
    PdScan(1, None, map_source="none", element="c128", initial_state=True, final_state=True),
    *(
        PdScan(
            1,
            2 if source == "dictionary" else None,
            "c64",
            source,
            class_,
            orientation,
            True,
            True,
        )
        for source in ("dictionary", "token")
        for class_ in ("general", "permutation", "identity")
        for orientation in ("column", "row")
    ),
]
STATE_SIZES = (1, 3, 8, 17, 32)


def spec_id(spec: PdScan) -> str:
    return f"{spec.map_source}-{spec.orientation}-{spec.map_class}"


@pytest.mark.parametrize("state_size", STATE_SIZES)
@pytest.mark.parametrize("spec", KINDS, ids=spec_id)
@settings(max_examples=2, derandomize=True)
@given(
    config=st.sampled_from(CONFIGS),
    sizes=st.builds(Sizes, st.integers(1, 2), st.sampled_from((1, 2, 7)), st.integers(1, 2)),
    seed=st.integers(0, 999),
)
def test_values_and_gradients(
    spec: PdScan, state_size: int, config: Config, sizes: Sizes, seed: int
) -> None:
    assert_values_and_gradients(replace(spec, state_size=state_size), config, sizes, seed)


# A chunk and a bit, whole chunks, less than a chunk, nothing.
IN_CHUNKS = (Sizes(2, 7, 1), Sizes(1, 6, 2), Sizes(1, 1, 1), Sizes(1, 0, 2))


@pytest.mark.parametrize("turn", [0, *under_stress(2)])
@pytest.mark.parametrize("spec", KINDS, ids=spec_id)
def test_values_and_gradients_in_chunks(spec: PdScan, turn: int) -> None:
    for number, config in enumerate(CHUNKS):
        sizes = IN_CHUNKS[(number + turn) % len(IN_CHUNKS)]
        assert_values_and_gradients(replace(spec, state_size=3), config, sizes, number)


# Windows and a bit, whole windows, less than a chunk, nothing.
IN_WINDOWS = (Sizes(2, 8, 1), Sizes(1, 4, 2), Sizes(1, 1, 1), Sizes(1, 0, 2), Sizes(1, 7, 3))


@pytest.mark.parametrize("spec", KINDS, ids=spec_id)
def test_values_and_gradients_by_look_back(spec: PdScan) -> None:
    turn = KINDS.index(spec)
    for number, config in enumerate(LOOKBACK):
        sizes = IN_WINDOWS[(number + turn) % len(IN_WINDOWS)]
        assert_values_and_gradients(replace(spec, state_size=3), config, sizes, number)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_of_any_layout(layout: str) -> None:
    for state_size, config in (
        (5, CHUNKS[1]),
        (33, CHUNKS[2]),
        (5, LOOKBACK[1]),
        (33, LOOKBACK[2]),
    ):
        program = pd_scan(PdScan(state_size, 2, initial_state=True, final_state=True))
        kernel = Interpreted(program, config)
        sizes = Sizes(2, 5, 1)
        arrays = arrays_for(program, sizes, 4)
        assert_runs(lambda _, t, s, k=kernel: k.run(t, s), program, arrays, sizes, layout)


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_dense_surrogate(orientation: str) -> None:
    """What writes the factors of gradients, and what holds them against maps."""
    scan = pd_scan(PdScan(3, 4, orientation=orientation))
    names = ["diagonal", "dictionary", "drive", "selection"]
    factors = adjoint(scan, names, surrogate="dense").program
    for program, config, sizes in (
        (factors, CONFIGS[0], Sizes(2, 7, 2)),
        (factors, CHUNKS[0], Sizes(1, 7, 2)),
        (map_scores(3, 4, "c64"), CONFIGS[0], Sizes(3, 2, 2)),
    ):
        kernel = Interpreted(program, config)
        arrays = rounded(program, arrays_for(program, sizes, 5))
        assert_runs(lambda _, t, s, k=kernel: k.run(t, s), program, arrays, sizes, "dense")
        assert kernel.error.item() == 0


def assert_values_and_gradients(spec: PdScan, config: Config, sizes: Sizes, seed: int) -> None:
    """A scan and its adjoint against complex128."""
    program = pd_scan(spec)
    derived = adjoint(program, surrogate="active")
    arrays = rounded(program, arrays_for(program, sizes, seed))
    forward, backward = Interpreted(program, config), Interpreted(derived.program, config)
    assert_runs(lambda _, t, s: forward.run(t, s), program, arrays, sizes, "dense")
    reads = arrays | {n: interpret(program, arrays)[out] for n, out in derived.saved.items()}
    reads |= {f"grad_{n}": array for n, array in cotangents_for(program, sizes, seed).items()}
    reads = {i.name: reads[i.name] for i in derived.program.inputs if i.inverse_of is None}
    assert_runs(lambda _, t, s: backward.run(t, s), derived.program, reads, sizes, "dense")
    assert forward.error.item() == backward.error.item() == 0


SIZES = Sizes(2, 4, 2)


def reported(
    spec: PdScan, name: str, at: tuple[int, ...], value: object, config: Config
) -> Exception:
    """The error of a call with one wrong entry; the tensors' own memory is never left."""
    program = pd_scan(spec)
    arrays = arrays_for(program, SIZES, 3)
    arrays[name][at] = value
    kernel = Interpreted(program, config)
    outputs = kernel.run(tensors_of(program, arrays, "dense"), SIZES)
    assert not any(output.isnan().any() for output in outputs)
    word = int(kernel.error.item())
    assert word != 0
    return Reporter(specialise(kernel.program)).error(word, KernelSizes(*SIZES))


@pytest.mark.parametrize("config", [*CONFIGS, CHUNKS[2], LOOKBACK[1]], ids=str)
@pytest.mark.parametrize("value", [-1, 5, 2**31 - 1, -(2**31)])
def test_range_errors(value: int, config: Config) -> None:
    table = PdScan(5, 3)
    error = reported(table, "dictionary", (1, 2, 4), value, config)
    assert isinstance(error, IndexRangeError)
    assert (
        str(error) == "dictionary (head 1) has an entry out of range: entries must lie in [0, 5)"
    )
    error = reported(table, "selection", (1, 3, 0), value, config)
    assert (
        str(error)
        == "selection[b=1, t=3, h=0] has an entry out of range: entries must lie in [0, 3)"
    )
    token = PdScan(5, None, map_source="token")
    error = reported(token, "destination", (0, 2, 1, 3), value, config)
    assert isinstance(error, IndexRangeError)
    assert (
        str(error)
        == "destination[b=0, t=2, h=1] has an entry out of range: entries must lie in [0, 5)"
    )


@pytest.mark.parametrize("storage", ["u8", "i16", "i64"])
def test_range_errors_of_other_dtypes(storage: str) -> None:
    highest = {"u8": 2**8, "i16": 2**15, "i64": 2**63}[storage] - 1
    spec = PdScan(5, 3, map_storage=storage, selection_storage=storage)
    assert isinstance(
        reported(spec, "dictionary", (1, 2, 4), highest, CONFIGS[1]), IndexRangeError
    )
    assert isinstance(reported(spec, "selection", (1, 3, 0), highest, CONFIGS[1]), IndexRangeError)
    spec = PdScan(5, None, map_source="token", map_storage=storage)
    error = reported(spec, "destination", (0, 2, 1, 3), highest, CONFIGS[1])
    assert isinstance(error, IndexRangeError)


@pytest.mark.parametrize("config", [*CONFIGS, CHUNKS[2], LOOKBACK[1]], ids=str)
def test_a_broken_promise(config: Config) -> None:
    spec = PdScan(5, None, map_source="token", map_class="permutation")
    error = reported(spec, "destination", (1, 2, 1), np.array([0, 1, 1, 3, 4]), config)
    assert isinstance(error, PromiseError)
    assert "destination[b=1, t=2, h=1] is not the permutation that map_class promised" in str(
        error
    )


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("value", [-1, 5, 2**31 - 1])
def test_an_index_out_of_range_is_no_broken_promise(value: int, config: Config) -> None:
    spec = PdScan(5, None, map_source="token", map_class="permutation")
    error = reported(spec, "destination", (1, 2, 1, 3), value, config)
    assert isinstance(error, IndexRangeError)
    assert "destination[b=1, t=2, h=1] has an entry out of range" in str(error)
