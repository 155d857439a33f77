"""The Triton backend without a GPU: kernels for every architecture, and what they take there."""

import re
from collections.abc import Callable

import pytest

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import LEARNED, PdScan, mixture, pd_scan
from pdssm_compiler.runtime.backends import BACKENDS
from pdssm_compiler.runtime.compile_service import lower
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import Target, named_target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunksConfig
from pdssm_compiler.schedules.templates.triton_lookback import (
    TritonLookback,
    TritonLookbackConfig,
)
from pdssm_compiler.schedules.templates.triton_rows import TritonRows
from tests.kernels import under_stress

Record = Callable[[str, object], None]

# One of each maker each time, the others under stress.
ARCHITECTURES = ["sm_90", "gfx942", *under_stress("sm_80", "sm_100", "sm_120")]
GENERAL = PdScan(32, 4, final_state=True)
PERMUTATION = PdScan(32, 4, map_class="permutation", final_state=True)


def in_rows(program: Program, target: Target) -> KernelSource:
    """The source by triton-rows and its heuristic, whatever else there is for the target."""
    template, program = TritonRows(), specialise(program)
    return template.lower(program, target, template.heuristic(program, target, Problem()))


_files: dict[tuple[str, str], dict[str, bytes]] = {}


def compiled(source: KernelSource) -> dict[str, bytes]:
    """A kernel's files, made once for a target."""
    key = source.target.arch, source.text
    if key not in _files:
        _files[key] = BACKENDS["triton"].compile(source, 16)
    return _files[key]


def resources(source: KernelSource, record: Record) -> dict[str, int]:
    """Compile, load, and read the assembly's own notes."""
    files = compiled(source)
    assert files["source.py"].decode() == source.text
    found = BACKENDS["triton"].load(source, 16, files).resources()
    for name, value in found.items():
        record(name, value)
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("which", ["forward", "adjoint", "active adjoint"])
def test_compiles_without_spills(arch: str, which: str, record_property: Record) -> None:
    program = pd_scan(PERMUTATION)
    if "adjoint" in which:
        program = adjoint(program, surrogate="active" if "active" in which else None).program
    source = in_rows(program, named_target(arch))
    found = resources(source, record_property)
    assert 0 < found["registers"] <= source.target.registers
    assert found["spilled"] == 0
    assert found["shared_bytes"] <= source.target.shared_memory


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_general_scatter_does_not_spill(arch: str, record_property: Record) -> None:
    found = resources(in_rows(pd_scan(GENERAL), named_target(arch)), record_property)
    assert found["registers"] > 0
    assert found["spilled"] == 0


@pytest.mark.parametrize(
    ("which", "arch"),
    [
        ("permutation", "gfx942"),
        ("adjoint", "sm_90"),
        pytest.param("permutation", "sm_90", marks=pytest.mark.stress),
        pytest.param("adjoint", "gfx942", marks=pytest.mark.stress),
    ],
)
def test_gathers_of_64_states_do_not_spill(which: str, arch: str, record_property: Record) -> None:
    map_class = "permutation" if which == "permutation" else "general"
    program = pd_scan(PdScan(64, 4, map_class=map_class, final_state=True))
    if which == "adjoint":
        program = adjoint(program).program
    found = resources(in_rows(program, named_target(arch)), record_property)
    assert found["registers"] > 0
    assert found["spilled"] == 0


@pytest.mark.parametrize("state_size", [*under_stress(64), 128])
def test_collisions_of_many_states_do_not_spill(state_size: int, record_property: Record) -> None:
    """The work of a scatter grows with N log²N, not with N²."""
    program = pd_scan(PdScan(state_size, 4, final_state=True))
    source = in_rows(program, named_target("sm_90"))
    assert source.config["num_warps"] == 1
    assert resources(source, record_property)["spilled"] == 0


def moves_of_32_states() -> dict[str, Program]:
    """No thread waits for another of its warp."""
    return {
        "general forward": pd_scan(GENERAL),
        "permutation forward": pd_scan(PERMUTATION),
        "permutation adjoint": adjoint(pd_scan(PERMUTATION)).program,
        "general adjoint": adjoint(pd_scan(GENERAL)).program,
        "row forward": pd_scan(PdScan(32, 4, orientation="row")),
    }


