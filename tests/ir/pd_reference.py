"""The PD scan by its definition: dense matrices and a loop over tokens, differentiable.

``P_t`` is written out as a matrix, so neither gather nor scatter occurs here. Source: the
recurrence of arXiv 2509.22284, and its transposed family.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pdssm_compiler.ir.programs import PdScan
from tests.strategies import Sizes


def maps_of(spec: PdScan, tensors: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
    """``p[b, t, h, j]``, from wherever the spec takes it."""
    batch, length, heads = sizes
    if spec.map_source == "none":
        return torch.arange(spec.state_size).expand(batch, length, heads, -1)
    if spec.map_source == "token":
        return tensors["destination"]
    head = torch.arange(heads)
    return tensors["dictionary"][head, tensors["selection"]]  # [B, T, H, N]


def pd_reference(spec: PdScan, tensors: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """The outputs of ``pd_scan(spec)``; gradients flow to what requires them."""
    batch, length, heads = sizes
    n = spec.state_size
    p = maps_of(spec, tensors, sizes)
    one_hot = torch.nn.functional.one_hot(p, n).to(torch.complex128)
    # one_hot[..., j, i] is 1 iff p[j] = i: the transpose of a column one-hot matrix.
    matrix = one_hot.mT if spec.orientation == "column" else one_hot
    x = torch.zeros(batch, heads, n, dtype=torch.complex128)
    if spec.initial_state:
        x = tensors["initial_state"]
    states = []
    for t in reversed(range(length)) if spec.reverse else range(length):
        if spec.packed:
            x = torch.where(tensors["follows"][:, t, :, None] == 1, x, torch.zeros_like(x))
        d, b = tensors["diagonal"][:, t], tensors["drive"][:, t]  # [B, H, N]
        if spec.orientation == "column":
            x = (matrix[:, t] @ (d * x)[..., None])[..., 0] + b
        else:
            x = d * (matrix[:, t] @ x[..., None])[..., 0] + b
        states.insert(0 if spec.reverse else t, x)
    empty = torch.zeros(batch, 0, heads, n, dtype=torch.complex128)
    outputs = {"states": torch.stack(states, 1) if states else empty}
    if spec.final_state:
        outputs["final_state"] = x
    return outputs


def all_specs(state_size: int = 4) -> list[PdScan]:
    """Every map source, orientation and class, with and without first and last states."""
    specs = []
    for source, size in (("dictionary", 3), ("token", None), ("none", None)):
        for orientation in ("column", "row") if source != "none" else ("column",):
            classes = ("general", "permutation", "identity") if source != "none" else ("general",)
            specs += [
                PdScan(
                    state_size,
                    size,
                    "c128",
                    source,
                    class_,
                    orientation,
                    initial_state=ends,
                    final_state=ends,
                )
                for class_ in classes
                for ends in (False, True)
            ]
    specs += [replace(spec, reverse=True, packed=True) for spec in specs if spec.initial_state]
    return specs


def spec_id(spec: PdScan) -> str:
    """A name for a spec in a list of tests."""
    ends = "packed" if spec.packed else "ends" if spec.initial_state else "plain"
    return f"{spec.map_source}-{spec.orientation}-{spec.map_class}-{ends}"
