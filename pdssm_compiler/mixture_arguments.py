"""What a mixture of maps is called with, checked: see :func:`pdssm_compiler.mixture_pd_scan`."""

import torch

from pdssm_compiler.choices import check_logits, check_sizes, one_temperature
from pdssm_compiler.runtime.binding import check_layout
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
    shared: bool = False,
) -> Mixture:
    """Check dictionary and weights.

    Args: as of :func:`mixture_pd_scan`, and
        shared: whether tokens share mixtures: weights are ``[V, H, K]`` or ``[V, K]``. They are
            then given as those of one sequence of ``V`` tokens.

    Raises:
        ArgumentError: a wrong shape, dtype, device or option.
    """
    if not isinstance(drive, torch.Tensor) or drive.dim() < 4:
        raise ArgumentError("drive must be a torch.Tensor [B, T, H, N]; torch.as_tensor makes one")
    check_layout("drive", drive)
    if drive.dim() > 5 or (drive.is_complex() and drive.dim() > 4):
        raise ArgumentError(
            f"drive must have the shape [B, T, H, N], or [B, T, H, N, 2] of real pairs, got "
            f"{list(drive.shape)} of {drive.dtype}; reshape it"
        )
    heads = drive.shape[2]
    if isinstance(dictionary, torch.Tensor) and dictionary.dim() == 3:
        dictionary = dictionary.unsqueeze(0).expand(heads, -1, -1, -1)
    of_tokens = "[V, H, K] or [V, K]" if shared else "[B, T, H, K] or [B, T, K]"
    if shared and isinstance(weights, torch.Tensor):
        if weights.dim() not in (2, 3) or len(weights) == 0:
            raise ArgumentError(
                f"mixture_weights of tokens that share them by selection must have the shape "
                f"{of_tokens} with V of at least 1, got {list(weights.shape)}; reshape it"
            )
        weights = weights.unsqueeze(0)
    if isinstance(weights, torch.Tensor) and weights.dim() == 3:
        weights = weights.unsqueeze(2).expand(-1, -1, heads, -1)
    axes = "[H, K, N, N] or [K, N, N]"
    check_logits("dictionary_logits", dictionary, axes)
    check_logits("mixture_weights", weights, of_tokens)
    check_sizes(dictionary, weights, "mixture_weights", drive, axes, shared)
    wide = torch.float64 if dictionary.dtype is torch.float64 else torch.float32
    if dictionary.device != weights.device:
        raise ArgumentError(
            f"dictionary_logits is on {dictionary.device} and mixture_weights on "
            f"{weights.device}; move one there with .to()"
        )
    if drive.device != weights.device:
        raise ArgumentError(
            f"mixture_weights is on {weights.device} and drive on {drive.device}; move one there "
            f"with .to()"
        )
    tau = one_temperature(temperature, weights)
    _check_beside("temperature", tau, weights)
    return Mixture(weights.to(wide), dictionary.to(wide), tau, orientation)


def check_numbers(
    diagonal: torch.Tensor, drive: torch.Tensor, initial_state: torch.Tensor | None, packed: bool
) -> None:
    """Hold the other tensors to the drive, as the mixture is: the scan would hold them to its
    maps, ``destination``, which no caller of a mixture has.

    What is no tensor, or has another rank, the scan says.

    Raises:
        ArgumentError: says which does not agree.
    """
    wanted = tuple(drive.shape[:4])
    if _has_rank(diagonal, 4):
        _check_shape("diagonal", "[B, T, H, N]", tuple(diagonal.shape[:4]), wanted)
    if initial_state is not None and _has_rank(initial_state, 3):
        own = tuple(initial_state.shape[:3])
        first = own[0] if packed else wanted[0]
        axes = "[S, H, N]" if packed else "[B, H, N]"
        _check_shape("initial_state", axes, own, (first, *wanted[2:]))
    for name, tensor in (("diagonal", diagonal), ("initial_state", initial_state)):
        if isinstance(tensor, torch.Tensor) and tensor.device != drive.device:
            raise ArgumentError(
                f"{name} is on {tensor.device} and drive on {drive.device}; move one there with "
                f".to()"
            )


def _has_rank(tensor: torch.Tensor, rank: int) -> bool:
    """Whether it has so many axes, and behind them, if it is real, one of pairs."""
    if not isinstance(tensor, torch.Tensor):
        return False
    return tensor.dim() == (rank if tensor.is_complex() else rank + 1)


def _check_shape(name: str, axes: str, own: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if own != wanted:
        raise ArgumentError(
            f"{name} must have the shape {axes} = {list(wanted)}, got {list(own)}; make it agree "
            f"with drive"
        )


def _check_beside(name: str, number: torch.Tensor, weights: torch.Tensor) -> None:
    if number.device not in (weights.device, torch.device("cpu")):
        raise ArgumentError(
            f"{name} is on {number.device} and the weights on {weights.device}; move it there "
            f"with .to()"
        )


def _seen(number: torch.Tensor) -> bool:
    """Whether a number may be looked at: what is traced has no value, and looking at another
    device's waits for it.
    """
    return type(number) is torch.Tensor and number.is_cpu and not torch.compiler.is_compiling()


def read_noise(
    noise: float | torch.Tensor,
    seed: int | torch.Tensor | None,
    weights: torch.Tensor,
    choice: str,
) -> tuple[torch.Tensor, ...]:
    """How much, the seed, and the number of each token's draw; nothing without noise.

    Raises:
        ArgumentError: a wrong value or dtype, or noise where nothing is chosen.
    """
    if choice == "soft" and not (isinstance(noise, int | float) and noise == 0):
        raise ArgumentError("noise is of choices, and choice='soft' makes none; leave it out")
    device = weights.device
    if isinstance(noise, torch.Tensor):
        if noise.numel() != 1 or not noise.is_floating_point() or noise.requires_grad:
            raise ArgumentError(
                f"noise must be one real number without a gradient, got {noise.dtype} "
                f"{list(noise.shape)}; pass a float or a tensor of one"
            )
        _check_beside("noise", noise, weights)
        # A NaN is told by the choice that meets it.
        wide = noise.detach().to(weights.dtype)
        if _seen(noise) and (wide < 0 or wide.isinf()):
            raise ArgumentError(
                f"noise must be a number of at least 0 that {weights.dtype} has, got "
                f"{noise.item()}; pass one that is"
            )
        scale = noise
    elif not isinstance(noise, int | float) or not 0 <= noise <= torch.finfo(weights.dtype).max:
        raise ArgumentError(
            f"noise must be a number of at least 0 that {weights.dtype} has, got {noise!r}; pass "
            f"a float"
        )
    elif noise == 0:
        return ()
    else:
        scale = torch.full((1,), float(noise), dtype=weights.dtype, device=device)
    if seed is None:
        drawn = torch.randint(SEEDS, (1,), device=device)
    elif isinstance(seed, torch.Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64:
            raise ArgumentError(
                f"seed must be one int64 number, got {seed.dtype} {list(seed.shape)}; convert it"
            )
        _check_beside("seed", seed, weights)
        if _seen(seed) and not 0 <= seed.item() < SEEDS:
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
