"""Maps of a soft mixture: three torch operators.

``M_t = Σ_k s_t[k] M_k``, and map ``t`` has its one, in column ``j``, in row
``argmax_i M_t[i, j]`` (by rows: in row ``i``, in column ``argmax_j M_t[i, j]``). It is another map
at every token. Its gradient is the straight-through softmax's, of every entry: what autograd gives
for ``(hard - soft).detach() + soft``.

- ``mixed_map(Tensor weights, Tensor dictionary, Tensor[]? noise, str orientation) -> Tensor``
  gives the maps,
- ``mixed_scan(str program, Tensor[] inputs, Tensor weights, Tensor dictionary, Tensor temperature,
  Tensor[]? noise, str orientation, str config) -> Tensor[]`` is ``scan`` by these maps, and its
  backward gives weights and dictionary their gradients as well,
- ``mixture_gradient(Tensor weights, Tensor dictionary, Tensor temperature, Tensor[]? noise, Tensor
  map, Tensor left, Tensor right, str orientation) -> (Tensor, Tensor)`` computes those, from the
  two vectors a token whose product is the gradient of the map's matrix.

``noise`` is None, or what Gumbel noise is drawn by: how much of it, the seed, and the numbers of
the tokens' draws. It is drawn anew wherever it is needed, and never kept.

The first and the last run programs of the IR (:func:`~pdssm_compiler.ir.programs.mixture` and its
adjoint), by kernels that keep no ``M_t``: besides its results a call needs memory for a few
vectors a token. Nothing is read on the host, and each sum is made in one order.

Source: arXiv 2509.22284 (PD-SSM).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import LEARNED, mixture
from pdssm_compiler.ir.types import Element
from pdssm_compiler.runtime.choices import check_temperature, copy_for_backward
from pdssm_compiler.runtime.compile_service import backward_config, config_text, read_config
from pdssm_compiler.runtime.dispatch import is_plain, refuse_unsupported
from pdssm_compiler.runtime.errors import ArgumentError, NanLogitError
from pdssm_compiler.runtime.one_line import lines_of, of_one_line, one_line
from pdssm_compiler.runtime.operators import on_every_device, refuse_vmap
from pdssm_compiler.runtime.ops import adjoint_of, output_names, scan, scan_shapes
from pdssm_compiler.runtime.plan import caller_inputs, program_of, run

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
for _definition in (
    "mixed_map(Tensor weights, Tensor dictionary, Tensor[]? noise, str orientation) -> Tensor",
    "mixed_scan(str program, Tensor[] inputs, Tensor weights, Tensor dictionary,"
    " Tensor temperature, Tensor[]? noise, str orientation, str config) -> Tensor[]",
    "mixture_gradient(Tensor weights, Tensor dictionary, Tensor temperature, Tensor[]? noise,"
    " Tensor map, Tensor left, Tensor right, str orientation) -> (Tensor, Tensor)",
):
    _library.define(_definition, tags=(torch.Tag.pt2_compliant_tag,))

mixed_map = torch.ops.pdssm_compiler.mixed_map.default
mixed_scan = torch.ops.pdssm_compiler.mixed_scan.default
mixture_gradient = torch.ops.pdssm_compiler.mixture_gradient.default

_ELEMENTS: dict[torch.dtype, Element] = {torch.float32: "f32", torch.float64: "f64"}
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
# The scan's input that the maps are.
DESTINATION = "destination"


class Mixture(NamedTuple):
    """What maps are mixed from.

    Attributes:
        weights: ``s``, float32 or float64 ``[B, T, H, K]``.
        dictionary: ``M``, likewise, ``[H, K, N, N]``.
        temperature: ``τ`` of the softmax that stands for the choice, one number.
        orientation: ``column`` or ``row``: which are one-hot.
        noise: none, or how much, one number like ``s``; a seed below 2³¹, int64 ``[1]``; and the
            number of each token's draw, int64 ``[B, T, H]``.
    """

    weights: torch.Tensor
    dictionary: torch.Tensor
    temperature: torch.Tensor
    orientation: str
    noise: tuple[torch.Tensor, ...] = ()


@lru_cache(maxsize=4096)
def _texts(
    n: int, entries: int, element: Element, orientation: str, noisy: bool = False
) -> tuple[str, str]:
    """The program that chooses, and its adjoint."""
    program = mixture(n, entries, element, orientation, noisy)
    return program.text, adjoint(program, LEARNED, surrogate="dense").program.text


def _texts_for(dictionary: torch.Tensor, orientation: str, noisy: bool) -> tuple[str, str]:
    _, entries, n, _ = dictionary.shape
    return _texts(n, entries, _ELEMENTS[dictionary.dtype], orientation, noisy)


def programs_of(
    state_size: int, entries: int, dtype: torch.dtype, orientation: str, noisy: bool
) -> tuple[str, str]:
    """The programs of ``mixed_map`` and of ``mixture_gradient``.

    Args:
        state_size: ``N``.
        entries: ``K``.
        dtype: of the scan, whose real numbers are mixed.
        orientation: ``column`` or ``row``.
        noisy: whether there is noise.
    """
    return _texts(state_size, entries, _ELEMENTS[dtype.to_real()], orientation, noisy)


def _of_all_heads(
    number: torch.Tensor, dictionary: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """One number ``[H]``, beside the dictionary. Copying it there from the host would wait for
    the device; filling memory with it does not.
    """
    heads, device = dictionary.shape[0], dictionary.device
    if number.device != device:
        return torch.full((heads,), number.item(), dtype=dtype, device=device)
    return number.to(dtype).reshape(1).expand(heads)


def _by_name(
    weights: torch.Tensor, dictionary: torch.Tensor, noise: Sequence[torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """What a choice reads, by the program's names."""
    found = {"dictionary_logits": dictionary, "mixture_weights": _in_one_row(weights)}
    if noise:
        scale, seed, draw = noise
        found["noise_scale"] = _of_all_heads(scale, dictionary, dictionary.dtype)
        found["noise_seed"] = _of_all_heads(seed, dictionary, torch.int64)
        found["noise_draw"] = _in_one_row(draw)
    return found


