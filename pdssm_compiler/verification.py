"""Kernels against the oracle on a device: what ``verify`` and ``doctor`` run."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from pdssm_compiler import reference
from pdssm_compiler.compiled import compile
from pdssm_compiler.functional import pd_scan
from pdssm_compiler.runtime.devices import free_memory
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.spec import ScanSpec

# |out - reference| ≤ c · ε · s, with s the same scan over absolute values and ε that of the
# compute dtype. A token adds a few roundings to what it carries; a payload dtype adds one of its
# own to each stored state.
VALUE_FACTOR = 32.0
GRADIENT_FACTOR = 64.0

# What a verification holds at its peak, as found on a CPU: tensors of all states in complex128,
# and of autograd for each token.
_TENSORS = 24
_TOKEN_BYTES = 4096


@dataclass(frozen=True)
class Verification:
    """Errors of one specification, each as a multiple of what is allowed.

    Attributes:
        spec: what was run.
        values: of states and final state.
        gradients: of diagonal, drive and initial state.
    """

    spec: ScanSpec
    values: float
    gradients: float

    @property
    def worst(self) -> float:
        """The larger of the two; at most 1 if the kernel is right."""
        return max(self.values, self.gradients)


def default_spec() -> ScanSpec:
    """A small scan with collisions."""
    return ScanSpec(8, 4)


def default_specs() -> list[ScanSpec]:
    """Every map source, class and orientation, and some state sizes."""
    specs = [ScanSpec(n, map_source="none") for n in (1, 33)]
    for orientation in ("column", "row"):
        for n in (7, 32, 64):
            specs.append(ScanSpec(n, 8, orientation=orientation))  # type: ignore[arg-type]
        for map_class in ("general", "permutation"):
            specs.append(
                ScanSpec(
                    16,
                    map_source="token",
                    map_class=map_class,  # type: ignore[arg-type]
                    orientation=orientation,  # type: ignore[arg-type]
                )
            )
        specs.append(
            ScanSpec(32, 8, map_class="permutation", orientation=orientation)  # type: ignore[arg-type]
        )
    specs.append(ScanSpec(16, 4, dtype=torch.complex128))
    specs.append(ScanSpec(16, 4, payload_dtype=torch.bfloat16))
    return specs


def verify_spec(
    spec: ScanSpec,
    device: torch.device,
    seed: int,
    sizes: tuple[int, int, int] = (2, 37, 3),
    template: str | None = None,
    lengths: tuple[int, ...] | None = None,
    reverse: bool = False,
) -> Verification:
    """Run a scan and its backward on a device and compare with the reference in complex128.

    Args:
        spec: what to run.
        device: where.
        seed: of the random inputs.
        sizes: ``B, T, H``.
        template: the name of the template to run; None for what ``pd_scan`` takes.
        lengths: of packed sequences, which then give ``B`` and ``T``; None for a batch.
        reverse: whether time runs from the last token to the first.

    Raises:
        NoTemplateError: there is no such template, or it cannot run the scan.
    """
    options: dict[str, Any] = {
        "orientation": spec.orientation,
        "map_class": spec.map_class,
        "output_final_state": True,
        "reverse": reverse,
    }
    starts = None
    if lengths is not None:
        sizes, starts = (1, sum(lengths), sizes[2]), len(lengths)
        options["cu_seqlens"] = torch.tensor([0, *accumulate(lengths)], device=device)
    inputs, maps = random_inputs(spec, device, seed, sizes, starts)
    exact = [_exact(tensor) for tensor in inputs]
    scan: Callable[..., Any] = pd_scan
    if template is not None:
        scan = compile(
            spec,
            device,
            config=template,
            initial_state=True,
            output_final_state=True,
            reverse=reverse,
            packed=lengths is not None,
        )
    mine = _outputs_and_gradients(scan, inputs, maps, options, seed)
    true = _outputs_and_gradients(reference.pd_scan, exact, maps, options, seed)
    size = _outputs_and_gradients(
        reference.pd_scan, [t.abs().to(t.dtype) for t in exact], maps, options, seed, absolute=True
    )
    epsilon = torch.finfo(spec.dtype.to_real()).eps
    stored = torch.finfo(spec.payload_dtype).eps if spec.payload_dtype else 0.0
    errors = [
        _multiple(a, b, s, factor * epsilon + (4 * stored if payload else 0.0))
        for a, b, s, factor, payload in zip(
            mine,
            true,
            size,
            [VALUE_FACTOR] * 2 + [GRADIENT_FACTOR] * 3,
            # The backward reads the states as they were stored.
            [True, False, True, True, False],
            strict=True,
        )
    ]
    return Verification(spec, max(errors[:2]), max(errors[2:]))


def check_memory(
    spec: ScanSpec, device: torch.device, sizes: tuple[int, int, int], packed: bool = False
) -> None:
    """Refuse sizes that would have the system end this process.

    Args:
        spec: what would be verified.
        device: where.
        sizes: ``B, T, H``.
        packed: whether the sequences are packed, and so are run one after the other.

    Raises:
        ArgumentError: names the sizes and what is free.
    """
    batch, length, heads = sizes
    elements = batch * length * heads * spec.state_size
    steps = batch * length if packed else length
    needed = 16 * _TENSORS * elements + _TOKEN_BYTES * steps
    free = free_memory(device)
    if free is not None and needed > free:
        raise ArgumentError(
            f"the reference of B={batch} T={length} H={heads} N={spec.state_size} needs about "
            f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free on {device}; choose "
            f"smaller sizes"
        )


def random_inputs(
    spec: ScanSpec,
    device: torch.device,
    seed: int,
    sizes: tuple[int, int, int],
    starts: int | None = None,
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Random diagonal (|D| ≤ 1), drive and initial state (as many as there are sequences, where
    that is not ``B``), and the maps.
    """
    batch, length, heads = sizes
    shape = (batch, length, heads, spec.state_size)
    random = torch.Generator().manual_seed(seed)
    real = spec.dtype.to_real()
    phase = torch.rand(shape, generator=random, dtype=real) * 2 * torch.pi
    diagonal = torch.polar(torch.rand(shape, generator=random, dtype=real), phase)
    drive = torch.randn(shape, generator=random, dtype=spec.dtype)
    start = (batch if starts is None else starts, heads, spec.state_size)
    initial = torch.randn(start, generator=random, dtype=spec.dtype)
    if spec.payload_dtype is not None:
        drive = torch.view_as_real(drive).to(spec.payload_dtype)
    tensors = [t.to(device).requires_grad_() for t in (diagonal, drive, initial)]
    return tensors, {name: t.to(device) for name, t in _random_maps(spec, sizes, random).items()}


