"""The Flash PD-SSM mixer of language models: :class:`FlashPDSSM`."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from pdssm_compiler.arguments import truth
from pdssm_compiler.choices import SURROGATES
from pdssm_compiler.flash import flash_pd_scan
from pdssm_compiler.ir.errors import shown
from pdssm_compiler.nn.arguments import (
    check_beside,
    check_cache,
    check_count,
    check_mask,
    check_token,
    check_tokens,
    parameters_of,
    positive,
)
from pdssm_compiler.nn.cache import LayerCache
from pdssm_compiler.nn.convolution import CausalConvolution
from pdssm_compiler.nn.core import mix, mix_packed
from pdssm_compiler.nn.diagonal import DecayDiagonal
from pdssm_compiler.nn.initialise import permutation_logits_, scale_rows_
from pdssm_compiler.nn.precision import wide
from pdssm_compiler.nn.step_core import mix_step
from pdssm_compiler.runtime.binding import is_distributed
from pdssm_compiler.runtime.choices import hard_choice
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.spec import PAYLOADS, one_of
from pdssm_compiler.step import pd_scan_step


class _Projected(NamedTuple):
    """What a token's scan needs, and what its read-out.

    Attributes:
        u: ``[B, T, H, N]``, the convolved tokens.
        gate: likewise.
        drive: ``[B, T, H, N, 2]``.
        readout: likewise, ``C``.
        delta: ``[B, T, H, N]``.
        phase: likewise.
        selector: logits ``[B, T, H, K]``.
        window: the convolution's, after these tokens.
        packed: what drive, ``C``, ``δ``, ``φ`` and selector are parts of.
        masked: whether the drive is none of those parts any more.
        entries: where gradients of ``u`` and ``gate`` may arrive; None where at themselves.
    """

    u: torch.Tensor
    gate: torch.Tensor
    drive: torch.Tensor
    readout: torch.Tensor
    delta: torch.Tensor
    phase: torch.Tensor
    selector: torch.Tensor
    window: torch.Tensor
    packed: torch.Tensor
    masked: bool
    entries: tuple[torch.Tensor, torch.Tensor] | None


class FlashPDSSM(nn.Module):
    """A mixer of tokens, for the place that attention or Mamba-2 has in a language model.

    With ``d = H·N`` and ``⊙`` by component::

        v, gate = in_proj(x)                              # d each
        u       = silu(causal depthwise convolution(v))
        b, C, δ, φ, S = token_proj(u)                     # 2d, 2d, d, d, H·K
        D       = exp(-softplus(δ + bias) · exp(a_log) + i φ)
        x_t     = P_{k_t} (D_t ⊙ x_{t-1}) + b_t           # k_t = argmax_k S_t
        y       = Re(C ⊙ x) + skip ⊙ u
        out     = out_proj(y ⊙ silu(gate))

    ``P_k`` is column one-hot, its column ``j`` in row ``argmax_i dictionary_logits[h, k, i, j]``.
    With ``H·K = d`` these are ``10 d²`` parameters, besides the dictionary's ``H K N²``.

    Both choices train by a surrogate of :func:`pdssm_compiler.flash_pd_scan`, which is the core,
    or by the same one in the one kernel of a fused core.
    ``temperature`` is its ``τ``, a buffer of one number, so that ``layer.temperature.fill_(0.5)``
    anneals it without compiling anything.

    **Precision.** Under autocast, or with parameters of bfloat16 or float16, the projections are
    in that dtype, and drive and states, or what is read from them, are stored in it. Convolution,
    diagonal, the scan's arithmetic and the read-out are in float32, as is the state that is
    carried on in a cache.

    **Initialisation**: see :mod:`pdssm_compiler.nn.initialise`. Memories start at one token to a
    thousand, phases at a tenth of what a linear layer gives, the drive such that states have a
    variance of the order of the tokens', maps as permutations with a softmax of about 1/2 at the
    chosen entry, where the surrogate's gradient, ``ρ (1 - ρ)``, is largest.

    Args:
        d_model: the tokens' width.
        heads: ``H``; ``d_model / state_size`` by default.
        state_size: ``N``; ``d_model / heads`` by default. Without either, the smallest divisor of
            ``d_model`` from its root on, at most twice that: 16 for 128, 32 for 512, 768 and 1024,
            64 for 2048.
        dictionary_size: ``K``; ``heads`` by default.
        conv_width: tokens that the convolution reads.
        surrogate: ``"active"``, or ``"dense"``, by which maps that were not chosen learn as well,
            at ``N (N + K)`` a token more in the backward.
        fused: whether diagonal, scan, read-out and gate are one kernel, which keeps no states for
            the backward; None where that has been measured to be better, on CPUs and GPUs. Packed
            sequences with a cache are not.
        bias: whether ``in_proj`` and ``out_proj`` have one.
        device: of the parameters.
        dtype: likewise.

    Raises:
        ArgumentError: a size that is none, sizes that leave ``H`` or ``N`` open, or an unknown
            surrogate.

    Source: arXiv 2605.19150 (Flash PD-SSM).
    """

    NO_DECAY = frozenset({"dictionary_logits", "skip"})

    def __init__(
        self,
        d_model: int,
        *,
        heads: int | None = None,
        state_size: int | None = None,
        dictionary_size: int | None = None,
        conv_width: int = 4,
        surrogate: str = "active",
        fused: bool | None = None,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model = positive("d_model", d_model)
        self.heads, self.state_size = _heads_and_state(self.d_model, heads, state_size)
        self.dictionary_size = (
            self.heads if dictionary_size is None else positive("dictionary_size", dictionary_size)
        )
        self.conv_width = positive("conv_width", conv_width)
        self.surrogate = one_of("surrogate", surrogate, SURROGATES)
        self.fused = None if fused is None else truth("fused", fused)
        H, N, K = self.heads, self.state_size, self.dictionary_size
        self.d_inner = H * N
        factory = parameters_of(device, dtype)
        bias = truth("bias", bias)
        self.in_proj = nn.Linear(self.d_model, 2 * self.d_inner, bias=bias, **factory)
        self.conv = CausalConvolution(self.d_inner, self.conv_width, **factory)
        self.token_proj = nn.Linear(self.d_inner, sum(self._widths), bias=False, **factory)
        self.diagonal = DecayDiagonal(H, N, **factory)
        self.dictionary_logits = nn.Parameter(torch.empty(H, K, N, N, **factory))
        self.skip = nn.Parameter(torch.empty(H, N, **factory))
        self.out_proj = nn.Linear(self.d_inner, self.d_model, bias=bias, **factory)
        self.register_buffer("temperature", torch.empty((), **factory))
        self.temperature: torch.Tensor
        self.reset_parameters()

    @property
    def _widths(self) -> tuple[int, int, int, int, int]:
        """Of drive, read-out, ``δ``, ``φ`` and selector, in a token's projection."""
        d = self.d_inner
        return 2 * d, 2 * d, d, d, self.heads * self.dictionary_size

    def reset_parameters(self) -> None:
        """Start anew; see the class."""
        for module in (self.in_proj, self.conv, self.token_proj, self.diagonal, self.out_proj):
            module.reset_parameters()
        with torch.no_grad():
            loss = self.diagonal.mean_loss()
            scales = (loss.sqrt(), 1.0, 1.0, 0.1, 1.0)
            scale_rows_(self.token_proj.weight, list(zip(self._widths, scales, strict=True)))
            self.skip.fill_(1.0)
            self.temperature.fill_(1.0)
        # ρ = N / (2N - 1) with this margin.
        permutation_logits_(self.dictionary_logits, math.log(max(self.state_size, 2)), 0.1)

    def init_cache(self, batch_size: int) -> LayerCache:
        """The cache of sequences that begin.

        Args:
            batch_size: how many: ``B``, or ``S`` of packed ones.

        Raises:
            ArgumentError: a batch size that is none.
        """
        check_count("batch_size", batch_size)
        cache = self._empty_cache(batch_size)
        # Where each process holds a part of the logits, the first step makes the maps.
        sharded = is_distributed(self.dictionary_logits)
        return cache if sharded else cache._replace(maps=self._maps())

    def _empty_cache(self, sequences: int) -> LayerCache:
        state = torch.zeros(
            (sequences, self.heads, self.state_size, 2),
            dtype=wide(self.skip.dtype),
            device=self.skip.device,
        )
        return LayerCache(state, self.conv.empty_window(sequences))

    def _maps(self) -> torch.Tensor:
        """The dictionary's destination maps, int32 ``[H, K, N]``."""
        return self._choose(self.dictionary_logits.detach(), -2, "dictionary_logits")

    def _choose(self, logits: torch.Tensor, dim: int, name: str) -> torch.Tensor:
        chosen: torch.Tensor = hard_choice(logits, dim, self.temperature, name)[1]
        return chosen

    def forward(
        self,
        x: torch.Tensor,
        *,
        cache: LayerCache | None = None,
        cu_seqlens: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_cache: bool = False,
        step: bool = False,
    ) -> Any:
        """Mix the tokens of sequences.

        Args:
            x: real ``[B, T, d_model]``.
            cache: what came before, from :meth:`init_cache` or an earlier call; None where the
                sequences begin. Differentiable.
            cu_seqlens: offsets of packed sequences, int32 or int64 ``[S + 1]``, with ``B = 1``;
                see :func:`pdssm_compiler.pd_scan`. The cache is then of ``S`` sequences.
            attention_mask: booleans ``[B, T]``, False at what neither convolution nor drive is to
                see: padding before the first token of a sequence, whose state then stays zero.
                What comes out there means nothing. Not with ``cu_seqlens``.
            output_cache: whether the cache after these tokens is wanted as well.
            step: what :meth:`step` calls this with. It goes through the module's own call, so
                that what hangs on that, as the parameters' gathering by ``fully_shard``, is done.

        Returns:
            ``out`` ``[B, T, d_model]``, or ``(out, cache)`` with ``output_cache``.

        Raises:
            ArgumentError: a wrong shape, dtype or device, or a cache of something else.
            NanLogitError, OffsetError: as in :func:`pdssm_compiler.flash_pd_scan`.
        """
        if step:
            return self._step(x, cache, cu_seqlens)
        sequences = check_tokens(x, self.d_model, cu_seqlens)
        check_beside(x, self.in_proj)
        start = self._empty_cache(sequences)
        if cache is not None:
            start = check_cache(cache, start)
        check_mask(attention_mask, x, cu_seqlens)
        window = None if cache is None else start.window
        token = self._project(x, window, cu_seqlens, attention_mask)
        # Where sequences begin the scan starts from zero by itself.
        state = None if cache is None else cache.state
        carried = state is not None or output_cache
        # A read-out in the kernel leaves no states, which the ends of packed sequences are among.
        fused = self._fuses(x.device) and (cu_seqlens is None or not carried)
        scan = self._fused if fused else self._in_parts
        y, final = scan(token, state, output_cache, cu_seqlens)
        out = self.out_proj(y.flatten(-2))
        if final is None:
            return out
        return out, LayerCache(final, token.window, self._maps())

    def _fuses(self, device: torch.device) -> bool:
        """Whether the core is one kernel."""
        return device.type in ("cpu", "cuda") if self.fused is None else self.fused

    def _fused(
        self,
        token: _Projected,
        state: torch.Tensor | None,
        wants_final: bool,
        cu_seqlens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What goes into the output projection, ``[B, T, H, N]``, and the final state."""
        bias, rate = self.diagonal()
        numbers = {
            "bias": bias,
            "rate": rate,
            "skip": self.skip.to(rate.dtype),
            "u": token.u,
            "gate": token.gate,
        }
        if cu_seqlens is None and not token.masked and _packs(token.packed):
            return mix_packed(
                numbers,
                token.packed,
                self.dictionary_logits,
                temperature=self.temperature,
                surrogate=self.surrogate,
                entries=token.entries,
                initial_state=state,
                output_final_state=wants_final,
            )
        numbers |= {"c": token.readout, "delta": token.delta, "phase": token.phase}
        return mix(
            numbers,
            token.drive,
            self.dictionary_logits,
            token.selector,
            temperature=self.temperature,
            surrogate=self.surrogate,
            initial_state=state,
            output_final_state=wants_final,
            cu_seqlens=cu_seqlens,
        )

    def _in_parts(
        self,
        token: _Projected,
        state: torch.Tensor | None,
        wants_final: bool,
        cu_seqlens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As :meth:`_fused`, with diagonals and states as tensors."""
        states, final = flash_pd_scan(
            self.dictionary_logits,
            token.selector,
            self.diagonal(token.delta, token.phase),
            token.drive,
            temperature=self.temperature,
            surrogate=self.surrogate,
            initial_state=state,
            output_final_state=wants_final,
            cu_seqlens=cu_seqlens,
        )
        return self._read(token, states), final

    def step(self, x: torch.Tensor, cache: LayerCache) -> tuple[torch.Tensor, LayerCache]:
        """One token: what :meth:`forward` gives for it, after those that the cache has seen.

        For decoding: it takes the maps from the cache, so neither choice has a gradient here.

        Args:
            x: real ``[B, d_model]``.
            cache: from :meth:`init_cache`, :meth:`forward` or the last step.

        Returns:
            ``(out, cache)``, ``out`` ``[B, d_model]``.

        Raises:
            ArgumentError: a wrong shape, dtype or device, or a cache of something else.
            NanLogitError: as in ``forward``.
        """
        after: tuple[torch.Tensor, LayerCache] = self(x, cache=cache, step=True)
        return after

    def _step(
        self, x: torch.Tensor, cache: LayerCache | None, cu_seqlens: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerCache]:
        cache = check_cache(cache, self._empty_cache(check_token(x, self.d_model, cu_seqlens)))
        check_beside(x, self.in_proj)
        maps = self._maps() if cache.maps is None else cache.maps
        token = self._project(x.unsqueeze(1), cache.window)
        if self._steps_at_once(token, cache.state):
            y, state = mix_step(
                token.packed,
                token.u,
                token.gate,
                self.diagonal.delta_bias,
                self.diagonal.a_log,
                self.skip,
                maps,
                cache.state,
            )
            return self.out_proj(y.flatten(-2)).squeeze(1), LayerCache(state, token.window, maps)
        state = pd_scan_step(
            cache.state,
            self.diagonal(token.delta, token.phase).squeeze(1),
            token.drive.squeeze(1),
            dictionary=maps,
            selection=self._choose(token.selector, -1, "selector_logits").squeeze(1),
        )
        out = self.out_proj(self._read(token, state.unsqueeze(1)).flatten(-2)).squeeze(1)
        return out, LayerCache(state, token.window, maps)

    def _steps_at_once(self, token: _Projected, state: torch.Tensor) -> bool:
        """Whether a token's core is one kernel: in low precision, without gradients."""
        stored = (self.diagonal.delta_bias, self.diagonal.a_log, self.skip)
        wants = torch.is_grad_enabled() and any(
            each.requires_grad for each in (token.packed, token.gate, state, *stored)
        )
        return (
            self._fuses(token.packed.device)
            and not wants
            and token.packed.dtype in PAYLOADS
            and state.dtype is torch.float32
            and all(each.dtype is self.skip.dtype for each in stored)
            # Gathered only where the module that has them is called.
            and not any(is_distributed(each) for each in stored)
        )

    def _project(
        self,
        x: torch.Tensor,
        window: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None = None,
        real: torch.Tensor | None = None,
    ) -> _Projected:
        """Everything before the scan, of ``[B, T, d_model]``."""
        of_components, of_pairs = (self.heads, self.state_size), (self.heads, self.state_size, 2)
        inner = self.in_proj(x)  # [B, T, 2 d]
        tokens, gate = inner.chunk(2, -1)
        if real is not None:
            tokens = tokens.masked_fill(~real[..., None], 0)
        entries = None
        plain = window is None and cu_seqlens is None and real is None
        if plain and self._fuses(inner.device) and _packs(inner) and self.conv.has_kernel(inner):
            u, window, (of_u, of_gate) = self.conv.joined(inner)
            entries = of_u.unflatten(-1, of_components), of_gate.unflatten(-1, of_components)
        else:
            u, window = self.conv.activated(tokens, window, cu_seqlens)
        packed = self.token_proj(u)
        drive, readout, delta, phase, selector = packed.split(self._widths, -1)
        if real is not None:
            drive = drive.masked_fill(~real[..., None], 0)
        return _Projected(
            u.unflatten(-1, of_components),
            gate.unflatten(-1, of_components),
            drive.unflatten(-1, of_pairs),
            readout.unflatten(-1, of_pairs),
            delta.unflatten(-1, of_components),
            phase.unflatten(-1, of_components),
            selector.unflatten(-1, (self.heads, self.dictionary_size)),
            window,
            packed,
            real is not None,
            entries,
        )

    def _read(self, token: _Projected, states: torch.Tensor) -> torch.Tensor:
        """What goes into the output projection, of states ``[B, T, H, N, 2]``."""
        dtype = wide(states.dtype)
        real, imaginary = states.to(dtype).unbind(-1)
        c_real, c_imaginary = token.readout.to(dtype).unbind(-1)
        y = c_real * real - c_imaginary * imaginary + self.skip.to(dtype) * token.u
        y = y * functional.silu(token.gate.to(dtype))
        return y.to(token.u.dtype)

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return (
            f"{self.d_model}, heads={self.heads}, state_size={self.state_size}, "
            f"dictionary_size={self.dictionary_size}, conv_width={self.conv_width}, "
            f"surrogate={self.surrogate!r}"
        )


def _packs(projection: torch.Tensor) -> bool:
    """Whether the core takes a whole projection: where its gradient is wanted, in low precision,
    since complex numbers of parts are not views of every width.
    """
    return torch.is_grad_enabled() and projection.requires_grad and projection.dtype in PAYLOADS


def _heads_and_state(d_model: int, heads: int | None, state: int | None) -> tuple[int, int]:
    """``H`` and ``N``; what is not told follows from ``H·N = d_model``."""
    if heads is not None and state is not None:
        return positive("heads", heads), positive("state_size", state)
    if heads is None and state is None:
        root = math.isqrt(d_model - 1) + 1
        even = (n for n in range(root, min(2 * root, d_model) + 1) if d_model % n == 0)
        found = next(even, None)
        if found is None:
            raise ArgumentError(
                f"d_model={shown(d_model)} has no divisor between its root and twice that, which "
                f"leaves heads and state_size open: pass one of them that divides it, or both, "
                f"whose product is the inner width"
            )
        return d_model // found, found
    name, told = ("heads", heads) if heads is not None else ("state_size", state)
    given = positive(name, told)
    if d_model % given:
        raise ArgumentError(
            f"d_model={shown(d_model)} is not divisible by {name}={shown(told)}, which leaves "
            f"heads and state_size open: pass both, whose product is the inner width"
        )
    other = d_model // given
    return (other, given) if name == "state_size" else (given, other)
