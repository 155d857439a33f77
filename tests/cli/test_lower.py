"""``pdssm-compiler lower``: every stage of every kind of target; what is said of the others."""

import importlib.util
import re

import pytest

from pdssm_compiler import ScanSpec, compile
from pdssm_compiler.cli.lower import Stage
from pdssm_compiler.ir import parse_program
from pdssm_compiler.ir.passes import adjoint, specialise, summarise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import compile_service
from pdssm_compiler.schedules import registry
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows
from tests.cli.conftest import Command, error_line
from tests.missing import without

SIZES = ("-N", 4, "-K", 3)
PROGRAM = pd_scan(PdScan(4, 3))
NVIDIA = {"cuda", "ptx", "sass"}
TRITON = {"ttir", "ttgir", "llir", "ptx", "sass"}
AMD = {"ttir", "ttgir", "llir", "amdgcn"}
OWN = {"ir", "specialised", "adjoint", "summary", "schedule", "source", "backward-source"}
# A line that only that stage has.
MARKS = {
    "ttir": "tt.func public @scan",
    "ttgir": "ttg.num-warps",
    "llir": "target datalayout",
    "cuda": "scan_kernel(",
    "ptx": ".target sm_90",
    "sass": "EXIT",
    "amdgcn": ".amdgcn_target",
}


def test_programs(pdssm: Command) -> None:
    for stage, program in (
        ("ir", PROGRAM),
        ("specialised", specialise(PROGRAM)),
        ("adjoint", adjoint(PROGRAM).program),
    ):
        done = pdssm("lower", stage, *SIZES)
        assert done.status == 0
        assert parse_program(done.out) == program
    assert pdssm("lower", *SIZES).out == PROGRAM.text


def test_an_option_that_a_program_does_not_need_is_told(pdssm: Command) -> None:
    done = pdssm("lower", "adjoint", *SIZES, "--target", "sm_90", "--template", "cuda-rows")
    assert (done.status, done.out) == (0, adjoint(PROGRAM).program.text)
    assert done.err.splitlines() == [
        "--target is not used: adjoint is the same for all",
        "--template is not used: adjoint is the same for all",
    ]


