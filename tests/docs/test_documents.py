"""What the documents show is so: their snippets run, their commands parse, their links lead on."""

import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch
import typer.main

import pdssm_compiler
from benchmarks.app import app as benchmarks
from examples.state_tracking.__main__ import app as state_tracking
from pdssm_compiler.cli.app import app
from pdssm_compiler.cli.lower import Stage
from pdssm_compiler.fusion.functions import FUNCTIONS
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, mixture, pd_scan
from pdssm_compiler.runtime import deployed, plan
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import described_target
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from pdssm_compiler.workload_files import read_workloads
from tests.torch_only import torch_only

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")])


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language, also those that stand in lists."""
    pattern = rf"^ *```{language}\n(.*?)^ *```"
    found = re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


# Whose Python is run below, all of it.
SNIPPETS = {
    "README.md": 4,
    "docs/distributed.md": 3,
    "docs/fusion.md": 2,
    "docs/hugging-face.md": 2,
    "docs/layers.md": 8,
    "docs/migration.md": 1,
    "docs/mixture.md": 4,
    "docs/packed.md": 2,
    "docs/runtime.md": 1,
    "docs/state-tracking.md": 1,
    "docs/targets.md": 1,
    "docs/tuning.md": 1,
}


def test_no_page_has_a_snippet_that_is_not_run() -> None:
    found = {str(path.relative_to(ROOT)): len(blocks(path, "python")) for path in DOCUMENTS}
    assert {name: count for name, count in found.items() if count} == SNIPPETS


def test_the_readmes_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    first, flash, fused, second = blocks(ROOT / "README.md", "python")
    scope: dict[str, object] = {}
    exec(compile(first, "README.md", "exec"), scope)
    assert scope["states"].shape == (2, 100, 4, 32)
    assert scope["final"].shape == (2, 4, 32)
    assert scope["diagonal"].grad.shape == scope["diagonal"].shape
    assert ", by heuristic; " in capsys.readouterr().out
    exec(compile(flash, "README.md", "exec"), scope)
    for name in ("dictionary_logits", "selector_logits"):
        assert scope[name].grad.abs().max() > 0
    exec(compile(fused, "README.md", "exec"), scope)
    assert scope["y"].shape == (2, 100, 4, 32)
    for name in ("delta", "phase", "gate"):
        assert scope[name].grad.abs().max() > 0
    exec(compile(second, "README.md", "exec"), {})
    text = capsys.readouterr().out
    for piece in ("scan N=32 forward", "scan N=32 backward", "@T.prim_func", "by heuristic"):
        assert piece in text


def test_the_snippet_of_state_tracking_runs() -> None:
    (snippet,) = blocks(ROOT / "docs" / "state-tracking.md", "python")
    scope: dict[str, object] = {}
    with torch_only(TorchTokens()):
        exec(compile(snippet, "state-tracking.md", "exec"), scope)
    assert scope["block"].dictionary_logits.grad.abs().max() > 0


def test_the_snippets_of_fusion_run() -> None:
    """The second by generated PyTorch: its kernels are compiled in tests of their own."""
    first, second = blocks(ROOT / "docs" / "fusion.md", "python")
    scope: dict[str, object] = {}
    exec(compile(first, "fusion.md", "exec"), scope)
    assert scope["y"].shape == (2, 100, 4, 16)
    assert all(tensor.grad.abs().max() > 0 for tensor in scope["given"].values())
    with torch_only(TorchTokens()):
        exec(compile(second, "fusion.md", "exec"), scope)
    assert scope["y"].shape == (2, 100, 4, 16)
    assert all(tensor.grad.abs().max() > 0 for tensor in scope["logits"].values())


def test_the_snippets_of_packed_run() -> None:
    scope: dict[str, object] = {}
    for snippet in blocks(ROOT / "docs" / "packed.md", "python"):
        exec(compile(snippet, "packed.md", "exec"), scope)
    assert scope["state"].shape == (2, 4, 16)
    assert not scope["final"][1].any()


def test_the_snippet_of_runtime_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = blocks(ROOT / "docs" / "runtime.md", "python")
    scope: dict[str, object] = {}
    with torch_only(TorchTokens()):
        exec(compile(snippet, "runtime.md", "exec"), scope)
    assert scope["diagonal"].grad.shape == (5, 31, 2, 4, 2)
    assert capsys.readouterr().out.count("torch-tokens") == 2


def test_the_snippets_of_mixture_run() -> None:
    first, *others = blocks(ROOT / "docs" / "mixture.md", "python")
    scope: dict[str, object] = {}
    with torch_only(TorchTokens()):
        for snippet in (first, *others):
            exec(compile(snippet, "mixture.md", "exec"), scope)
    assert scope["final"].shape == (2, 2, 16)
    assert all(scope[f"{name}_logits"].grad.abs().max() > 0 for name in ("dictionary", "selector"))
    text = (ROOT / "docs" / "mixture.md").read_text()
    assert mixture(16, 4, "f32", "column").text in text
    assert (scope["soft"] - scope["states"]).abs().max() > 0


def test_the_snippets_of_layers_run() -> None:
    """By generated PyTorch: their kernels would take half a minute to compile."""
    scope: dict[str, object] = {}
    with torch_only(TorchTokens()):
        for snippet in blocks(ROOT / "docs" / "layers.md", "python"):
            exec(compile(snippet, "layers.md", "exec"), scope)
    assert scope["written"].shape == (2, 26, 64)
    assert scope["logits"].shape == (4, 20, 10)
    assert scope["text"].shape == (2, 20)
    decayed, kept = scope["optimizer"].param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_the_snippets_of_distributed_run(tmp_path: Path) -> None:
    """In a process group of one."""
    scope: dict[str, object] = {"folder": tmp_path}
    try:
        with torch_only(TorchTokens()):
            for snippet in blocks(ROOT / "docs" / "distributed.md", "python"):
                exec(compile(snippet, "distributed.md", "exec"), scope)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    saved = scope["model"].state_dict()
    for name, tensor in scope["alone"].state_dict().items():
        whole = saved[name].full_tensor() if hasattr(saved[name], "full_tensor") else saved[name]
        assert torch.equal(tensor, whole), name


def test_the_snippet_of_migration_runs() -> None:
    (snippet,) = blocks(ROOT / "docs" / "migration.md", "python")
    scope: dict[str, object] = {}
    with torch_only(TorchTokens()):
        exec(compile(snippet, "migration.md", "exec"), scope)
    assert scope["token"].shape == (2, 64)


def test_the_snippets_of_hugging_face_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="its adapter is tested where it is installed")
    scope: dict[str, object] = {"folder": tmp_path}
    with torch_only(TorchTokens()):
        for snippet in blocks(ROOT / "docs" / "hugging-face.md", "python"):
            exec(compile(snippet, "hugging-face.md", "exec"), scope)
    assert scope["text"].shape == (2, 20)
    for name, tensor in scope["again"].state_dict().items():
        assert torch.equal(tensor, scope["model"].state_dict()[name]), name
    assert scope["embedded"].shape == scope["last"].shape == (2, 12, 64)
    assert [len(states) for states in (scope["first"], scope["third"])] == [5, 5]
    assert scope["first"][0].shape == (2, 12, 64)
    assert scope["third"][0].shape == (2, 1, 64)


def test_the_workloads_of_tuning_are_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, found = ROOT / "docs" / "tuning.md", []
    for number, shown in enumerate(blocks(page, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(shown)
        found += read_workloads(path, ())
    assert [type(each).__name__ for each in found] == ["Workload", "ProgramWorkload"]
    (snippet,) = blocks(page, "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_plans", {})
    diagonal = torch.ones(1, 3, 1, 2, dtype=torch.complex64)
    with torch_only(TorchTokens()):
        pdssm_compiler.pd_scan(diagonal, diagonal)
        exec(compile(snippet, "tuning.md", "exec"), {"pdssm_compiler": pdssm_compiler})
    (saved,) = read_workloads(tmp_path / "calls.toml", ())
    assert (saved.length, saved.heads) == (3, 1)


def test_the_description_in_the_page_is_one(tmp_path: Path) -> None:
    page = ROOT / "docs" / "targets.md"
    (shown,) = blocks(page, "toml")
    (tmp_path / "gpu.toml").write_text(shown)
    found = described_target(tmp_path / "gpu.toml")
    assert (found.name, found.processors, found.bandwidth) == ("My GPU", 66, 2 * 10**12)
    keys = [line.split("`")[1] for line in page.read_text().splitlines() if "   | `" in line]
    assert keys == [line.split(" = ")[0] for line in shown.splitlines() if line.strip()]


def test_the_snippet_of_targets_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with kernels of a plain scan."""
    (snippet,) = blocks(ROOT / "docs" / "targets.md", "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deployed, "_loaded", [])
    monkeypatch.setattr(plan, "_plans", {})
    spec = pdssm_compiler.ScanSpec(3, map_source="none")
    assert pdssm_compiler.compile(spec, "cpu").save(tmp_path / "kernels")
    before = len(pdssm_compiler.explain())
    exec(compile(snippet, "targets.md", "exec"), {})
    ones = torch.ones(1, 2, 1, 3, dtype=torch.complex64)
    pdssm_compiler.pd_scan(ones, ones)
    (ran,) = pdssm_compiler.explain()[before:]
    assert (ran.template, ran.origin) == ("cpu-rows", "deployed")


def test_every_traced_function_is_named() -> None:
    page = (ROOT / "docs" / "fusion.md").read_text()
    of_operators = {"add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"}
    others = {"neg", "negative", "conj_physical", "expit", "special_expit", "log_sigmoid"}
    listed = re.search(r"as functions or methods:\n\n`(.*?)`", page, re.DOTALL)
    assert listed is not None
    named = {re.match(r"\w+", word)[0] for word in listed[1].split()}
    assert named == set(FUNCTIONS) - of_operators - others


# What begins a command in the documents.
APPS = {
    "pdssm-compiler ": app,
    "python -m benchmarks ": benchmarks,
    "python -m examples.state_tracking ": state_tracking,
}


def commands(program: str) -> list[str]:
    """What follows a program's name, wherever a document shows it."""
    lines = "\n".join(b for path in DOCUMENTS for b in blocks(path, "sh")).splitlines()
    found = [line.partition(" # ")[0].strip() for line in lines]
    return [line.removeprefix(program) for line in found if line.startswith(program)]


def test_there_are_commands() -> None:
    shown = {program: {line.split()[0] for line in commands(program)} for program in APPS}
    assert shown == {
        "pdssm-compiler ": {
            *(
                "doctor",
                "targets",
                "describe",
                "lower",
                "compile",
                "verify",
                "tune",
                "run",
                "cache",
                "log",
            )
        },
        "python -m benchmarks ": {*("gpu", "cpu", "model", "search", "show", "plot", "untuned")},
        "python -m examples.state_tracking ": {
            *("table2", "table3", "lengths", "automaton", "report", "speed")
        },
    }


@pytest.mark.parametrize(
    ("program", "line"), [(program, line) for program in APPS for line in commands(program)]
)
def test_a_commands_options_are_there(program: str, line: str) -> None:
    name, *arguments = shlex.split(line)
    command = typer.main.get_command(APPS[program]).commands[name]
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    # Raises for an option that is not there, or a value it does not take.
    assert command.make_context(name, arguments).command is command


def test_the_readme_names_every_stage() -> None:
    told = (ROOT / "README.md").read_text().partition("The stages of `lower`: ")[2]
    named = re.findall(r"`([\w-]+)`", told.partition("`--template`")[0])
    assert set(named) == {stage.value for stage in Stage} | {
        "cuda-step", "cuda-rows", "cuda-chunks", "triton-rows", "triton-chunks",
        "triton-lookback",
    }  # fmt: skip


def test_the_printed_programs_are_the_ones_in_the_page() -> None:
    page = (ROOT / "docs" / "ir.md").read_text()
    assert "`pdssm-compiler lower ir -N 4 -K 3` prints" in page
    program = pd_scan(PdScan(4, 3))
    for shown in (program, adjoint(program, surrogate="active").program):
        assert f"```\n{shown.text}```" in page


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_are_there(path: Path) -> None:
    text = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    for link in links:
        assert (path.parent / link).exists(), link
    # Paths of this repository that stand in the text.
    tops = "ir|schedules|runtime|pdssm_compiler|tests|benchmarks|examples|docs"
    for name in re.findall(rf"`((?:{tops})/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_every_setting_has_its_line() -> None:
    source = (ROOT / "runtime" / "settings.py").read_text()
    names = set(re.findall(r'"(PDSSM_\w+)"', source))
    assert len(names) >= 3
    page = (ROOT / "docs" / "settings.md").read_text()
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    asked = [*project["dependencies"], *optional["dev"], *optional["transformers"]]
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in asked]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    assert [name for name in names if not re.search(rf"\b{name}\b", page)] == []


def test_every_template_is_in_the_table() -> None:
    page = (ROOT / "docs" / "schedules.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("| `")]
    named = {name for line in table for name in re.findall(r"`([\w-]+)`", line.split("|")[1])}
    assert named == set(TEMPLATES)
