"""``pdssm-compiler compile``: kernels for targets that are absent, and what they take there."""

import json
from pathlib import Path

from tests.cli.conftest import Command, error_line

GPUS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")


def rows(table: str) -> list[dict[str, str]]:
    """The rows of a printed table, by its headings."""
    lines = [line for line in table.splitlines() if line[:1] in "┃│"]
    cells = [
        [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in lines
    ]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def test_every_gpu_with_what_its_kernels_take(pdssm: Command) -> None:
    targets = [word for name in GPUS for word in ("--target", name)]
    done = pdssm("compile", "-N", 16, "-K", 4, "--map-class", "permutation", *targets)
    assert done.status == 0
    found = rows(done.out)
    told = [(row["target"].partition(":")[2], row["kernel"]) for row in found]
    assert told == [(name, kind) for name in GPUS for kind in ("forward", "backward")]
    for row in found:
        assert int(row["registers"]) > 0
        assert int(row["bytes"]) > 0
        if row["target"].startswith("cuda:"):
            assert row["template"] == "cuda-rows"
            # ptxas keeps a few bytes of stack for predicates.
            assert int(row["spilled"]) <= 16
            assert int(row["shared_bytes"]) > 0
        else:
            assert row["template"] == "triton-rows"
            assert int(row["spilled"]) == 0
            assert int(row["barriers"]) == 0


def test_files_are_written(pdssm: Command, tmp_path: Path) -> None:
    out = tmp_path / "kernels"
    targets = [word for name in ("sm_90", "gfx942", "cpu") for word in ("--target", name)]
    done = pdssm("compile", "-N", 4, "-K", 3, *targets, "--out", out)
    assert done.status == 0
    assert f"files written to {out}" in done.out
    for kind in ("forward", "backward"):
        folder = out / f"sm_90-{kind}"
        assert {path.name for path in folder.iterdir()} == {
            "source.py", "kernel.cu", "kernel.cubin", "call.json",
        }  # fmt: skip
        assert (folder / "kernel.cubin").read_bytes()[:4] == b"\x7fELF"
        assert "scan_kernel(" in (folder / "kernel.cu").read_text()
        parameters = json.loads((folder / "call.json").read_text())
        assert {"rows", "L", "H", "error_ptr"} <= {name for name, _ in parameters}
    assert b".amdgcn_target" in (out / "gfx942-backward" / "scan.amdgcn").read_bytes()
    assert (out / "gfx942-forward" / "scan.hsaco").read_bytes()[:4] == b"\x7fELF"
    gpus = ("sm_90-forward", "gfx942-forward")
    (cpu,) = (folder for folder in out.glob("*-forward") if folder.name not in gpus)
    assert {path.name for path in cpu.iterdir()} == {"kernel.o", "source.py"}


def test_without_a_target_it_is_this_machine(pdssm: Command) -> None:
    done = pdssm("compile", "-N", 4, "--map-source", "none")
    assert [row["kernel"] for row in rows(done.out)] == ["forward", "backward"]


def test_a_template_by_name(pdssm: Command) -> None:
    targets = ("--target", "sm_90", "--target", "gfx942")
    done = pdssm("compile", "-N", 4, "-K", 3, *targets, "--template", "triton-chunks")
    found = [(row["target"], row["template"]) for row in rows(done.out)]
    assert found == [("cuda:sm_90", "triton-chunks")] * 2 + [("hip:gfx942", "triton-chunks")] * 2
    message = error_line(pdssm("compile", "-N", 4, *targets, "--template", "cpu-rows"))
    assert message.startswith("cpu-rows cannot run on cuda:sm_90: cpu-rows is for CPUs, not for")


def test_errors(pdssm: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = error_line(pdssm("compile", "-N", 4, "-K", 3, "--out", tmp_path / "file"))
    assert message.startswith(f"cannot write to {tmp_path / 'file'}")
    assert message.endswith("; choose --out")
    assert error_line(pdssm("compile", "--target", "tpu")).startswith(
        "unknown target 'tpu'; known"
    )
    message = error_line(pdssm("compile", "--payload-dtype", "float16", "--dtype", "complex128"))
    assert message == (
        "payload_dtype needs dtype=torch.complex64, got torch.complex128; leave one out"
    )
