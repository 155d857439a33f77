"""What a mixture of maps is called with, checked: see :func:`pdssm_compiler.mixture_pd_scan`."""

import torch

from pdssm_compiler.choices import check_logits, one_temperature
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.mixture import Mixture

# Seeds are below.
SEEDS = 2**31


def read_mixture(
    dictionary: torch.Tensor,
    weights: torch.Tensor,
    drive: torch.Tensor,
    temperature: float | torch.Tensor,
    orientation: str,
) -> Mixture:
    """Check dictionary and weights; arguments as of :func:`mixture_pd_scan`.

    Raises:
        ArgumentError: a wrong shape, dtype, device or option.
    """
    if not isinstance(drive, torch.Tensor) or drive.dim() < 4:
        raise ArgumentError("drive must be a torch.Tensor [B, T, H, N]; torch.as_tensor makes one")
    heads = drive.shape[2]
    if isinstance(dictionary, torch.Tensor) and dictionary.dim() == 3:
        dictionary = dictionary.unsqueeze(0).expand(heads, -1, -1, -1)
    if isinstance(weights, torch.Tensor) and weights.dim() == 3:
        weights = weights.unsqueeze(2).expand(-1, -1, heads, -1)
    check_logits("dictionary_logits", dictionary, "[H, K, N, N] or [K, N, N]")
    check_logits("mixture_weights", weights, "[B, T, H, K] or [B, T, K]")
    _check_sizes(dictionary, weights, drive)
    wide = torch.float64 if dictionary.dtype is torch.float64 else torch.float32
    if dictionary.device != weights.device:
        raise ArgumentError(
            f"dictionary_logits is on {dictionary.device} and mixture_weights on "
            f"{weights.device}; move one there with .to()"
        )
    tau = one_temperature(temperature, weights)
    if tau.device not in (weights.device, torch.device("cpu")):
        raise ArgumentError(
            f"temperature is on {tau.device} and the weights on {weights.device}; move it there "
            f"with .to()"
        )
    return Mixture(weights.to(wide), dictionary.to(wide), tau, orientation)


def read_noise(
    noise: float | torch.Tensor, seed: int | torch.Tensor | None, weights: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """How much, the seed, and the number of each token's draw; nothing without noise."""
    device = weights.device
    if isinstance(noise, torch.Tensor):
        if noise.numel() != 1 or not noise.is_floating_point() or noise.requires_grad:
            raise ArgumentError(
                f"noise must be one real number without a gradient, got {noise.dtype} "
                f"{list(noise.shape)}; pass a float or a tensor of one"
            )
        scale = noise
    elif not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
        raise ArgumentError(f"noise must be a number of at least 0, got {noise!r}; pass a float")
    elif noise == 0:
        return ()
    else:
        scale = torch.full((1,), float(noise), dtype=weights.dtype, device=device)
    if seed is None:
        drawn = torch.randint(SEEDS, (1,), device=device)
    elif isinstance(seed, torch.Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64:
            raise ArgumentError(f"seed must be one int64 number, got {seed.dtype}; convert it")
        # What is traced has no value, and looking at another device's waits for it.
        seen = type(seed) is torch.Tensor and seed.is_cpu and not torch.compiler.is_compiling()
        if seen and not 0 <= seed.item() < SEEDS:
            raise ArgumentError(
                f"seed must lie in [0, 2**31), got {seed.item()}; pass one that does"
            )
        drawn = seed
    elif isinstance(seed, int) and 0 <= seed < SEEDS:
        drawn = torch.full((1,), seed, dtype=torch.int64, device=device)
    else:
        raise ArgumentError(f"seed must be an integer in [0, 2**31), got {seed!r}; pass one")
    count = weights.shape[:3].numel()
    return scale, drawn, torch.arange(count, device=device).view(weights.shape[:3])


def _check_sizes(dictionary: torch.Tensor, weights: torch.Tensor, drive: torch.Tensor) -> None:
    _, entries, rows, columns = dictionary.shape
    if rows != columns or entries == 0 or rows == 0:
        raise ArgumentError(
            f"dictionary_logits must have the shape [H, K, N, N] or [K, N, N] with K and N of at "
            f"least 1, got {list(dictionary.shape)}; reshape it"
        )
    wanted: tuple[int, ...] = (*drive.shape[:3], entries)
    if weights.shape != wanted:
        raise ArgumentError(
            f"mixture_weights must have the shape [B, T, H, K] = {list(wanted)}, got "
            f"{list(weights.shape)}; make it agree with drive and dictionary_logits"
        )
    wanted = (drive.shape[2], entries, drive.shape[3], drive.shape[3])
    if dictionary.shape != wanted:
        raise ArgumentError(
            f"dictionary_logits must have the shape [H, K, N, N] = {list(wanted)}, got "
            f"{list(dictionary.shape)}; make it agree with drive"
        )