def _run(text: str, named: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return run(text, [named[input_.name] for input_ in caller_inputs(program_of(text))])


def _in_one_row(tensor: torch.Tensor) -> torch.Tensor:
    """``[1, B · T, H, …]``: no token needs another, so all are tokens of one sequence."""
    return tensor.reshape(1, tensor.shape[0] * tensor.shape[1], *tensor.shape[2:])


def _mixed_map(
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    noise: Sequence[torch.Tensor] | None,
    orientation: str,
) -> torch.Tensor:
    """The destination maps of mixtures.

    ``M_t`` is added up in float32 over ``k = 0 … K-1`` in that order with fused multiply-adds, by
    definition: in another order near-ties choose another map. Ties go to the lowest index.

    Args:
        weights: see :class:`Mixture`.
        dictionary: likewise.
        noise: likewise; it is added to ``M_t``.
        orientation: likewise.

    Returns:
        int32 ``[B, T, H, N]``. Where there is a NaN the entry is -1, which the scan reports.

    Raises:
        NanLogitError: a NaN; elsewhere than on a CPU the scan reports it, as an index.
    """
    text, _ = _texts_for(dictionary, orientation, bool(noise))
    (found,) = _run(text, _by_name(weights, dictionary, noise))
    found = found.view(*weights.shape[:3], dictionary.shape[-1])
    if found.device.type == "cpu" and (found < 0).any():
        at = (found < 0).nonzero()[0].tolist()
        source = "in the weights or in the dictionary"
        if noise and noise[0].isnan().any():
            source = "noise, which is NaN itself"
        raise NanLogitError(
            f"the mixture of maps at token {at[:2]} of head {at[2]} has a NaN, so nothing can be "
            f"chosen; look for what made it, {source}"
        )
    return found


def _fake_mixed_map(
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    noise: Sequence[torch.Tensor] | None,
    orientation: str,
) -> torch.Tensor:
    return weights.new_empty((*weights.shape[:3], dictionary.shape[-1]), dtype=torch.int32)


def _mixture_gradient(
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    temperature: torch.Tensor,
    noise: Sequence[torch.Tensor] | None,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    orientation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of weights and dictionary; see the module's text.

    With ``ρ = softmax(M_t / τ)`` and ``∂P_t[i, j] = Re(conj(left[i]) right[j])``:
    ``∂M_t = ρ (∂P_t - Σ ρ ∂P_t) / τ``, ``∂s_t[k] = ⟨∂M_t, M_k⟩``, ``∂M_k = Σ_t s_t[k] ∂M_t``.
    By rows, ``P_t`` is the transposed: the map's ones are at ``[p[i], i]``.

    Args:
        weights: see :class:`Mixture`.
        dictionary: likewise.
        temperature: likewise.
        noise: likewise.
        orientation: likewise.
        map: of ``mixed_map``.
        left: complex ``[B, T, H, N]``.
        right: likewise.
    """
    check_temperature(temperature, dictionary.dtype)
    _, text = _texts_for(dictionary, orientation, bool(noise))
    dtype = dictionary.dtype
    left, right = (_in_one_row(side.to(_COMPLEX[dtype])) for side in (left, right))
    named = {
        **_by_name(weights, dictionary, noise),
        "left_mixed_map": left,
        "right_mixed_map": right,
        "saved_mixed_map": _in_one_row(map),
        "temperature": _of_all_heads(temperature, dictionary, dtype),
    }
    of_weights, of_dictionary = _run(text, named)
    return of_weights.view(weights.shape), of_dictionary.squeeze(0)


def _fake_mixture_gradient(
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    temperature: torch.Tensor,
    noise: Sequence[torch.Tensor] | None,
    map: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    orientation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return weights.new_empty(weights.shape), dictionary.new_empty(dictionary.shape)


@of_one_line
def _mixed_scan(
    program: str,
    inputs: Sequence[torch.Tensor],
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    temperature: torch.Tensor,
    noise: Sequence[torch.Tensor] | None,
    orientation: str,
    config: str,
) -> list[torch.Tensor]:
    return run(program, inputs, config, chosen=True)


@of_one_line
def _fake_mixed_scan(
    program: str,
    inputs: Sequence[torch.Tensor],
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    temperature: torch.Tensor,
    noise: Sequence[torch.Tensor] | None,
    orientation: str,
    config: str,
) -> list[torch.Tensor]:
    return scan_shapes(program, inputs)


def call_mixed(text: str, tensors: Sequence[torch.Tensor], mixed: Mixture) -> list[torch.Tensor]:
    """Run a scan by mixed maps, which are its input ``destination``; differentiable.

    Args:
        text: the scan's text form.
        tensors: its inputs, in order.
        mixed: what the maps are mixed from.
    """
    if not torch.compiler.is_compiling():
        given = (*tensors, mixed.weights, mixed.dictionary)
        refuse_unsupported(text, given)
        if is_plain(given):
            return run(text, tensors, chosen=True)
    return mixed_scan(
        one_line(text),
        list(tensors),
        mixed.weights,
        mixed.dictionary,
        mixed.temperature,
        list(mixed.noise) or None,
        mixed.orientation,
        "",
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    program, tensors, weights, dictionary, temperature, noise, ctx.orientation, config = inputs
    ctx.program = lines_of(program)
    ctx.config = config_text(backward_config(read_config(config)))
    ctx.count, ctx.noise = len(tensors), None if noise is None else len(noise)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        weights, dictionary, copy_for_backward(temperature), *(noise or ()), *tensors, *output
    )


def _backward(ctx: Any, grads: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    weights, dictionary, temperature, *saved = ctx.saved_tensors
    nothing = None if ctx.noise is None else [None] * ctx.noise
    noise, saved = saved[: ctx.noise or 0], saved[ctx.noise or 0 :]
    program = program_of(ctx.program)
    names = [input_.name for input_ in caller_inputs(program)]
    outputs = output_names(program)
    values = dict(zip(names, saved[: ctx.count], strict=True))
    results = dict(zip(outputs, saved[ctx.count :], strict=True))
    # Autograd gives the grads of a list result, for each of its tensors.
    arriving = {name: grad for name, grad in zip(outputs, grads, strict=True) if grad is not None}
    _, needed, of_weights, of_dictionary, *_ = ctx.needs_input_grad
    wrt = tuple(name for name, need in zip(names, needed, strict=True) if need)
    if of_weights or of_dictionary:
        wrt += (DESTINATION,)
    if not wrt or not arriving:
        return None, [None] * ctx.count, None, None, None, nothing, None, None
    derived = adjoint_of(ctx.program, wrt, tuple(sorted(arriving)), "dense")
    reads = {
        **values,
        **{f"grad_{name}": grad for name, grad in arriving.items()},
        **{name: results[output] for name, output in derived.saved.items()},
    }
    backward = derived.program
    given = [reads[input_.name] for input_ in caller_inputs(backward)]
    written = scan(one_line(backward.text), given, None, ctx.config, True)
    found = dict(zip(output_names(backward), written, strict=True))
    mixed: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    for use in derived.factors:
        # A scan has one move by its map.
        mixed = mixture_gradient(
            weights,
            dictionary,
            temperature,
            noise or None,
            values[DESTINATION],
            _as_complex(found[use.left]),
            _as_complex(found[use.right]),
            ctx.orientation,
        )
    of_inputs = [
        found[f"grad_{name}"] if need else None for name, need in zip(names, needed, strict=True)
    ]
    return None, of_inputs, *mixed, None, nothing, None, None


def _as_complex(vectors: torch.Tensor) -> torch.Tensor:
    """Complex numbers from themselves, or from pairs in low precision."""
    return vectors if vectors.is_complex() else torch.view_as_complex(vectors.float())


def _refuse_second(ctx: Any, *grads: torch.Tensor) -> None:
    raise ArgumentError(
        "the gradient of a mixture of maps has no gradient of its own: the maps are hard choices; "
        "differentiate pdssm_compiler.reference.mixture_pd_scan for second derivatives"
    )


for _name, _kernel, _fake in (
    ("mixed_map", _mixed_map, _fake_mixed_map),
    ("mixed_scan", _mixed_scan, _fake_mixed_scan),
    ("mixture_gradient", _mixture_gradient, _fake_mixture_gradient),
):
    on_every_device(_library, _name, _kernel)
    torch.library.register_fake(f"pdssm_compiler::{_name}", _fake)
    refuse_vmap(_library, _name)
torch.library.register_autograd(
    "pdssm_compiler::mixed_scan", _backward, setup_context=_setup_context
)
torch.library.register_autograd("pdssm_compiler::mixture_gradient", _refuse_second)

__all__ = [
    "DESTINATION",
    "Mixture",
    "call_mixed",
    "mixed_map",
    "mixed_scan",
    "mixture_gradient",
    "programs_of",
]
