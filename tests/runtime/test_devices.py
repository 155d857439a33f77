"""Targets as a user names them: as text or as a device, known or refused with what is known."""

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pdssm_compiler.runtime import devices
from pdssm_compiler.runtime.devices import DEVICE_TYPES, find_target, free_memory, target_of
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.schedules.descriptions import DescriptionError
from pdssm_compiler.schedules.target import (
    Target,
    UnknownTargetError,
    cpu_target,
    describe,
    named_target,
    named_targets,
)

NAMES = ", ".join(["cpu", "cuda", "mps", "xpu", *named_targets()])
KNOWN = f"{NAMES}, and the path of a description, ending in .toml"


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "mps", "mps:0", "xpu"])
def test_text_and_device_are_the_same(name: str) -> None:
    device = torch.device(name)
    assert find_target(name) == find_target(device) == target_of(device)


@pytest.mark.parametrize("name", ["meta", "hpu", "vulkan"])
def test_devices_that_run_no_scan(name: str) -> None:
    for named in (name, torch.device(name)):
        with pytest.raises(UnknownTargetError) as caught:
            find_target(named)
        assert str(caught.value) == f"unknown target {name!r}; known targets: {KNOWN}"


@pytest.mark.parametrize("name", ["", "CPU", "sm_99", "sm_90 ", "cuda:x", "cuda:-1", "tpu"])
def test_text_that_names_nothing(name: str) -> None:
    with pytest.raises(UnknownTargetError) as caught:
        find_target(name)
    assert str(caught.value) == f"unknown target {name!r}; known targets: {KNOWN}"


@pytest.mark.parametrize("named", [b"cpu", 0, True, 2.5, ["cpu"], np.zeros(99)], ids=type)
def test_what_is_neither_text_nor_a_device(named: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        find_target(named)
    message = str(caught.value)
    assert message.startswith(
        "target must be a torch device, a GPU's name such as 'sm_90', or the path of a "
        "description, got "
    )
    assert message.endswith("; pass a str, a torch.device or a Path")
    assert "\n" not in message


def test_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, seen in ((0, "none"), (2, "cuda:0, cuda:1")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        for named in ("cuda:2", torch.device("cuda:2")):
            with pytest.raises(ArgumentError) as caught:
                find_target(named)
            assert str(caught.value) == (
                f"target 'cuda:2' needs a GPU that torch can see, and it sees {seen}; name an "
                f"architecture such as 'sm_90', or a file that describes a GPU, to compile for "
                f"one that is absent"
            )


def test_a_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "target_of", lambda device: Target("cuda", str(device)))
    assert find_target("cuda:0") == Target("cuda", "cuda:0")
    assert find_target(None) == find_target("cuda") == Target("cuda", "cuda")


def test_architectures_and_targets() -> None:
    for name in named_targets():
        assert find_target(name) == named_target(name)
        assert find_target(named_target(name)) == named_target(name)


def test_a_described_gpu(tmp_path: Path) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text(describe(named_target("h200")))
    assert find_target(path) == find_target(str(path)) == find_target("h200")
    with pytest.raises(DescriptionError, match=r"none\.toml: the description cannot be read"):
        find_target(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("says_bandwidth", [True, False])
def test_what_torch_says_of_a_gpu(monkeypatch: pytest.MonkeyPatch, says_bandwidth: bool) -> None:
    said: dict[str, Any] = {
        "major": 9, "minor": 0, "warp_size": 32, "multi_processor_count": 132,
        "shared_memory_per_block_optin": 232448, "name": "NVIDIA H100 80GB HBM3",
    }  # fmt: skip
    if says_bandwidth:
        said |= {"memory_clock_rate": 2_619_000, "memory_bus_width": 5120}
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(**said)
    )
    found = target_of.__wrapped__(torch.device("cuda", 0))
    rate = 3_352_320_000_000 if says_bandwidth else 0
    assert found == replace(named_target("h100"), bandwidth=rate)


def test_every_known_type_of_device_has_the_operator() -> None:
    for type_ in DEVICE_TYPES:
        key = type_.upper()
        assert torch._C._dispatch_has_kernel_for_dispatch_key("pdssm_compiler::scan", key)
    assert find_target("cpu") == cpu_target()


def test_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert 1 << 20 < free < 1 << 50
    assert free_memory(torch.device("mps")) is None
    # Where the system does not say.
    monkeypatch.setattr(Path, "read_text", lambda path: "MemTotal: 3 kB\n")
    assert free_memory(torch.device("cpu")) is None
