"""``pdssm-compiler targets`` and ``describe``: what is known, and a start for what is not."""

from pathlib import Path

import pytest
import torch

from pdssm_compiler.runtime import devices
from pdssm_compiler.schedules.target import described_target, named_target, named_targets
from tests.cli.conftest import Command, error_line
from tests.cli.test_compile import rows


def test_every_known_gpu_is_listed(pdssm: Command) -> None:
    done = pdssm("targets")
    assert done.status == 0
    found = {row["target"]: row for row in rows(done.out)}
    assert list(found) == list(named_targets())
    assert list(found["h200"].values()) == [
        "h200", "NVIDIA H200", "cuda:sm_90", "132", "32", "255", "227 KiB", "4800 GB/s",
    ]  # fmt: skip
    assert done.out.splitlines()[-1].startswith(
        "--target also takes cpu, cuda, cuda:1, and a file"
    )


def test_a_known_gpu_is_a_start_for_another(pdssm: Command, tmp_path: Path) -> None:
    path = tmp_path / "gpu.toml"
    done = pdssm("describe", "h100", "--output", path)
    assert done.out == f"NVIDIA H100 80GB HBM3 described in {path}\n"
    assert described_target(path) == named_target("h100")
    assert pdssm("describe", path).out == pdssm("describe", "h100").out == path.read_text()
    # What is there is not written over.
    assert error_line(pdssm("describe", "h200", "--output", path)) == (
        f"cannot write {path}: File exists; name a new file in a folder that can be written"
    )
    assert described_target(path) == named_target("h100")


def test_the_gpu_that_is_here(
    pdssm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(devices, "target_of", lambda device: named_target("l40s"))
    done = pdssm("describe")
    (tmp_path / "here.toml").write_text(done.out)
    assert described_target(tmp_path / "here.toml") == named_target("l40s")


def test_what_has_no_description(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert error_line(pdssm("describe")).startswith(
        "torch sees no GPU to describe; name a known one to start from, such as h100"
    )
    message = error_line(pdssm("describe", "cpu"))
    assert message.endswith(
        "is no GPU, and has no description; name a GPU that pdssm-compiler targets lists"
    )


def test_a_mistake_in_a_description(pdssm: Command, tmp_path: Path) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text(pdssm("describe", "h100").out.replace("227 KiB", "227 KB"))
    for command in (("compile",), ("lower", "source"), ("doctor",)):
        message = error_line(pdssm(*command, "--target", path))
        assert message.startswith(
            f"{path}: shared_memory must be a number and a unit (B, KiB, MiB)"
        )
        assert message.endswith("got '227 KB'")


def test_a_description_is_lowered_for(pdssm: Command, tmp_path: Path) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text(pdssm("describe", "h100").out.replace("processors = 132", "processors = 7"))
    done = pdssm("lower", "schedule", "-N", 4, "--map-source", "none", "--target", path)
    assert done.status == 0
    assert " on cuda:sm_90, by heuristic" in done.out
