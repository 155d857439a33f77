"""``pdssm-compiler compile``: kernels for targets that are absent, and what they take there."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, error_line
from tests.kernels import under_stress

# One architecture of each kind that differs, and under stress all.
GPUS = [("sm_80", "sm_90", "gfx942"), *under_stress(("sm_100", "sm_120"))]


def rows(table: str) -> list[dict[str, str]]:
    """The rows of a printed table, by its headings."""
    lines = [line for line in table.splitlines() if line[:1] in "┃│"]
    cells = [
        [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in lines
    ]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


@pytest.mark.parametrize("names", GPUS, ids=" ".join)
def test_every_gpu_with_what_its_kernels_take(names: tuple[str, ...], pdssm: Command) -> None:
    targets = [word for name in names for word in ("--target", name)]
    done = pdssm("compile", "-N", 16, "-K", 4, "--map-class", "permutation", *targets)
    assert done.status == 0
    found = rows(done.out)
    told = [(row["target"].partition(":")[2], row["kernel"]) for row in found]
    assert told == [(name, kind) for name in names for kind in ("forward", "backward")]
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


@pytest.mark.parametrize(
    "names",
    [("sm_90", "cpu"), *under_stress(("gfx942", "sm_90", "cpu"))],
    ids=" ".join,
)
def test_kernels_are_saved(names: tuple[str, ...], pdssm: Command, tmp_path: Path) -> None:
    out = tmp_path / "kernels"
    targets = [word for name in names for word in ("--target", name)]
    done = pdssm("compile", "-N", 16, "--map-source", "none", *targets, "--output", out)
    assert done.status == 0
    found = rows(done.out)
    manifests = list(out.glob("manifest-*.json"))
    assert len(manifests) == len(names)
    assert len(found) == len(list(out.iterdir())) - len(manifests)
    told = {(row["target"].partition(":")[2], row["kernel"], row["template"]) for row in found}
    # Calls of any sizes find theirs.
    for kind in ("forward", "backward"):
        for template in ("cuda-step", "cuda-rows", "cuda-chunks"):
            assert ("sm_90", kind, template) in told
        for template in ("triton-rows", "triton-chunks") if "gfx942" in names else ():
            assert ("gfx942", kind, template) in told
    needs = ["triton: triton, a C compiler and the GPU's driver"] if "gfx942" in names else []
    needs += ["tvm-cuda: an NVIDIA driver", "tvm: apache-tvm-ffi"]
    told_last = done.out.splitlines()[-2 - len(needs) :]
    assert told_last[:2] == [
        f"kernels, and manifests of which calls take which, saved to {out}",
        "besides torch and this pdssm-compiler they need",
    ]
    assert sorted(told_last[2:]) == sorted(needs)
    (folder, *_) = out.glob("sm_90-forward-cuda-rows-*")
    assert {path.name for path in folder.iterdir()} == {
        "source.py", "kernel.cu", "kernel.cubin", "call.json", "entry.json",
    }  # fmt: skip
    assert (folder / "kernel.cubin").read_bytes()[:4] == b"\x7fELF"
    assert "scan_kernel(" in (folder / "kernel.cu").read_text()
    parameters = json.loads((folder / "call.json").read_text())
    assert {"blocks", "L", "H", "out_states0_ptr"} <= {name for name, _ in parameters}
    for folder in out.glob("gfx942-backward-triton-rows-*"):
        assert b".amdgcn_target" in (folder / "scan.amdgcn").read_bytes()
        assert (folder / "scan.hsaco").read_bytes()[:4] == b"\x7fELF"
    (folder,) = out.glob("*-forward-cpu-rows-*")
    assert {path.name for path in folder.iterdir()} == {"kernel.so", "source.py", "entry.json"}


def test_without_a_target_it_is_this_machine(pdssm: Command) -> None:
    done = pdssm("compile", "-N", 4, "--map-source", "none")
    assert [row["kernel"] for row in rows(done.out)] == ["forward", "backward"]


# Each is another one than the target's own choice.
BY_NAME = [
    ("cuda:sm_90", "triton-rows"),
    *under_stress(("hip:gfx942", "triton-chunks"), ("cuda:sm_90", "triton-chunks")),
]


@pytest.mark.parametrize("asked_for", BY_NAME, ids=" ".join)
def test_a_template_by_name(asked_for: tuple[str, str], pdssm: Command) -> None:
    target, template = asked_for
    asked = ("--target", target.partition(":")[2])
    done = pdssm("compile", "-N", 4, "-K", 3, *asked, "--template", template)
    found = [(row["target"], row["template"]) for row in rows(done.out)]
    assert found == [(target, template)] * 2
    message = error_line(pdssm("compile", "-N", 4, *asked, "--template", "cpu-rows"))
    assert message.startswith(f"cpu-rows cannot run on {target}: cpu-rows is for CPUs, not for")


def test_errors(pdssm: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = error_line(pdssm("compile", "-N", 4, "-K", 3, "--out", tmp_path / "file"))
    assert message.startswith(f"cannot write kernels to {tmp_path / 'file'}: ")
    assert message.endswith("; name a folder that can be written")
    assert error_line(pdssm("compile", "--target", "tpu")).startswith(
        "unknown target 'tpu'; known"
    )
    message = error_line(pdssm("compile", "--payload-dtype", "float16", "--dtype", "complex128"))
    assert message == (
        "payload_dtype needs dtype=torch.complex64, got torch.complex128; leave one out"
    )