@pytest.mark.parametrize("name", moves_of_32_states())
def test_a_move_within_a_warp_has_no_barrier(name: str, record_property: Record) -> None:
    source = in_rows(moves_of_32_states()[name], named_target("sm_90"))
    assert source.config["num_warps"] == 1
    assert resources(source, record_property)["barriers"] == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("which", ["forward", "adjoint", "active adjoint"])
def test_chunks_compile_without_spills(arch: str, which: str, record_property: Record) -> None:
    program = pd_scan(GENERAL)
    if "adjoint" in which:
        program = adjoint(program, surrogate="active" if "active" in which else None).program
    source, _ = lower(program, named_target(arch), TritonChunksConfig(1, 1, 1, 1000))
    found = resources(source, record_property)
    for phase in ("fold", "carry", "scan"):
        assert 0 < found[f"{phase}.registers"] <= found["registers"]
    assert found["registers"] <= source.target.registers
    assert found["spilled"] == 0
    # One, before the first token, between clearing the sums and adding to them.
    assert found["barriers"] <= (1 if which == "active adjoint" else 0)
    assert found["shared_bytes"] <= source.target.shared_memory


@pytest.mark.parametrize("arch", ["sm_90", *under_stress("gfx942", "sm_80", "sm_100", "sm_120")])
@pytest.mark.parametrize("which", ["forward", "active adjoint"])
def test_look_back_compiles_without_spills(arch: str, which: str, record_property: Record) -> None:
    program = pd_scan(GENERAL if which == "forward" else PERMUTATION)
    if which == "active adjoint":
        program = adjoint(program, surrogate="active").program
    target = named_target(arch)
    source, _ = lower(program, target, TritonLookbackConfig(1, 1, 4, 8))
    found = resources(source, record_property)
    assert 0 < found["registers"] <= target.registers
    assert found["spilled"] == 0
    assert found["shared_bytes"] <= target.shared_memory


@pytest.mark.parametrize("map_class", under_stress("permutation", "general"))
def test_look_back_keeps_its_tokens_in_registers(map_class: str, record_property: Record) -> None:
    target = named_target("sm_90")
    program = specialise(pd_scan(PdScan(32, 8, map_class=map_class)))
    config = TritonLookback().heuristic(program, target, Problem())
    found = resources(TritonLookback().lower(program, target, config), record_property)
    assert config.tokens >= 12
    assert found["registers"] <= target.registers
    assert found["spilled"] == 0


def test_look_back_waits_between_chunks_alone(record_property: Record) -> None:
    """No token waits for another thread."""
    barriers = set()
    for tokens in (1, 3):
        source, _ = lower(
            pd_scan(PERMUTATION), named_target("sm_90"), TritonLookbackConfig(1, 1, tokens, 8)
        )
        barriers.add(resources(source, record_property)["barriers"])
    assert len(barriers) == 1


def test_what_programs_tell_one_another_is_released_and_acquired() -> None:
    """Each program stores before it tells, and reads after it was told."""
    source, _ = lower(
        pd_scan(PERMUTATION), named_target("sm_90"), TritonLookbackConfig(1, 1, 1, 8)
    )
    ptx = compiled(source)["scan.ptx"].decode()
    told = re.findall(r"(?:red|atom)\.global\.gpu\.(?:release|acq_rel)\.or\.b32", ptx)
    asked = re.findall(r"(?:ld|atom)\.global\.gpu\.(?:acquire|acq_rel)", ptx)
    # A summary and a window's carry; a window's summaries, and the carry before it in two places.
    assert (len(told), len(asked)) == (2, 3)


ONE_STATE = PdScan(1, None, map_source="none")
TOKENS = PdScan(33, None, "c128", "token", "permutation", "column", True, True)
NARROW = PdScan(16, 8, map_storage="u8", selection_storage="i64", payload_storage="cb32")


