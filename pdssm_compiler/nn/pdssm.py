"""The PD-SSM block of state tracking and time series: :class:`PDSSM`."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pdssm_compiler.mixture import mixture_pd_scan
from pdssm_compiler.nn.arguments import (
    at_symbols,
    check_beside,
    check_cache,
    check_count,
    check_symbols,
    check_token,
    check_tokens,
    parameters_of,
    positive,
)
from pdssm_compiler.nn.cache import LayerCache
from pdssm_compiler.nn.diagonal import SigmoidDiagonal
from pdssm_compiler.nn.initialise import permutation_logits_, scale_rows_
from pdssm_compiler.nn.mlp import Mlp
from pdssm_compiler.nn.precision import wide
from pdssm_compiler.runtime.dispatch import refuse_transforms
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.mixture import mixed_map
from pdssm_compiler.runtime.symbols import of_symbols
from pdssm_compiler.spec import one_of
from pdssm_compiler.step import pd_scan_step


class PDSSM(nn.Module):
    """The published PD-SSM block, skip and norm included: it stands by itself in a stack.

    With ``E = d_model``::

        D   = σ(MLP_mag(u)) · exp(2πi σ(MLP_phase(u)))       # Linear, GELU, Linear
        s   = softmax(S u)
        P_t = hardmax(Σ_k s_t[k] M_k), by column
        x_t = P_t (D_t ⊙ x_{t-1}) + B u_t                    # B complex, N×E; x_0 = (1, 0, …, 0)
        out = LayerNorm(readout([Re x, Im x]) + skip ⊙ u)

    The maps train by the straight-through softmax of ``M_t / τ``
    (``(hard - soft).detach() + soft``); ``temperature`` is ``τ``, a buffer of one number. No
    ``M_t`` is kept, or in memory at all (:func:`pdssm_compiler.mixture_pd_scan`).

    **Precision.** Under autocast the products of drive, selector and read-out are in its dtype.
    The MLPs of the diagonal, the mixture and the scan are in float32.

    **Initialisation**: see :mod:`pdssm_compiler.nn.initialise`. Memories start at ten tokens to a
    thousand, the drive such that states have a variance of the order of the tokens'. A dictionary
    of permutations chooses, whatever the mixture, nearly the map with the largest weight, so maps
    differ from token to token from the first step on; its margin, ``4 / √N``, is one that a few
    hundred steps of Adam at the published learning rate can overturn.

    Args:
        d_model: ``E``, the tokens' width.
        state_size: ``N``; ``d_model`` by default.
        dictionary_size: ``K``.
        hidden: the hidden width of the MLPs; ``2 · d_model`` by default.
        readout: ``"linear"`` (state tracking), or ``"mlp"``: Linear, GELU, Linear (time series).
        dropout: of the states before the read-out, in training.
        noise: how much Gumbel noise is added to every ``M_t`` in training; ``τ`` for a draw from
            the softmax. An attribute; see :func:`pdssm_compiler.mixture_pd_scan`.
        orientation: ``"column"``, or ``"row"``, the published PyTorch code's: rows of ``P_t`` are
            one-hot and ``x_t[i] = D_t[i] x_{t-1}[p_t[i]] + b_t[i]``.
        device: of the parameters.
        dtype: likewise.

    Raises:
        ArgumentError: a size that is none, or an unknown option.

    Source: arXiv 2509.22284 (PD-SSM).
    """

    NO_DECAY = frozenset({"dictionary_logits", "skip"})

    def __init__(
        self,
        d_model: int,
        *,
        state_size: int | None = None,
        dictionary_size: int = 8,
        hidden: int | None = None,
        readout: str = "linear",
        dropout: float = 0.0,
        noise: float = 0.0,
        orientation: str = "column",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model = E = positive("d_model", d_model)
        self.state_size = N = E if state_size is None else positive("state_size", state_size)
        self.dictionary_size = positive("dictionary_size", dictionary_size)
        self.hidden = 2 * E if hidden is None else positive("hidden", hidden)
        self.readout_kind = one_of("readout", readout, ("linear", "mlp"))
        self.orientation = one_of("orientation", orientation, ("column", "row"))
        if not isinstance(noise, int | float) or not 0 <= noise < math.inf:
            raise ArgumentError(
                f"noise must be a number of at least 0, got {noise!r}; pass a float"
            )
        self.noise = float(noise)
        if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ArgumentError(
                f"dropout must be a number from 0 to 1, got {dropout!r}; pass a float"
            )
        # "soft": the matrices are the softmaxes themselves, by plain torch; to compare with.
        self.choice = "hard"
        factory = parameters_of(device, dtype)
        self.diagonal = SigmoidDiagonal(E, N, self.hidden, **factory)
        self.selector = nn.Linear(E, self.dictionary_size, bias=False, **factory)
        self.dictionary_logits = nn.Parameter(torch.empty(self.dictionary_size, N, N, **factory))
        self.drive_proj = nn.Linear(E, 2 * N, bias=False, **factory)
        self.dropout = nn.Dropout(dropout)
        self.readout: nn.Linear | Mlp
        if self.readout_kind == "linear":
            self.readout = nn.Linear(2 * N, E, **factory)
        else:
            self.readout = Mlp(2 * N, self.hidden, E, **factory)
        self.skip = nn.Parameter(torch.empty(E, **factory))
        self.norm = nn.LayerNorm(E, **factory)
        self.register_buffer("temperature", torch.empty((), **factory))
        self.temperature: torch.Tensor
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew; see the class."""
        for module in (self.diagonal, self.selector, self.readout, self.norm):
            module.reset_parameters()
        with torch.no_grad():
            # |b|² has the mean of |u_e|², and a state adds up 1 / (1 - |D|²) of them.
            self.drive_proj.weight.normal_(0, math.sqrt(0.5 / self.d_model))
            scale_rows_(
                self.drive_proj.weight, [(2 * self.state_size, self.diagonal.mean_loss().sqrt())]
            )
            self.skip.fill_(1.0)
            self.temperature.fill_(1.0)
        margin = 4 / math.sqrt(self.state_size)
        permutation_logits_(self.dictionary_logits, margin, margin / 10)

    def init_cache(self, batch_size: int) -> LayerCache:
        """The cache of sequences that begin: a state that is one-hot, in component 0.

        Args:
            batch_size: how many: ``B``, or ``S`` of packed ones.

        Raises:
            ArgumentError: a batch size that is none.
        """
        check_count("batch_size", batch_size)
        state = torch.zeros(1, 1, self.state_size, 2, device=self.skip.device)
        state = state.to(wide(self.skip.dtype))
        state[..., 0, 0] = 1
        return LayerCache(state.repeat(batch_size, 1, 1, 1))

    def forward(
        self,
        x: torch.Tensor,
        *,
        symbols: torch.Tensor | None = None,
        cache: LayerCache | None = None,
        cu_seqlens: torch.Tensor | None = None,
        output_cache: bool = False,
        step: bool = False,
    ) -> Any:
        """The block over the tokens of sequences.

        With ``symbols`` the tokens are ``x[symbols]``, and everything before the scan is computed
        of the table's ``V`` rows instead of ``B T`` tokens: the same values and gradients, in less
        time where a first layer reads few symbols. Its maps are then ``[V, N, N]`` numbers in the
        backward. Noise, in training, is of a token, and so are ``choice="soft"``'s matrices: with
        either the tokens are looked up first, and there is nothing to gain.

        Args:
            x: ``u``, real ``[B, T, d_model]``; with ``symbols`` the table ``[V, d_model]`` of the
                vectors that symbols have.
            symbols: uint8, int16, int32 or int64 ``[B, T]`` in ``[0, V)``.
            cache: what came before, from :meth:`init_cache` or an earlier call; None where the
                sequences begin. Differentiable.
            cu_seqlens: offsets of packed sequences, int32 or int64 ``[S + 1]``, with ``B = 1``;
                see :func:`pdssm_compiler.pd_scan`. The cache is then of ``S`` sequences.
            output_cache: whether the cache after these tokens is wanted as well.
            step: what :meth:`step` calls this with. It goes through the module's own call, so
                that what hangs on that, as the parameters' gathering by ``fully_shard``, is done.

        Returns:
            ``out`` ``[B, T, d_model]``, or ``(out, cache)`` with ``output_cache``.

        Raises:
            ArgumentError: a wrong shape, dtype or device, or a cache of something else.
            IndexRangeError: a symbol that the table has not; on a GPU a later call raises it, and
                names it by ``selection``. (Of tokens that are looked up first it is a
                NanLogitError, and soft matrices go on with NaN.)
            NanLogitError: a NaN in the mixture of maps; on a GPU a later call raises it.
            OffsetError: as in :func:`pdssm_compiler.pd_scan`.
        """
        if step:
            if symbols is not None:
                raise ArgumentError(
                    "a step is of one token of each sequence, x [B, d_model]; leave out symbols, "
                    "and give x[symbols]"
                )
            return self._step(x, cache, cu_seqlens)
        if symbols is not None:
            check_symbols(symbols, x, self.d_model)
            # Before tokens are looked up, by which a tangent would be lost.
            if not torch.compiler.is_compiling():
                refuse_transforms((x, *self.parameters()))
            if self.choice == "soft" or self._noise:
                x, symbols = at_symbols(x, symbols), None
        table = x
        if symbols is not None:
            x = of_symbols(table, symbols)
        start = self.init_cache(check_tokens(x, self.d_model, cu_seqlens))
        check_beside(x, self.selector)
        if cache is not None:
            start = check_cache(cache, start)
        diagonal, drive, weights = self._project(table)
        if symbols is not None:
            diagonal, drive = (of_symbols(each, symbols) for each in (diagonal, drive))
        states, final = self.mixed(
            weights,
            diagonal,
            drive,
            selection=symbols,
            initial_state=start.state,
            output_final_state=output_cache,
            cu_seqlens=cu_seqlens,
        )
        out = self._read(x, states)
        return out if final is None else (out, LayerCache(final))

    def step(self, x: torch.Tensor, cache: LayerCache) -> tuple[torch.Tensor, LayerCache]:
        """One token: what :meth:`forward` gives for it, after those that the cache has seen.

        For decoding: the maps have no gradient here.

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
        cache = check_cache(cache, self.init_cache(check_token(x, self.d_model, cu_seqlens)))
        check_beside(x, self.selector)
        token = x.unsqueeze(1)
        diagonal, drive, weights = self._project(token)
        if self.choice == "soft":
            with torch.no_grad():
                states, final = self.mixed(
                    weights,
                    diagonal,
                    drive,
                    initial_state=cache.state,
                    output_final_state=True,
                )
            assert final is not None
            return self._read(token, states).squeeze(1), LayerCache(final)
        dictionary = self.dictionary_logits.detach().to(weights.dtype)
        sources = (weights.detach().unsqueeze(2), dictionary.unsqueeze(0))
        maps = mixed_map(*sources, None, self.orientation)
        state = pd_scan_step(
            cache.state,
            diagonal.squeeze(1),
            drive.squeeze(1),
            destination=maps.squeeze(1),
            orientation=self.orientation,
        )
        return self._read(token, state.unsqueeze(1)).squeeze(1), LayerCache(state)

    def mixed(
        self,
        weights: torch.Tensor,
        diagonal: torch.Tensor,
        drive: torch.Tensor,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The scan by the maps that the dictionary's mixture chooses.

        Args:
            weights: ``s``, ``[B, T, K]``, or ``[V, K]`` with a selection.
            diagonal: pairs ``[B, T, 1, N, 2]``.
            drive: likewise.
            options: selection, states and packed sequences, as of
                :func:`pdssm_compiler.mixture_pd_scan`.
        """
        dtype = weights.dtype
        return mixture_pd_scan(
            self.dictionary_logits.to(dtype),
            weights,
            diagonal,
            drive,
            temperature=self.temperature.to(dtype),
            choice=self.choice,
            noise=self._noise,
            orientation=self.orientation,
            **options,
        )

    @property
    def _noise(self) -> float:
        """How much there is now."""
        return self.noise if self.training and self.choice == "hard" else 0.0

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Diagonal and drive ``[B, T, 1, N, 2]``, weights ``[B, T, K]``; of a table ``V`` in the
        place of ``B, T``.
        """
        dtype = wide(x.dtype)
        diagonal = self.diagonal(x).unsqueeze(-3).to(dtype)
        drive = self.drive_proj(x).to(dtype).unflatten(-1, (1, self.state_size, 2))
        return diagonal, drive, functional.softmax(self.selector(x).to(dtype), -1)

    def _read(self, x: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Everything behind the scan; states are ``[B, T, 1, N, 2]``."""
        parts = torch.cat(states.squeeze(2).unbind(-1), -1)  # [B, T, 2N]
        read = self.readout(self.dropout(parts.to(x.dtype)))
        out: torch.Tensor = self.norm(read + self.skip * x)
        return out

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return (
            f"{self.d_model}, state_size={self.state_size}, "
            f"dictionary_size={self.dictionary_size}, hidden={self.hidden}, "
            f"readout={self.readout_kind!r}, orientation={self.orientation!r}"
        )