def _random_maps(
    spec: ScanSpec, sizes: tuple[int, int, int], random: torch.Generator
) -> dict[str, torch.Tensor]:
    batch, length, heads = sizes
    n = spec.state_size
    if spec.map_source == "none":
        return {}
    size = spec.dictionary_size or 1
    leading = (heads, size) if spec.map_source == "dictionary" else (batch, length, heads)
    if spec.map_class == "identity":
        maps = torch.arange(n).expand(*leading, n)
    elif spec.map_class == "permutation":
        maps = torch.rand(*leading, n, generator=random).argsort(-1)
    else:
        maps = torch.randint(n, (*leading, n), generator=random)
    maps = maps.to(torch.int32)
    if spec.map_source == "token":
        return {"destination": maps}
    selection = torch.randint(size, (batch, length, heads), generator=random, dtype=torch.int32)
    return {"dictionary": maps, "selection": selection}


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """A rounded input in complex128."""
    tensor = tensor.detach()
    if not tensor.is_complex():
        tensor = torch.view_as_complex(tensor.double())
    return tensor.to(torch.complex128).requires_grad_()


def _outputs_and_gradients(function, inputs, maps, options, seed, *, absolute=False):  # type: ignore[no-untyped-def]
    """States, final state, and the gradients of the three inputs for one random cotangent."""
    if absolute:
        inputs = [t.detach().requires_grad_() for t in inputs]
    diagonal, drive, initial = inputs
    states, final = function(diagonal, drive, initial_state=initial, **maps, **options)
    random = torch.Generator().manual_seed(seed + 1)
    grads = []
    for output in (states, final):
        pairs = output if not output.is_complex() else torch.view_as_real(output)
        # Sixteenths are exact in every dtype, so all see the same cotangent.
        grad = torch.randint(-32, 33, pairs.shape, generator=random).double() / 16
        grad = torch.view_as_complex(grad)
        if absolute:
            grad = grad.abs().to(torch.complex128)
        grad = grad.to(output.device)
        if not output.is_complex():
            grad = torch.view_as_real(grad)
        grads.append(grad.to(output.dtype))
    found = torch.autograd.grad([states, final], inputs, grads)
    return [t.detach() for t in (states, final, *found)]


def _multiple(mine: torch.Tensor, true: torch.Tensor, size: torch.Tensor, allowed: float) -> float:
    """The largest error as a multiple of what is allowed; NaN counts as infinite."""
    if not mine.is_complex():
        mine = torch.view_as_complex(mine.double())
    error = (mine.to(torch.complex128) - true).abs()
    bound = allowed * size.abs()
    ratio = torch.where(error == 0, 0.0, error / bound).nan_to_num(nan=float("inf"))
    return float(ratio.max()) if ratio.numel() else 0.0
