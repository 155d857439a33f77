"""What a process has called, as workloads, and the files of them."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pdssm_compiler
from pdssm_compiler import (
    ArgumentError,
    ScanSpec,
    TuningWarning,
    Workload,
    called,
    flash_pd_scan,
    pd_scan,
    save_workloads,
)
from pdssm_compiler.runtime import plan
from pdssm_compiler.tuning import DIRECTIONS, read_workloads

B, H, N, K = 2, 3, 6, 4


@pytest.fixture(autouse=True)
def _nothing_called(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plan, "_plans", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error", TuningWarning)
        yield


def vectors(length: int, dtype: torch.dtype = torch.complex64) -> list[torch.Tensor]:
    return [torch.rand(B, length, H, N).to(dtype).requires_grad_() for _ in range(2)]


def maps(length: int, dtype: torch.dtype = torch.int32) -> dict[str, torch.Tensor]:
    return {
        "dictionary": torch.zeros(H, K, N, dtype=dtype),
        "selection": torch.zeros(B, length, H, dtype=dtype),
    }


def backward(outputs: Any) -> None:
    sum(each.abs().sum() for each in outputs if each is not None).backward()


@pytest.mark.parametrize("indices", [torch.int32, torch.int64])
def test_a_training_step(indices: torch.dtype) -> None:
    backward(pd_scan(*vectors(20), **maps(20, indices)))
    both = ("forward", "backward")
    assert called() == [Workload(ScanSpec(N, K), B, 20, H, directions=both)]


def test_every_option(tmp_path: Path) -> None:
    start = torch.rand(B, H, N).to(torch.complex64).requires_grad_()
    options: dict[str, Any] = {"initial_state": start, "output_final_state": True}
    backward(pd_scan(*vectors(20), **maps(20), **options))
    logits = (torch.rand(H, K, N, N), torch.rand(B, 9, H, K))
    backward(flash_pd_scan(*(each.requires_grad_() for each in logits), *vectors(9)))
    diagonal, drive = vectors(33)
    packed_drive = torch.view_as_real(drive.detach()).bfloat16()
    places = torch.arange(N, dtype=torch.int32).expand(B, 33, H, N)
    with torch.no_grad():
        row = {"destination": places, "orientation": "row", "map_class": "permutation"}
        pd_scan(diagonal, packed_drive, **row)
        pd_scan(*vectors(5, torch.complex128))
    found = called()
    states = {"initial_state": True, "final_state": True, "directions": ("forward", "backward")}
    token = {"map_source": "token", "map_class": "permutation", "orientation": "row"}
    forward = {"directions": ("forward",)}
    assert found == [
        Workload(ScanSpec(N, K), B, 20, H, **states),
        Workload(ScanSpec(N, K), B, 9, H, directions=("forward", "active")),
        Workload(ScanSpec(N, payload_dtype=torch.bfloat16, **token), B, 33, H, **forward),
        Workload(ScanSpec(N, dtype=torch.complex128, map_source="none"), B, 5, H, **forward),
    ]
    # They are tuned as they are, here or by the command line.
    results = pdssm_compiler.tune(found, effort="none")
    assert {result.problem.text for result in results} == {p.program.text for p in plan.plans()}
    pdssm_compiler.save_workloads(pdssm_compiler.called(), tmp_path / "calls.toml")
    assert read_workloads(tmp_path / "calls.toml", ()) == found


def test_one_of_each_bucket_and_nothing_of_a_warm_call() -> None:
    with torch.no_grad():
        for length in (20, 21, 31, 40, 20):
            pd_scan(*vectors(length))
        pd_scan(*vectors(0))
        pd_scan(*vectors(300)[:1] * 2)
    assert [workload.length for workload in called()] == [20, 40, 300]


def test_what_is_no_workload_is_told() -> None:
    with torch.no_grad():
        one = [tensor[:1] for tensor in vectors(8)]
        pd_scan(*one, cu_seqlens=torch.tensor([0, 3, 8]))
        pd_scan(*vectors(4), reverse=True)
    spec = ScanSpec(N, map_source="none")
    fused = pdssm_compiler.compile(spec, "cpu", readout=lambda x: x.real)
    with torch.no_grad():
        diagonal, drive = vectors(4)
        fused(diagonal=diagonal, drive=drive)
    with pytest.warns(TuningWarning) as told:
        assert called() == []
    messages = [str(each.message) for each in told]
    assert messages[0] == (
        "scan N=6 forward with B=1 T=8 H=3 is no workload: it is of packed sequences; PDSSM_TUNE "
        "tunes such calls as they come"
    )
    for message, way in zip(messages[1:], ("backward", "forward"), strict=True):
        told = f"scan N=6 {way} with B=2 T=4 H=3 is no workload: it has functions of its own, runs"
        assert message.startswith(told)


def test_calls_that_name_their_config_have_none_to_tune() -> None:
    scan = pdssm_compiler.compile(ScanSpec(N, map_source="none"), "cpu", config="torch-tokens")
    with torch.no_grad():
        scan(*vectors(4))
    assert called() == []


SPECS = st.builds(
    ScanSpec,
    st.integers(1, 99),
    st.integers(1, 99),
    chunk_length=st.none() | st.integers(1, 99),
    dtype=st.just(torch.complex64),
    payload_dtype=st.sampled_from([None, torch.bfloat16, torch.float16]),
    map_class=st.sampled_from(["general", "permutation"]),
    orientation=st.sampled_from(["column", "row"]),
)
SIZES = st.integers(1, 1 << 13)
NAMES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"], include_characters=" "))
WORKLOADS = st.builds(
    Workload, SPECS, SIZES, SIZES, SIZES, NAMES,
    st.booleans(), st.booleans(), st.lists(st.sampled_from(DIRECTIONS), min_size=1).map(tuple),
)  # fmt: skip


@given(st.lists(WORKLOADS, min_size=1, max_size=3), st.sampled_from(["w.toml", "w.jsonl"]))
def test_a_file_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, workloads: list[Workload], name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    save_workloads(workloads, path)
    assert read_workloads(path, ()) == workloads


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=f"cannot write workloads to {tmp_path}"):
        save_workloads([], tmp_path)
    with pytest.raises(ArgumentError, match=r"workloads must be a list of Workload, got ScanSpec"):
        save_workloads([ScanSpec(N, map_source="none")], tmp_path / "file.toml")  # type: ignore[list-item]