def test_the_schedule_of_some_sizes(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what calls of these sizes take, by a log where one speaks for them."""
    monkeypatch.setattr(compile_service, "obtain", lambda *_: ({}, "disk"))
    scan = ("lower", "schedule", "-N", 32, "-K", 32, "--target", "h100")
    sizes = ("-B", 1, "-T", 32768, "-H", 32)
    forward, _ = pdssm(*scan, *sizes).out.splitlines()
    assert forward.startswith("forward: cuda-chunks ")
    told = "by shipped log for nvidia-h100-80gb-hbm3, for 32 rows of 32768 tokens"
    assert forward.endswith(told)
    forward, _ = pdssm(*scan).out.splitlines()
    assert forward.endswith("by heuristic")
    line = error_line(pdssm(*scan, *sizes[:4]))
    assert line == "--batch, --length and --heads go together; give all three, or none"


def test_options_reach_the_program(pdssm: Command) -> None:
    done = pdssm(
        "lower", "specialised", "-N", 5, "--map-source", "token", "--map-class", "permutation",
        "--orientation", "column", "--dtype", "complex128", "--initial-state", "--final-state",
    )  # fmt: skip
    spec = PdScan(5, None, "c128", "token", "permutation", "column", True, True)
    assert parse_program(done.out) == specialise(pd_scan(spec))
    done = pdssm("lower", "ir", *SIZES, "--payload-dtype", "bfloat16", "--orientation", "row")
    assert parse_program(done.out) == pd_scan(
        PdScan(4, 3, orientation="row", payload_storage="cb32")
    )


def test_packed_and_reverse_reach_the_program(pdssm: Command) -> None:
    done = pdssm("lower", "ir", *SIZES, "--packed", "--reverse", "--initial-state")
    # The states at the ends of sequences are none of the program's.
    assert parse_program(done.out) == pd_scan(PdScan(4, 3, packed=True, reverse=True))


def test_the_summary_is_three_programs(pdssm: Command) -> None:
    done = pdssm("lower", "summary", *SIZES)
    texts = done.out.split("# ")[1:]
    assert [text.partition("\n")[0] for text in texts] == ["fold", "combine", "apply"]
    summary = summarise(PROGRAM)
    found = [parse_program(text.partition("\n")[2].strip() + "\n") for text in texts]
    assert found == [summary.fold, summary.combine, summary.apply]


@pytest.mark.parametrize("target", ["cpu", "sm_90", "gfx942"])
def test_schedule_and_sources(target: str, pdssm: Command) -> None:
    scan = compile(ScanSpec(4, 3), target)
    asked = (*SIZES, "--target", target)
    assert pdssm("lower", "schedule", *asked).out == scan.explain() + "\n"
    assert pdssm("lower", "source", *asked).out == scan.source.text
    assert pdssm("lower", "backward-source", *asked).out == scan.backward_source.text


@pytest.mark.parametrize(
    ("target", "missing", "template", "stages"),
    [
        ("cpu", None, "cpu-rows", set()),
        ("sm_90", None, "cuda-rows", NVIDIA),
        pytest.param("sm_90", "tvm-cuda", "triton-rows", TRITON, marks=pytest.mark.stress),
        ("gfx942", None, "triton-rows", AMD),
        ("gfx942", "triton", "torch-chunks", set()),
    ],
)
def test_the_compilers_own_stages(
    target: str, missing: str | None, template: str, stages: set[str], pdssm: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert {stage.value for stage in Stage} == OWN | NVIDIA | TRITON | AMD
    if missing:
        without(monkeypatch, **{missing: "it is missing"})
    # Those that there are, and one that there is not: each compiles.
    others = sorted((NVIDIA | TRITON | AMD) - stages)
    for stage in (*sorted(stages), others[0]):
        done = pdssm("lower", stage, *SIZES, "--target", target)
        if stage in stages:
            assert done.status == 0
            assert MARKS[stage] in done.out
        else:
            message = error_line(done)
            assert message.startswith(f"{template} on ")
            assert f"has no stage '{stage}'; name one of its own (ir, specialised, " in message
            assert message.endswith(
                ", another --template, or another --target, such as sm_90 or gfx942"
            )
            named = message.partition("(")[2].partition(")")[0].split(", ")
            assert set(named) == OWN | stages


def test_machine_code_needs_a_disassembler(
    pdssm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "triton" else found(name)
    )
    assert error_line(pdssm("lower", "sass", *SIZES, "--target", "sm_90")) == (
        "the disassembler comes with the Python package triton, which is missing: pip install "
        "triton (Linux only)"
    )


@pytest.mark.parametrize(
    ("target", "template", "stages"),
    [
        ("sm_90", "cuda-rows", NVIDIA),
        pytest.param("sm_90", "cuda-chunks", NVIDIA, marks=pytest.mark.stress),
        ("sm_90", "triton-rows", TRITON),
        pytest.param("sm_90", "triton-chunks", TRITON, marks=pytest.mark.stress),
        pytest.param("sm_90", "triton-lookback", TRITON, marks=pytest.mark.stress),
        ("sm_90", "torch-chunks", set()),
        ("cpu", "torch-tokens", set()),
        ("mps", "torch-chunks", set()),
    ],
)
def test_a_template_by_name(target: str, template: str, stages: set[str], pdssm: Command) -> None:
    asked = (*SIZES, "--target", target, "--template", template)
    for line in pdssm("lower", "schedule", *asked).out.splitlines():
        assert f": {template} " in line
        assert line.endswith(", by explicit template")
    scan = compile(ScanSpec(4, 3), target, config=template)
    assert pdssm("lower", "source", *asked).out == scan.source.text
    assert pdssm("lower", "backward-source", *asked).out == scan.backward_source.text
    done = pdssm("lower", "ptx", *asked)
    if "ptx" in stages:
        assert MARKS["ptx"] in done.out
    else:
        message = error_line(done)
        assert message.startswith(f"{template} on {scan.target} has no stage 'ptx'; name one of")
        assert ", another --template, or another --target" in message


def test_templates_that_cannot_be_had(pdssm: Command) -> None:
    assert error_line(pdssm("lower", "source", *SIZES, "--template", "fast")) == (
        f"unknown template 'fast'; there are {', '.join(registry.TEMPLATES)}"
    )
    done = pdssm("lower", "ptx", *SIZES, "--target", "gfx942", "--template", "cuda-rows")
    assert error_line(done) == (
        "cuda-rows cannot run on hip:gfx942: cuda-rows is for NVIDIA GPUs, not for hip:gfx942; "
        "choose another, or leave the choice to the heuristics"
    )
    done = pdssm("lower", "ptx", "-N", 300, "--target", "sm_90", "--template", "cuda-chunks")
    assert error_line(done).startswith(
        "cuda-chunks cannot run on cuda:sm_90: a state size of 300 is more than 256; "
    )


def test_the_help_names_every_stage_and_template(pdssm: Command) -> None:
    done = pdssm("lower", "--help")
    assert done.status == 0
    # What stands before the arguments, which list the stages without a word about them.
    words = set(re.split(r"[\s,;:.()]+", done.out.partition("Arguments:")[0]))
    assert {stage.value for stage in Stage} <= words
    for name in registry.TEMPLATES:
        # Lines are broken behind hyphens as well.
        assert name in " ".join(done.out.partition("--template")[2].split()).replace("- ", "-")


def test_errors(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_line(pdssm("lower", "ir", "-N", 0)) == (
        "state_size must be a whole number of at least 1, got 0; pass an int"
    )
    assert error_line(pdssm("lower", "source", "--target", "sm_99")).startswith(
        "unknown target 'sm_99'; known targets: cpu, cuda, mps, xpu, sm_80, "
    )
    assert error_line(pdssm("lower", "source", "-N", 2**18, "--target", "sm_90")) == (
        f"state_size must be at most 65536, got {2**18}; use a smaller one"
    )
    monkeypatch.setattr(registry, "_COMPILED", (CudaRows(),))
    assert error_line(pdssm("lower", "source", "-N", 9999, "--target", "sm_90")) == (
        "no template can run a state size of 9999 on cuda:sm_90: cuda-rows: a state size of 9999 "
        "is more than 7424, what a team holds; the config 'torch-chunks' or 'torch-tokens' runs "
        "it as plain PyTorch, slowly"
    )
    done = pdssm("lower", "assembly")
    assert done.status == 2
    assert "'assembly' is not one of" in done.err