# Each by one maker each time, the other under stress.
@pytest.mark.parametrize(
    "case",
    [
        *((ONE_STATE, "sm_90"), (TOKENS, "gfx942"), (NARROW, "sm_90")),
        *under_stress((ONE_STATE, "gfx942"), (TOKENS, "sm_90"), (NARROW, "gfx942")),
    ],
    ids=lambda case: f"N{case[0].state_size}-{case[1]}",
)
def test_other_programs_compile(case: tuple[PdScan, str], record_property: Record) -> None:
    spec, arch = case
    source = in_rows(pd_scan(spec), named_target(arch))
    assert resources(source, record_property)["registers"] > 0


def test_pointers_need_no_alignment() -> None:
    source = in_rows(pd_scan(PERMUTATION), named_target("sm_90"))
    backend = BACKENDS["triton"]
    assert backend.load(source, 0, backend.compile(source, 0)).resources()["registers"] > 0


def test_the_source_carries_its_program() -> None:
    source = in_rows(pd_scan(GENERAL), named_target("sm_90"))
    assert source.program == in_text_names(specialise(pd_scan(GENERAL)))
    header = [line[2:] for line in source.text.splitlines() if line.startswith("#")]
    assert header[0].startswith("triton-rows TritonRowsConfig(")
    assert "\n".join(header[1:]).strip() == source.program.text.strip()


@pytest.mark.parametrize(("state_size", "size"), [(256, 3), (8, 300)])
def test_indices_of_eight_bits_compile_with_wider_bounds(state_size: int, size: int) -> None:
    spec = PdScan(state_size, size, map_storage="u8", selection_storage="u8", orientation="row")
    source, _ = lower(pd_scan(spec), named_target("gfx942"))
    assert BACKENDS["triton"].compile(source, 16)["source.py"].decode() == source.text


@pytest.mark.parametrize("arch", ["sm_90", *under_stress("gfx942", "sm_80", "sm_120")])
@pytest.mark.parametrize(
    "shape",
    [
        (128, 8, "column"),
        (2816, 6, "column"),
        *under_stress((100, 6, "row"), (64, 16, "row")),
    ],
    ids=str,
)
def test_matrices_do_not_spill(
    shape: tuple[int, int, str], arch: str, record_property: Record
) -> None:
    size, entries, orientation = shape
    program = mixture(size, entries, "f32", orientation)
    for each in (program, adjoint(program, LEARNED, surrogate="dense").program):
        source, schedule = lower(each, named_target(arch))
        assert schedule.template.name == "triton-matrices"
        found = resources(source, record_property)
        assert 0 < found["registers"] <= source.target.registers
        assert found["spilled"] == 0


def test_a_choice_is_multiply_adds() -> None:
    """In the loop each entry of the dictionary is loaded once, for eight tokens a thread."""
    source, _ = lower(mixture(128, 8, "f32", "column"), named_target("sm_90"))
    backend = BACKENDS["triton"]
    files = backend.compile(source, 16)
    (entry,) = (phase.entry for phase in source.launches)
    text = backend.stages(source, files)["sass"]() if entry else ""
    rows, tokens = source.config["rows"], source.config["tokens"] // source.config["num_warps"]
    # Some more LDG load the coefficients; nothing else multiplies and adds float32.
    assert text.count("FFMA ") == rows * tokens * 7
    assert "BAR.SYNC" not in text


def test_a_choice_of_few_tokens(record_property: Record) -> None:
    """A thread has four entries of each of 2 tokens, and loads those of 8 matrices in a turn."""
    program, problem = mixture(128, 32, "f32", "column"), Problem.bucket(1, 16)
    source, _ = lower(program, named_target("h200"), problem=problem)
    assert resources(source, record_property)["spilled"] == 0
    text = BACKENDS["triton"].stages(source, compiled(source))["sass"]()
    # In the loop for the next turn; and before it and behind it.
    assert text.count("LDG.E.128") == 2 * 8
    assert text.count("FFMA ") == 2 * 8 * 4 * 2


@pytest.mark.parametrize("case", under_stress((33, False), (4, True)), ids=str)
def test_more_matrices_and_noise_compile(case: tuple[int, bool]) -> None:
    entries, noisy = case
    for orientation in ("column", "row"):
        program = mixture(20, entries, "f32", orientation, noisy)
        for each in (program, adjoint(program, LEARNED, surrogate="dense").program):
            source, _ = lower(each, named_target("sm_90"))
            assert BACKENDS["triton"].compile(source, 16)["source.py"].decode() == source.text
