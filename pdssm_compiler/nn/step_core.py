"""The core of one token in one kernel, for decoding: the torch operator
``pdssm_compiler::mixer_step``.

``mixer_step(str program, Tensor projection, Tensor[] others, Tensor state) -> (Tensor, Tensor)``
runs a token of :mod:`pdssm_compiler.nn.core`: ``projection`` ``[B, 1, 6·d + H·K]`` as in
:mod:`pdssm_compiler.nn.packed_core`, ``others`` the program's other inputs by name in order,
``state`` float32 pairs ``[B, H, N, 2]``. It gives what the output projection reads,
``[B, 1, H, N]``, and the next state. Nothing has a gradient here.

What a head has is read as its parameters are stored: a token is so little work that another kernel
to prepare them, or to copy the state, would be as long as this one.
"""

from functools import cache, lru_cache

import torch
from torch.nn import functional

from pdssm_compiler.fusion.inputs import InputSpec, input_name
from pdssm_compiler.fusion.trace import trace
from pdssm_compiler.ir.programs import pd_scan
from pdssm_compiler.nn.core import readout
from pdssm_compiler.nn.packed_core import SELECTION, other_names, parts_of
from pdssm_compiler.runtime.backends import BACKENDS
from pdssm_compiler.runtime.choices import chosen_along_last
from pdssm_compiler.runtime.one_line import of_one_line, one_line
from pdssm_compiler.runtime.operators import on_every_device, refuse_vmap
from pdssm_compiler.runtime.plan import run
from pdssm_compiler.runtime.segmented import Named, Segmented, Tensors, segmented
from pdssm_compiler.runtime.tracing import constant
from pdssm_compiler.spec import ScanSpec

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
_library.define(
    "mixer_step(str program, Tensor projection, Tensor[] others, Tensor state) "
    "-> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

_mixer_step = torch.ops.pdssm_compiler.mixer_step.default


def diagonal(delta, phase, bias, a_log):  # type: ignore[no-untyped-def]
    """``D``, from the parameters as they are."""
    return torch.polar(torch.exp(-functional.softplus(delta + bias) * torch.exp(a_log)), phase)


def mix_step(
    projection: torch.Tensor,
    u: torch.Tensor,
    gate: torch.Tensor,
    bias: torch.Tensor,
    a_log: torch.Tensor,
    skip: torch.Tensor,
    dictionary: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token, from its projection to what the output projection reads.

    Args:
        projection: bfloat16 or float16 ``[B, 1, 6·H·N + H·K]``.
        u: likewise ``[B, 1, H, N]``.
        gate: likewise.
        bias: of ``δ``, float32, bfloat16 or float16 ``[H, N]``.
        a_log: likewise.
        skip: likewise.
        dictionary: the destination maps, int32 ``[H, K, N]``.
        state: float32 pairs ``[B, H, N, 2]``.

    Returns:
        ``(y, state)``: ``[B, 1, H, N]`` in the projection's dtype, and the state after the token.

    Raises:
        ArgumentError, NanLogitError: as :func:`pdssm_compiler.nn.core.mix`.
    """
    named = {"u": u, "gate": gate, "bias": bias, "a_log": a_log, "skip": skip}
    read = {input_name(name): tensor for name, tensor in named.items()}
    read["dictionary"] = dictionary
    _, maps, size = dictionary.shape
    chooses = _chooses(projection.device)
    text = _constant_text(size, maps, projection.dtype, a_log.dtype, chooses)
    found: tuple[torch.Tensor, torch.Tensor] = _mixer_step(
        one_line(text), projection, [read[name] for name in sorted(read)], state
    )
    return found


@constant
def _chooses(device: torch.device) -> bool:
    """Whether a kernel of one token can choose the map itself."""
    return device.type == "cuda" and torch.version.hip is None and _has_cuda_kernels()


@cache
def _has_cuda_kernels() -> bool:
    # It looks for packages and compilers, which takes longer than a token.
    return BACKENDS["tvm-cuda"].unavailable() is None


@constant
def _constant_text(
    size: int, maps: int, dtype: torch.dtype, stored: torch.dtype, chooses: bool
) -> str:
    """The program's text; a compiler that traces the call asks once."""
    return step_text(size, maps, dtype, stored, chooses)


@lru_cache(maxsize=256)
def step_text(size: int, maps: int, dtype: torch.dtype, stored: torch.dtype, chooses: bool) -> str:
    """The text of the program of one token.

    Args:
        size: ``N``.
        maps: ``K``.
        dtype: of the projection.
        stored: of the parameters.
        chooses: whether it reads the selector's logits instead of the selection.
    """
    inputs = dict.fromkeys(("delta", "phase", "u", "gate"), InputSpec(dtype=dtype))
    inputs |= dict.fromkeys(("bias", "a_log", "skip"), InputSpec("HN", stored))
    inputs["c"] = InputSpec(dtype=dtype, pairs=True)
    spec = ScanSpec(size, maps, payload_dtype=dtype)
    fusion = trace(spec, diagonal, readout, inputs).fusion
    program = pd_scan(spec.program_spec(initial_state=True, final_state=True), fusion)
    if chooses:
        # They stand in the same projection.
        storage = program.input(input_name("delta")).storage
        program = program.stored(SELECTION, storage)
    return program.text


def _named(
    scan: Segmented, projection: torch.Tensor, others: Tensors
) -> tuple[Named, torch.Tensor]:
    """The program's inputs by name, but for selection and state, and the selector's logits."""
    names = [name for name in other_names(scan) if name != "initial_state"]
    named = dict(zip(names, others, strict=True))
    parts, logits = parts_of(scan, projection, named["dictionary"].shape[0])
    return named | parts, logits


@of_one_line
def _step(
    program: str, projection: torch.Tensor, others: Tensors, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scan = segmented(program)
    named, logits = _named(scan, projection, others)
    if not scan.program.logits:
        logits = chosen_along_last(logits, "selector_logits")
    named |= {SELECTION: logits, "initial_state": torch.view_as_complex(state)}
    y, final = run(program, [named[name] for name in scan.input_slots], "", True, chosen=True)
    return y, torch.view_as_real(final)


@of_one_line
def _fake(
    program: str, projection: torch.Tensor, others: Tensors, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scan = segmented(program)
    _, logits = _named(scan, projection, others)
    sizes = (*logits.shape[:3], scan.program.state_size)
    return projection.new_empty(sizes), torch.empty_like(
        state, memory_format=torch.contiguous_format
    )


on_every_device(_library, "mixer_step", _step)
refuse_vmap(_library, "mixer_step")
torch.library.register_fake("pdssm_compiler::mixer_step", _fake)

__all__ = ["mix_step"]
