"""``pd_scan``: what it says when a call is wrong, before a kernel runs and from inside one."""

import importlib.util
from typing import Any

import pytest
import torch

from pdssm_compiler import (
    ArgumentError,
    BackendUnavailableError,
    IndexRangeError,
    PromiseError,
    ScanSpec,
    compile,
    explain,
    pd_scan,
)
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from tests.public.scans import Case, Draw, Tensors, inputs

COMPLEX = torch.zeros(2, 5, 3, 4, dtype=torch.complex64)
MAPS = torch.zeros(3, 6, 4, dtype=torch.int32)
CHOSEN = torch.zeros(2, 5, 3, dtype=torch.int32)
START = torch.zeros(2, 3, 4, dtype=torch.complex64)
GIVEN = {"diagonal": COMPLEX, "drive": COMPLEX}
DICTIONARY = {**GIVEN, "dictionary": MAPS, "selection": CHOSEN}

# Each: the arguments, and pieces of the message.
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "diagonal no tensor": (
        {**GIVEN, "diagonal": [1.0]},
        ("diagonal must be a torch.Tensor, got list",),
    ),
    "diagonal dtype": (
        {**GIVEN, "diagonal": COMPLEX.real.half()},
        ("diagonal has the unsupported dtype torch.float16", "float32 or float64 pairs [..., 2]"),
    ),
    "drive dtype": (
        {**GIVEN, "drive": CHOSEN},
        ("drive has the unsupported dtype torch.int32", "use torch.complex64"),
    ),
    "diagonal rank": (
        {**GIVEN, "diagonal": COMPLEX[0]},
        ("diagonal must have the shape [B, T, H, N]", "torch.complex64, got [5, 3, 4]"),
    ),
    "pairs without a pair": (
        {**GIVEN, "diagonal": COMPLEX.real},
        ("diagonal must have the shape [B, T, H, N, 2]", "torch.float32, got [2, 5, 3, 4]"),
    ),
    "payload without a pair": (
        {**GIVEN, "drive": COMPLEX.real.bfloat16()},
        ("drive must have the shape [B, T, H, N, 2]", "torch.bfloat16"),
    ),
    "two precisions": (
        {**GIVEN, "drive": COMPLEX.to(torch.complex128)},
        ("diagonal and drive must have one precision", "complex64 and torch.complex128", ".to()"),
    ),
    "payload with a double diagonal": (
        {"diagonal": COMPLEX.to(torch.complex128), "drive": torch.zeros(2, 5, 3, 4, 2).half()},
        ("a torch.float16 drive goes with a float32 diagonal, got torch.complex128",),
    ),
    "no states": (
        {"diagonal": COMPLEX[..., :0], "drive": COMPLEX[..., :0]},
        ("the state size N is 0", "at least one state, [B, T, H, N]"),
    ),
    "map class": (
        {**GIVEN, "map_class": "bijection"},
        ("map_class must be one of 'general', 'permutation', 'identity'; got 'bijection'",),
    ),
    "orientation": (
        {**GIVEN, "orientation": "rows"},
        ("orientation must be one of 'column', 'row'; got 'rows'",),
    ),
    "both sources": (
        {**DICTIONARY, "destination": COMPLEX.real.int()},
        ("destination is given instead of dictionary and selection, not with them",),
    ),
    "no selection": (
        {**GIVEN, "dictionary": MAPS},
        ("dictionary is given without selection; a scan needs both or neither",),
    ),
    "no dictionary": (
        {**GIVEN, "selection": CHOSEN},
        ("selection is given without dictionary; a scan needs both or neither",),
    ),
    "no maps": (
        {**DICTIONARY, "dictionary": MAPS[:, :0]},
        ("dictionary has no maps: its shape is [H, K, N] with K of at least 1",),
    ),
    "dictionary no tensor": (
        {**DICTIONARY, "dictionary": "maps"},
        ("dictionary must be a torch.Tensor, got str",),
    ),
    "selection dtype": (
        {**DICTIONARY, "selection": CHOSEN.float()},
        ("selection has the unsupported dtype torch.float32", "uint8, int16, int32 or int64"),
    ),
    "dictionary rank": (
        {**DICTIONARY, "dictionary": MAPS[0]},
        ("dictionary must have the shape [H, K, N], got [6, 4]",),
    ),
    "selection rank": (
        {**DICTIONARY, "selection": CHOSEN[0]},
        ("selection must have the shape [B, T, H], got [5, 3]",),
    ),
    "destination rank": (
        {**GIVEN, "destination": CHOSEN},
        ("destination must have the shape [B, T, H, N], got [2, 5, 3]",),
    ),
    "initial state no tensor": (
        {**GIVEN, "initial_state": 0},
        ("initial_state must be a torch.Tensor, got int",),
    ),
    "initial state rank": (
        {**GIVEN, "initial_state": COMPLEX},
        ("initial_state must have the shape [B, H, N]", "got [2, 5, 3, 4]"),
    ),
    "initial state pairs": (
        {**GIVEN, "initial_state": START.real},
        ("initial_state must have the shape [B, H, N, 2]", "torch.float32, got [2, 3, 4]"),
    ),
    # From here on by the sizes.
    "drive size": (
        {**GIVEN, "drive": COMPLEX[:, :4]},
        ("drive must have the shape [B, T, H, 4] = [2, 5, 3, 4], got [2, 4, 3, 4]",),
    ),
    "drive state size": (
        {**GIVEN, "drive": COMPLEX[..., :3]},
        ("drive must have the shape [B, T, H, 4] = [2, 5, 3, 4], got [2, 5, 3, 3]",),
    ),
    "dictionary heads": (
        {**DICTIONARY, "dictionary": MAPS[:2]},
        ("dictionary must have the shape [H, 6, 4] = [3, 6, 4], got [2, 6, 4]",),
    ),
    "selection length": (
        {**DICTIONARY, "selection": CHOSEN[:, :1]},
        ("selection must have the shape [B, T, H] = [2, 5, 3], got [2, 1, 3]",),
    ),
    "initial state size": (
        {**GIVEN, "initial_state": START[:1]},
        ("initial_state must have the shape [B, H, 4] = [2, 3, 4], got [1, 3, 4]",),
    ),
    "initial state dtype": (
        {**GIVEN, "initial_state": START.to(torch.complex128)},
        ("initial_state must be torch.complex64, got torch.complex128",),
    ),
    "two devices": (
        {**GIVEN, "drive": COMPLEX.to("meta")},
        ("all tensors must be on one device: ", "diagonal on cpu, drive on meta"),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("differentiated", [False, True])
def test_arguments(wrong: str, differentiated: bool) -> None:
    arguments, pieces = WRONG[wrong]
    arguments = dict(arguments)
    diagonal = arguments["diagonal"]
    if differentiated and isinstance(diagonal, torch.Tensor):
        arguments["diagonal"] = diagonal.detach().clone().requires_grad_()
    with pytest.raises(ArgumentError) as caught:
        pd_scan(**arguments)
    assert isinstance(caught.value, ValueError)
    for piece in pieces:
        assert piece in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("source", ["none", "token", "dictionary"])
def test_empty_calls(source: str, shape: tuple[int, int, int]) -> None:
    batch, length, heads = shape
    tensors = inputs(Case(4, source), Draw(batch, length, heads, "random", "disk", 0))
    for name in ("diagonal", "drive", "initial_state"):
        tensors[name].requires_grad_()
    states, final = pd_scan(**tensors, output_final_state=True)
    assert states.shape == (batch, length, heads, 4)
    assert torch.equal(final, tensors["initial_state"])
    (states.abs().sum() + final.real.sum()).backward()
    assert tensors["diagonal"].grad.shape == tensors["diagonal"].shape
    assert torch.equal(tensors["initial_state"].grad, torch.ones_like(final))


def wrong_entry(source: str, name: str, at: tuple[int, ...], value: int) -> Tensors:
    tensors = inputs(Case(4, source), Draw(2, 5, 3, "random", "disk", 0))
    tensors[name][at] = value
    return tensors


@pytest.mark.parametrize("value", [-1, 4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("grad", [False, True])
def test_index_out_of_range(value: int, grad: bool) -> None:
    for source, name, at, bound in (
        ("dictionary", "dictionary", (2, 1, 3), 4),
        ("token", "destination", (1, 4, 2, 0), 4),
        ("dictionary", "selection", (1, 3, 2), 3),
    ):
        tensors = wrong_entry(source, name, at, value)
        tensors["drive"].requires_grad_(grad)
        with pytest.raises(IndexRangeError) as caught:
            pd_scan(**tensors)
        want = f"{name}{list(at)} = {value}: entries must lie in [0, {bound})"
        assert str(caught.value) == want
        assert isinstance(caught.value, IndexError)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_index_out_of_range_in_other_dtypes(dtype: torch.dtype) -> None:
    tensors = wrong_entry("token", "destination", (0, 0, 0, 0), 0)
    tensors["destination"] = tensors["destination"].to(dtype)
    tensors["destination"][1, 2, 1, 3] = torch.iinfo(dtype).max
    with pytest.raises(
        IndexRangeError, match=rf"destination\[1, 2, 1, 3\] = {torch.iinfo(dtype).max}: "
    ):
        pd_scan(**tensors)


def test_a_wide_index_does_not_wrap_into_range() -> None:
    tensors = wrong_entry("token", "destination", (0, 0, 0, 0), 0)
    tensors["destination"] = tensors["destination"].long()
    tensors["destination"][1, 2, 1, 3] = 1 << 32
    with pytest.raises(IndexRangeError, match="4294967296"):
        pd_scan(**tensors)
    chosen = wrong_entry("dictionary", "selection", (0, 0, 0), 0)
    chosen["selection"] = chosen["selection"].long()
    chosen["selection"][1, 2, 1] = 1 << 32
    with pytest.raises(IndexRangeError, match="4294967296"):
        pd_scan(**chosen)


def test_an_error_is_told_once() -> None:
    with pytest.raises(IndexRangeError):
        pd_scan(**wrong_entry("token", "destination", (0, 0, 0, 0), 9))
    pd_scan(**wrong_entry("token", "destination", (0, 0, 0, 0), 0))


@pytest.mark.parametrize("map_class", ["permutation", "identity"])
@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("source", ["token", "dictionary"])
def test_broken_promises(source: str, orientation: str, map_class: str) -> None:
    case = Case(4, source, orientation, map_class)
    tensors = inputs(case, Draw(2, 5, 3, "identity", "disk", 0))
    pd_scan(**tensors, **case.options)
    name, at, place = {
        "token": ("destination", (1, 4, 2), r"\[b=1, t=4, h=2\]"),
        "dictionary": ("dictionary", (2, 1), r"\[k=1, h=2\]"),
    }[source]
    wrong = [1, 0, 2, 3] if map_class == "identity" else [0, 1, 1, 3]
    tensors[name][at] = torch.tensor(wrong, dtype=torch.int32)
    for grad in (False, True):
        tensors["drive"].requires_grad_(grad)
        with pytest.raises(
            PromiseError,
            match=rf"{name}{place} is not the {map_class} that map_class promised; give maps",
        ):
            pd_scan(**tensors, **case.options)


@pytest.mark.parametrize("package", ["tvm", "tvm_ffi", "tvm_ffi_orcjit"])
def test_a_missing_backend(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else found(name)
    )
    size = 41 + len(package)  # of no other test, so no kernel is there yet
    tensor = torch.zeros(1, 1, 1, size, dtype=torch.complex64)
    assert torch.equal(pd_scan(tensor, tensor)[0], tensor)
    missing = f"the Python package {package} is missing: install pdssm-compiler"
    ran = explain()[-1]
    assert ran.template == "torch-chunks"
    assert ran.reason.startswith(f"heuristic: {missing}")
    assert f", by heuristic: {missing}" in str(ran)
    with pytest.raises(BackendUnavailableError) as caught:
        compile(ScanSpec(size, map_source="none"), config=CpuRowsConfig(1))
    assert missing in str(caught.value)


def test_meta_tensors_give_shapes() -> None:
    tensor = torch.zeros(1, 3, 2, 4, dtype=torch.complex64, device="meta")
    states, final = pd_scan(tensor, tensor, output_final_state=True)
    assert states.device.type == final.device.type == "meta"
    assert states.shape == tensor.shape
    assert final.shape == (1, 2, 4)
