"""A scan with a dictionary of maps, its gradients, and what ran."""

import torch

import pdssm_compiler

B, T, H, N, K = 2, 100, 4, 32, 8


def main() -> None:
    """Scan, differentiate, compare with the plain loop."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    diagonal = torch.polar(torch.rand(B, T, H, N), torch.randn(B, T, H, N)).to(device)
    drive = torch.randn(B, T, H, N, dtype=torch.complex64, device=device)
    dictionary = torch.randint(N, (H, K, N), device=device)  # the row of the one in each column
    selection = torch.randint(K, (B, T, H), device=device)  # the map of each token
    maps = {"dictionary": dictionary, "selection": selection}

    diagonal.requires_grad_()
    states, _ = pdssm_compiler.pd_scan(diagonal, drive, **maps)
    states.abs().sum().backward()
    print(f"states {list(states.shape)}, gradient of the diagonal {list(diagonal.grad.shape)}")

    expected, _ = pdssm_compiler.reference.pd_scan(diagonal.detach(), drive, **maps)
    error = (states - expected).abs().max() / expected.abs().max()
    print(f"largest difference from the plain loop, of the largest state: {error:.1e}")
    for kernel in pdssm_compiler.explain():
        print(kernel)


if __name__ == "__main__":
    main()
