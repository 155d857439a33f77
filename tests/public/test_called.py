"""What a process has called, as workloads, and the files of them."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pdssm_compiler
from pdssm_compiler import (
    ArgumentError,
    ProgramWorkload,
    ScanSpec,
    TuningWarning,
    Workload,
    called,
    flash_pd_scan,
    mixture_pd_scan,
    pd_scan,
    save_workloads,
)
from pdssm_compiler.runtime import plan
from pdssm_compiler.workload_files import read_workloads
from pdssm_compiler.workloads import DIRECTIONS

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
    assert texts(found) == {p.program.text for p in plan.plans()}
    pdssm_compiler.save_workloads(pdssm_compiler.called(), tmp_path / "calls.toml")
    assert read_workloads(tmp_path / "calls.toml", ()) == found


def test_one_of_each_bucket_and_nothing_of_a_warm_call() -> None:
    with torch.no_grad():
        for length in (20, 21, 31, 40, 20):
            pd_scan(*vectors(length))
        pd_scan(*vectors(0))
        pd_scan(*vectors(300)[:1] * 2)
    assert [workload.length for workload in called()] == [20, 40, 300]


def texts(workloads: list[Any]) -> set[str]:
    """The programs that tuning some workloads tunes."""
    return {r.problem.text for r in pdssm_compiler.tune(workloads, effort="none")}


def test_packed_reversed_and_dense(tmp_path: Path) -> None:
    """Whatever ran is tuned, and tuned as it ran."""
    one = [tensor[:1].detach().requires_grad_() for tensor in vectors(8)]
    offsets = torch.tensor([0, 3, 8])
    backward(pd_scan(*one, cu_seqlens=offsets))
    with torch.no_grad():
        pd_scan(*vectors(4), reverse=True)
    # More maps than a kernel of the scores holds, and tokens that fill no row of it.
    size, length = 11, 21
    logits = (torch.rand(H, size, N, N), torch.rand(B, length, H, size))
    given = [each.requires_grad_() for each in (*logits, *vectors(length))]
    backward(flash_pd_scan(*given, surrogate="dense"))
    found = called()
    none = ScanSpec(N, map_source="none")
    assert found == [
        Workload(none, 1, 8, H, directions=("forward", "backward"), packed=True),
        Workload(none, B, 4, H, directions=("forward",), reverse=True),
        Workload(ScanSpec(N, size), B, length, H, directions=("forward", "dense")),
        # Of the tokens that are left over.
        found[-1],
    ]
    assert isinstance(found[-1], ProgramWorkload)
    assert (found[-1].batch, found[-1].length) == (B * length % 16, 1)
    assert texts(found) == {p.program.text for p in plan.plans()}
    for name in ("calls.toml", "calls.jsonl"):
        pdssm_compiler.save_workloads(found, tmp_path / name)
        assert read_workloads(tmp_path / name, ()) == found


@pytest.mark.parametrize(("orientation", "noise"), [("column", 0.5), ("row", 0.0)])
def test_a_mixture(orientation: str, noise: float) -> None:
    given = [torch.rand(H, K, N, N), torch.rand(B, 9, H, K), *vectors(9)]
    leaves = [each.detach().requires_grad_() for each in given]
    backward(mixture_pd_scan(*leaves, orientation=orientation, noise=noise))
    found = called()
    mixed = ScanSpec(N, K, map_source="token", orientation=orientation)  # type: ignore[arg-type]
    maps = ("mixture", "mixture_gradient")
    scan = ScanSpec(N, map_source="token", orientation=orientation)  # type: ignore[arg-type]
    assert found == [
        Workload(mixed, 1, B * 9, H, directions=maps, noise=bool(noise)),
        Workload(scan, B, 9, H, directions=("forward", "dense")),
    ]
    assert texts(found) == {p.program.text for p in plan.plans()}
    # As one would say it beforehand.
    said = Workload(mixed, B, 9, H, directions=("mixture", "forward", "dense", maps[1]))
    assert texts([replace(said, noise=bool(noise))]) == texts(found)


def test_functions_of_ones_own_and_some_gradients_are_programs(tmp_path: Path) -> None:
    spec = ScanSpec(N, map_source="none")
    fused = pdssm_compiler.compile(spec, "cpu", readout=lambda x: x.real)
    diagonal, drive = vectors(4)
    with torch.no_grad():
        fused(diagonal=diagonal, drive=drive)
    backward(pd_scan(diagonal.detach(), drive))
    read_out, scan, part = (each.program.text for each in plan.plans())
    found = called()
    assert found == [
        Workload(spec, B, 4, H, directions=("forward",)),
        ProgramWorkload(read_out, B, 4, H),
        ProgramWorkload(part, B, 4, H),
    ]
    pdssm_compiler.save_workloads(found, tmp_path / "calls.toml")
    assert f"program = '''\n{read_out}'''" in (tmp_path / "calls.toml").read_text()
    assert read_workloads(tmp_path / "calls.toml", ()) == found
    assert texts(found) == {read_out, scan, part}
    (problem,) = found[1].problems(torch.device("cpu"))
    assert str(problem) == f"B=2 T=4 H=3: {read_out.splitlines()[0]} forward"


def test_what_is_no_workload() -> None:
    with pytest.raises(ArgumentError, match=r"program is not the text of one: .*"):
        ProgramWorkload("scan", 1, 1, 1)
    with pytest.raises(ArgumentError, match="program must be text, got 3"):
        ProgramWorkload(3, 1, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="heads must be an int of at least 1, got 0"):
        ProgramWorkload("scan", 1, 1, 0)
    none, token = ScanSpec(N, map_source="none"), ScanSpec(N, map_source="token")
    with pytest.raises(ArgumentError, match="so batch must be 1, got 2; give length all tokens"):
        Workload(none, 2, 8, H, packed=True)
    cpu = torch.device("cpu")
    for spec, direction, told in (
        (none, "dense", "is of scans whose maps are chosen"),
        (token, "active", "is of flash_pd_scan, whose maps are in a dictionary, not of 'token'"),
        (token, "mixture", "of dictionary_size matrices, not of 'token' maps of None; leave it"),
        (ScanSpec(N, K), "mixture_gradient", "not of 'dictionary' maps of 4"),
    ):
        with pytest.raises(ArgumentError, match=told):
            list(Workload(spec, 1, 2, 3, directions=(direction,)).problems(cpu))
    with pytest.raises(ArgumentError, match="is neither of packed sequences nor in reverse"):
        list(Workload(none, 1, 2, 3, directions=("step",), reverse=True).problems(cpu))


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
    st.booleans(), st.just(False), st.booleans(),
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
