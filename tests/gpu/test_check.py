"""Checks that fail on a GPU: recorded, raised later, and the context lives on."""

import pytest
import torch

import pdssm_compiler
from tests.public.scans import Case, Draw, inputs

DRAW = Draw(2, 9, 3, "permutation", "disk", 0)


def _call(device: torch.device, source: str = "dictionary", **changes: torch.Tensor):
    tensors = {n: t.to(device) for n, t in inputs(Case(8, source), DRAW).items()}
    return {**tensors, **{name: tensor.to(device) for name, tensor in changes.items()}}


def _wrong(tensor: torch.Tensor, value: int, *index: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize("value", [-1, 3, 2**31 - 1])
def test_selection_out_of_range(value: int, device: torch.device) -> None:
    call = _call(device)
    call["selection"] = _wrong(call["selection"], value, 1, 4, 2)
    pdssm_compiler.pd_scan(**call)
    with pytest.raises(pdssm_compiler.IndexRangeError, match=r"selection\[b=1, t=4, h=2\]"):
        pdssm_compiler.check()


@pytest.mark.parametrize("value", [-1, 8, 2**30])
def test_destination_out_of_range(value: int, device: torch.device) -> None:
    call = _call(device, "token")
    call["destination"] = _wrong(call["destination"], value, 0, 7, 1, 5)
    pdssm_compiler.pd_scan(**call)
    with pytest.raises(pdssm_compiler.IndexRangeError, match=r"destination\[b=0, t=7, h=1\]"):
        pdssm_compiler.check()


def test_dictionary_out_of_range(device: torch.device) -> None:
    call = _call(device)
    call["dictionary"] = _wrong(call["dictionary"], 8, 2, 1, 3)
    pdssm_compiler.pd_scan(**call)
    with pytest.raises(pdssm_compiler.IndexRangeError, match=r"dictionary \(head 2\)"):
        pdssm_compiler.check()


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("source", ["dictionary", "token"])
def test_broken_promise(source: str, orientation: str, device: torch.device) -> None:
    call = _call(device, source)
    name = "dictionary" if source == "dictionary" else "destination"
    call[name] = call[name].clone()
    call[name][..., 0] = call[name][..., 1]
    pdssm_compiler.pd_scan(**call, map_class="permutation", orientation=orientation)
    with pytest.raises(pdssm_compiler.PromiseError, match=f"{name}.*permutation"):
        pdssm_compiler.check()


@pytest.mark.parametrize("map_class", ["permutation", "identity"])
@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("source", ["dictionary", "token"])
def test_an_index_out_of_range_is_no_broken_promise(
    source: str, orientation: str, map_class: str, device: torch.device
) -> None:
    call = _call(device, source)
    name, at, place = {
        "dictionary": ("dictionary", (2, 1, 3), r"\[h=2, k=1\]|dictionary \(head 2\)"),
        "token": ("destination", (0, 7, 1, 5), r"\[b=0, t=7, h=1\]"),
    }[source]
    call[name] = torch.arange(8, dtype=torch.int32, device=device).expand(call[name].shape)
    call[name] = _wrong(call[name], 8, *at)
    pdssm_compiler.pd_scan(**call, map_class=map_class, orientation=orientation)
    with pytest.raises(pdssm_compiler.IndexRangeError, match=place):
        pdssm_compiler.check()


def test_the_next_call_raises_and_the_one_after_works(device: torch.device) -> None:
    good = _call(device)
    want, _ = pdssm_compiler.pd_scan(**good)
    pdssm_compiler.pd_scan(**dict(good, selection=good["selection"] + 3))
    torch.cuda.synchronize()
    with pytest.raises(pdssm_compiler.IndexRangeError):
        pdssm_compiler.pd_scan(**good)
    assert torch.equal(pdssm_compiler.pd_scan(**good)[0], want)


def test_under_graph_replay(device: torch.device) -> None:
    call = _call(device)
    selection = call["selection"]
    pdssm_compiler.pd_scan(**call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        states, _ = pdssm_compiler.pd_scan(**call)
    graph.replay()
    pdssm_compiler.check()
    assert torch.equal(states, pdssm_compiler.pd_scan(**call)[0])
    selection[1, 2, 0] = 99
    graph.replay()
    with pytest.raises(pdssm_compiler.IndexRangeError, match="selection"):
        pdssm_compiler.check()
    selection[1, 2, 0] = 0
    graph.replay()
    pdssm_compiler.check()
    assert torch.equal(states, pdssm_compiler.pd_scan(**call)[0])
