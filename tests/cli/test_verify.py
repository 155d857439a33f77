"""``pdssm-compiler verify``: right kernels pass, wrong ones do not."""

from typing import Any

import pytest
import torch

from pdssm_compiler import ScanSpec, explain, pd_scan, verification
from pdssm_compiler.cli.verify import LENGTHS
from tests.cli.conftest import Command, error_line


def test_one_specification(pdssm: Command) -> None:
    done = pdssm("verify", "-N", 7, "-K", 3, "--orientation", "row", "--seeds", 2)
    assert done.status == 0
    assert "N=7 K=3 dictionary general row complex64" in done.out
    assert "│ ok" in done.out


def test_sizes_of_ones_own(pdssm: Command) -> None:
    done = pdssm("verify", "-N", 3, "-K", 2, "--seeds", 1, "-B", 1, "-T", 300, "-H", 5)
    assert done.status == 0
    assert "B=1 T=300 H=5" in done.out
    tensor = torch.zeros(1, 300, 5, 3, dtype=torch.complex64)
    maps = {
        "dictionary": torch.zeros(5, 2, 3, dtype=torch.int32),
        "selection": torch.zeros(1, 300, 5, dtype=torch.int32),
    }
    before = explain()
    options = {"initial_state": tensor[:, 0], "output_final_state": True}
    pd_scan(tensor, tensor, **maps, **options)
    # It has run what calls of these sizes do.
    assert explain() == before
    told = error_line(pdssm("verify", "-N", 3, "-K", 2, "-T", 10**12))
    assert told.startswith("the reference of B=2 T=1000000000000 H=3 N=3 needs about ")
    assert told.endswith(" are free on cpu; choose smaller sizes")
    told = error_line(pdssm("verify", "--packed", "-B", 10**12))
    assert told.startswith("the reference of B=1000000000000 T=37 H=3 N=1 needs about ")


def test_as_many_packed_sequences_as_are_told(
    pdssm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def noted(spec: ScanSpec, *given: Any) -> verification.Verification:
        seen.append(given)
        return verification.Verification(spec, 0.1, 0.1)

    monkeypatch.setattr(verification, "verify_spec", noted)
    for sizes in ((), ("-B", 3, "-T", 9), ("-T", 9, "-H", 2)):
        assert pdssm("verify", "-N", 3, "--seeds", 1, "--packed", *sizes).status == 0
    told = [(sizes[2], lengths) for _, _, sizes, _, lengths, _ in seen]
    assert told == [(3, LENGTHS), (3, (9, 9, 9)), (2, (9, 9))]


def test_packed_sequences_in_reverse(pdssm: Command) -> None:
    options = ("-N", 3, "-K", 2, "--template", "torch-tokens", "--seeds", 1)
    done = pdssm("verify", *options, "--packed", "--reverse")
    assert done.status == 0
    assert "│ ok" in done.out
    ran = [kernel.program for kernel in explain() if kernel.template == "torch-tokens"]
    assert any("keep" in text and text.startswith("scan N=3 backward") for text in ran)


def test_a_set(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [ScanSpec(3, 2), ScanSpec(5, map_source="none")]
    monkeypatch.setattr(verification, "default_specs", lambda: specs)
    done = pdssm("verify", "--seeds", 1)
    assert done.status == 0
    assert "N=3 K=2 dictionary general column complex64" in done.out
    assert "N=5 none complex64" in done.out


def test_a_wrong_kernel(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_and_a_half(spec: ScanSpec, *_: Any, **__: Any) -> verification.Verification:
        return verification.Verification(spec, 0.1, 1.5)

    monkeypatch.setattr(verification, "verify_spec", one_and_a_half)
    done = pdssm("verify", "-N", 3)
    assert done.status == 1
    assert "1.500" in done.out
    assert "│ WRONG" in done.out
    assert "1 of 1 specifications are wrong" in done.out


def test_a_template_by_name(pdssm: Command) -> None:
    before = len(explain())
    asked = ("verify", "-N", 6, "-K", 5, "--seeds", 1, "--device", "cpu", "--template")
    done = pdssm(*asked, "torch-chunks")
    assert done.status == 0
    assert "│ ok" in done.out
    ran = explain()[before:]
    assert {(kernel.template, kernel.reason) for kernel in ran} == {
        ("torch-chunks", "explicit template")
    }
    assert error_line(pdssm(*asked, "fast")).startswith("unknown template 'fast'; there are cpu-")
    assert error_line(pdssm(*asked, "triton-rows")).startswith("triton-rows cannot run on cpu:")


def test_devices_that_are_not_there(pdssm: Command) -> None:
    assert error_line(pdssm("verify", "--device", "gpu0")).startswith("unknown device 'gpu0'; use")
    assert error_line(pdssm("verify", "--device", "cuda:99")).startswith("torch sees no device")
    assert error_line(pdssm("verify", "--device", "meta")).startswith("no backend for the device")
