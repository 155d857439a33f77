"""``pd_scan``: what it says when a call is wrong, before a kernel runs and from inside one."""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
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
    flash_pd_scan,
    mixture_pd_scan,
    pd_scan,
    reference,
)
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from tests.public.scans import Case, Draw, Tensors, inputs

COMPLEX = torch.zeros(2, 5, 3, 4, dtype=torch.complex64)
MAPS = torch.zeros(3, 6, 4, dtype=torch.int32)
CHOSEN = torch.zeros(2, 5, 3, dtype=torch.int32)
START = torch.zeros(2, 3, 4, dtype=torch.complex64)
GIVEN = {"diagonal": COMPLEX, "drive": COMPLEX}
DICTIONARY = {**GIVEN, "dictionary": MAPS, "selection": CHOSEN}


def quietly(make: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """A tensor of a layout that torch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments)


# Each: the arguments, and pieces of the message.
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "diagonal no tensor": (
        {**GIVEN, "diagonal": [1.0]},
        ("diagonal must be a torch.Tensor, got list; torch.as_tensor makes one",),
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
        (
            "diagonal must have the shape [B, T, H, N]",
            "torch.complex64, got [5, 3, 4]; reshape it",
        ),
    ),
    "pairs without a pair": (
        {**GIVEN, "diagonal": COMPLEX.real},
        (
            "diagonal must have the shape [B, T, H, N, 2]",
            "torch.float32, got [2, 5, 3, 4]; reshape it",
        ),
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
        ("a torch.float16 drive goes with a float32 diagonal, got torch.complex128; convert one",),
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
        (
            "destination is given instead of dictionary and selection, not with them",
            "leave out one or the others",
        ),
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
        ("dictionary must be a torch.Tensor, got str; torch.as_tensor makes one",),
    ),
    "selection dtype": (
        {**DICTIONARY, "selection": CHOSEN.float()},
        (
            "selection has the unsupported dtype torch.float32",
            "uint8, int16, int32 or int64, by .to()",
        ),
    ),
    "dictionary rank": (
        {**DICTIONARY, "dictionary": MAPS[0]},
        ("dictionary must have the shape [H, K, N], got [6, 4]; reshape it",),
    ),
    "selection rank": (
        {**DICTIONARY, "selection": CHOSEN[0]},
        ("selection must have the shape [B, T, H], got [5, 3]; reshape it",),
    ),
    "destination rank": (
        {**GIVEN, "destination": CHOSEN},
        ("destination must have the shape [B, T, H, N], got [2, 5, 3]; reshape it",),
    ),
    "initial state no tensor": (
        {**GIVEN, "initial_state": 0},
        ("initial_state must be a torch.Tensor, got int; torch.as_tensor makes one",),
    ),
    "initial state rank": (
        {**GIVEN, "initial_state": COMPLEX},
        ("initial_state must have the shape [B, H, N]", "got [2, 5, 3, 4]", "reshape it"),
    ),
    "initial state pairs": (
        {**GIVEN, "initial_state": START.real},
        (
            "initial_state must have the shape [B, H, N, 2]",
            "torch.float32, got [2, 3, 4]; reshape it",
        ),
    ),
    # From here on by the sizes.
    "drive size": (
        {**GIVEN, "drive": COMPLEX[:, :4]},
        (
            "drive must have the shape [B, T, H, 4] = [2, 5, 3, 4], got [2, 4, 3, 4]",
            "; make it agree with diagonal",
        ),
    ),
    "drive state size": (
        {**GIVEN, "drive": COMPLEX[..., :3]},
        (
            "drive must have the shape [B, T, H, 4] = [2, 5, 3, 4], got [2, 5, 3, 3]",
            "; make it agree with diagonal",
        ),
    ),
    "dictionary heads": (
        {**DICTIONARY, "dictionary": MAPS[:2]},
        (
            "dictionary must have the shape [H, 6, 4] = [3, 6, 4], got [2, 6, 4]",
            "; make it agree with diagonal",
        ),
    ),
    "selection length": (
        {**DICTIONARY, "selection": CHOSEN[:, :1]},
        (
            "selection must have the shape [B, T, H] = [2, 5, 3], got [2, 1, 3]",
            "; make it agree with diagonal",
        ),
    ),
    "initial state size": (
        {**GIVEN, "initial_state": START[:1]},
        (
            "initial_state must have the shape [B, H, 4] = [2, 3, 4], got [1, 3, 4]",
            "; make it agree with diagonal",
        ),
    ),
    "initial state dtype": (
        {**GIVEN, "initial_state": START.to(torch.complex128)},
        ("initial_state must be torch.complex64, got torch.complex128; convert it with .to(",),
    ),
    "sparse": (
        {**GIVEN, "drive": COMPLEX.to_sparse()},
        ("drive must be a dense tensor, got a torch.sparse_coo one", "with .to_dense()"),
    ),
    "sparse rows": (
        {**DICTIONARY, "selection": quietly(CHOSEN.to_sparse_csr)},
        ("selection must be a dense tensor, got a torch.sparse_csr one", "with .to_dense()"),
    ),
    "MKL-DNN": (
        {**GIVEN, "diagonal": torch.zeros(2, 5, 3, 4, 2).to_mkldnn()},
        ("diagonal must be a dense tensor, got a torch._mkldnn one", "with .to_dense()"),
    ),
    "nested": (
        {**GIVEN, "diagonal": quietly(torch.nested.nested_tensor, [COMPLEX.real[0]])},
        ("diagonal must be a dense tensor, got a nested one; pad it",),
    ),
    "NumPy's array": (
        {**GIVEN, "drive": COMPLEX.numpy()},
        ("drive must be a torch.Tensor, got ndarray; torch.as_tensor makes one",),
    ),
    "map class of several": (
        {**GIVEN, "map_class": np.array(["general", "identity"])},
        ("map_class must be one of 'general', 'permutation', 'identity'; got array(",),
    ),
    "orientation of several": (
        {**GIVEN, "orientation": np.array(["row", "column"])},
        ("orientation must be one of 'column', 'row'; got array(",),
    ),
    "a final state of several": (
        {**GIVEN, "output_final_state": np.array([True, False])},
        ("output_final_state must be True or False, got ndarray; pass one of the two",),
    ),
    "a word for a way of time": (
        {**GIVEN, "reverse": "no"},
        ("reverse must be True or False, got 'no'; pass one of the two",),
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
    for scan in (pd_scan, reference.pd_scan):
        with pytest.raises(ArgumentError) as caught:
            scan(**arguments)
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


@pytest.mark.parametrize("name", DICTIONARY)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("differentiated", [False, True])
def test_a_sparse_tensor_after_a_dense_one(
    name: str, layout: torch.layout, differentiated: bool
) -> None:
    given = dict(DICTIONARY)
    given["diagonal"] = COMPLEX.clone().requires_grad_(differentiated)
    pd_scan(**given)  # so the call is one that was seen before
    given[name] = given[name].detach().to_sparse(layout=layout)
    if name == "diagonal":
        given["drive"] = COMPLEX.clone().requires_grad_(differentiated)
    with pytest.raises(ArgumentError, match=f"{name} must be a dense tensor, got a torch.sparse"):
        pd_scan(**given)


@pytest.mark.parametrize("scan", [pd_scan, reference.pd_scan])
@pytest.mark.parametrize("name", ["drive", "selection"])
def test_tensors_without_memory(scan: Any, name: str) -> None:
    """A kernel would read what is not there: on a GPU that is the end of the context."""
    message = f"{name} has no memory: its storage was freed, or it is zeros that were never"
    freed = DICTIONARY[name].clone()
    freed.untyped_storage().resize_(0)
    for tensor in (freed, torch._efficientzerotensor(freed.shape, dtype=freed.dtype)):
        with pytest.raises(ArgumentError, match=message):
            scan(**DICTIONARY | {name: tensor})


def test_nested_tensors_beside_logits() -> None:
    nested = quietly(torch.nested.nested_tensor, [torch.zeros(3, 2, 4)] * 2)
    logits = (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 3), torch.zeros(2, 3, 2, 4))
    for scan in (flash_pd_scan, mixture_pd_scan, reference.flash_pd_scan):
        with pytest.raises(ArgumentError, match="drive must be a dense tensor, got a nested one"):
            scan(*logits[:2], logits[2].to(torch.complex64), nested)


@pytest.mark.parametrize("changed", [{"selector_logits": 3}, {"diagonal": torch.zeros(2, 5)}])
def test_the_reference_by_logits_says_what_is_wrong(changed: dict[str, Any]) -> None:
    vectors = torch.zeros(2, 5, 2, 4, dtype=torch.complex64)
    logits = {
        "dictionary_logits": torch.zeros(2, 3, 4, 4),
        "selector_logits": torch.zeros(2, 5, 2, 3),
    }
    with pytest.raises(ArgumentError, match=f"{next(iter(changed))} must"):
        reference.flash_pd_scan(**logits | {"diagonal": vectors, "drive": vectors} | changed)


def test_numpys_scalars_are_options_like_pythons() -> None:
    plain = pd_scan(**DICTIONARY, orientation="row", output_final_state=True)
    options = {"orientation": np.str_("row"), "output_final_state": np.bool_(True)}
    for mine, theirs in zip(pd_scan(**DICTIONARY, **options), plain, strict=True):
        assert torch.equal(mine, theirs)


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
        for scan in (pd_scan, reference.pd_scan):
            with pytest.raises(IndexRangeError) as caught:
                scan(**tensors)
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
        "dictionary": ("dictionary", (2, 1), r"\[h=2, k=1\]"),
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
        with pytest.raises(
            PromiseError, match=f"{name} is not the {map_class} that map_class promised; give maps"
        ):
            reference.pd_scan(**tensors, **case.options)


@pytest.mark.parametrize("value", [-1, 4, 2**31 - 1])
@pytest.mark.parametrize("map_class", ["permutation", "identity"])
@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("source", ["token", "dictionary"])
def test_an_index_out_of_range_is_no_broken_promise(
    source: str, orientation: str, map_class: str, value: int
) -> None:
    case = Case(4, source, orientation, map_class)
    tensors = inputs(case, Draw(2, 5, 3, "identity", "disk", 0))
    name, at = {"token": ("destination", (1, 2, 2)), "dictionary": ("dictionary", (2, 1))}[source]
    tensors[name][(*at, 3)] = value
    for grad in (False, True):
        tensors["drive"].requires_grad_(grad)
        for scan in (pd_scan, reference.pd_scan):
            with pytest.raises(IndexRangeError) as caught:
                scan(**tensors, **case.options)
            assert str(caught.value) == f"{name}{[*at, 3]} = {value}: entries must lie in [0, 4)"


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


META = {name: tensor.to("meta") for name, tensor in DICTIONARY.items()}


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("drive", META["drive"][:, :4], "drive must have the shape"),
        ("dictionary", META["dictionary"][:2], "dictionary must have the shape"),
        ("selection", META["selection"][:1], "selection must have the shape"),
        ("initial_state", START.to("meta", torch.complex128), "must be torch.complex64, got"),
        ("initial_state", START, "all tensors must be on one device"),
    ],
)
def test_meta_tensors_are_checked(name: str, wrong: torch.Tensor, message: str) -> None:
    for grad in (False, True):
        given = {**META, "diagonal": META["diagonal"].clone().requires_grad_(grad)}
        with pytest.raises(ArgumentError, match=message):
            pd_scan(**{**given, name: wrong})


def test_meta_tensors_give_shapes() -> None:
    tensor = torch.zeros(1, 3, 2, 4, dtype=torch.complex64, device="meta")
    states, final = pd_scan(tensor, tensor, output_final_state=True)
    assert states.device.type == final.device.type == "meta"
    assert states.shape == tensor.shape
    assert final.shape == (1, 2, 4)
