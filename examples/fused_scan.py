"""A diagonal and a read-out of one's own, in the kernel: what a training step keeps."""

import torch
from torch.nn import functional

from pdssm_compiler import FusedScan, InputSpec, ScanSpec, compile, pd_scan

B, T, H, N, K = 2, 2048, 4, 16, 8


def diagonal(delta, phase, a_log):  # type: ignore[no-untyped-def]
    """``exp(-softplus(Δ) exp(A_log))``, turned by a phase."""
    return torch.polar(torch.exp(-functional.softplus(delta) * torch.exp(a_log)), phase)


def readout(x, c):  # type: ignore[no-untyped-def]
    """``Re(C ⊙ x)``."""
    return (c * x).real


def fused(device: str) -> FusedScan:
    """Both in one kernel."""
    return compile(
        ScanSpec(N, K),
        device,
        diagonal=diagonal,
        readout=readout,
        inputs={"a_log": InputSpec("HN"), "c": InputSpec(dtype=torch.complex64)},
    )


def tensors(device: str) -> dict[str, torch.Tensor]:
    """A call's tensors; every number wants its gradient."""
    random = torch.Generator().manual_seed(0)
    shape = (B, T, H, N)
    numbers = {
        "delta": torch.randn(shape, generator=random),
        "phase": torch.randn(shape, generator=random),
        "a_log": torch.randn(H, N, generator=random),
        "c": torch.randn(shape, generator=random, dtype=torch.complex64),
        "drive": torch.randn(shape, generator=random, dtype=torch.complex64),
    }
    maps = {
        "dictionary": torch.randint(N, (H, K, N), generator=random),
        "selection": torch.randint(K, (B, T, H), generator=random),
    }
    found = {name: tensor.to(device).requires_grad_() for name, tensor in numbers.items()}
    return found | {name: tensor.to(device) for name, tensor in maps.items()}


def main() -> None:
    """The same step with and without fusion: its gradients, and what is kept for the backward."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scan = fused(device)

    def separate(delta, phase, a_log, c, **rest):  # type: ignore[no-untyped-def]
        states, _ = pd_scan(diagonal(delta, phase, a_log), **rest)
        return readout(states, c)

    gradients = []
    for name, step in (("fused", lambda **given: scan(**given)[0]), ("separate", separate)):
        given, kept = tensors(device), {}

        def keep(tensor: torch.Tensor, kept: dict = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = step(**given)
        for tensor in given.values():
            kept.pop(tensor.untyped_storage().data_ptr(), None)
        print(f"{name}: {sum(kept.values()) // 2**10} KiB kept besides the inputs")
        output.square().mean().backward()
        gradients.append([tensor.grad for tensor in given.values() if tensor.requires_grad])
    close = [torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*gradients, strict=True)]
    print(f"the same gradients: {all(close)}")


if __name__ == "__main__":
    main()
