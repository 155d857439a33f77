"""The torch operator: one for every scan program.

``pdssm_compiler::scan(str program, Tensor[] inputs, Tensor[]? entries, str config, bool trusted)
-> Tensor[]`` carries the program's text form as an argument, so a traced or exported graph says
what it computes and needs nothing of the process that made it. Its gradient is the same operator
with the adjoint's text.

``entries`` give the hard choices a gradient: None, or one real tensor for each input of maps or
indices, in the order of the inputs. They stand for entries of the one-hot forms, and their values
are never read; what arrives at them is a surrogate of :mod:`pdssm_compiler.ir.passes.adjoint`.
Their shape says which: for the active one they are the ones, in the shape of the choices; for the
dense one they are all entries, with one axis more: ``[H, K, N, N]`` for a table, whose map ``k``
has its ones at ``[h, k, p[j], j]``, and ``[B, T, H, K]`` for an index. A dense one whose last axis
is empty says that its input is no choice of anyone's, but given: it has no gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.passes.adjoint import Adjoint, Surrogate
from pdssm_compiler.ir.program import LEADING_AXES, Input, Program
from pdssm_compiler.ir.types import Index, Map, is_numeric
from pdssm_compiler.runtime.binding import Slot, allocate, check
from pdssm_compiler.runtime.compile_service import backward_config, config_text, read_config
from pdssm_compiler.runtime.dense import map_products, map_scores
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.faults import Chosen
from pdssm_compiler.runtime.one_line import lines_of, of_one_line, one_line
from pdssm_compiler.runtime.operators import on_every_device, refuse_vmap
from pdssm_compiler.runtime.plan import caller_inputs, one_device, program_of, run
from pdssm_compiler.schedules.signature import Argument, Signature

_library = torch.library.Library("pdssm_compiler", "DEF")
_library.define(
    "scan(str program, Tensor[] inputs, Tensor[]? entries, str config, bool trusted) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@of_one_line
def _scan(
    program: str,
    inputs: Sequence[torch.Tensor],
    entries: Sequence[torch.Tensor] | None,
    config: str,
    trusted: bool,
) -> list[torch.Tensor]:
    check_entries(program, entries)
    return run(program, inputs, config, trusted, chosen=hard_choices(program, entries))


def check_entries(text: str, entries: Sequence[torch.Tensor] | None) -> None:
    """Refuse a number of entries that is neither none nor one for each choice, and entries of two
    surrogates.
    """
    if not entries:
        return
    choices = chosen_inputs(program_of(text))
    if len(entries) != len(choices):
        names = ", ".join(input_.name for input_ in choices)
        raise ArgumentError(f"expected an entry for each of {names}, or none, got {len(entries)}")
    more = [e.dim() - _rank(input_) for e, input_ in zip(entries, choices, strict=True)]
    if more[0] not in (0, 1) or set(more) != {more[0]}:
        told = ", ".join(
            f"{list(e.shape)} for {input_.name}"
            for e, input_ in zip(entries, choices, strict=True)
        )
        raise ArgumentError(
            f"entries must have the shapes of the choices, or each one axis more, got {told}; "
            f"give all of one surrogate"
        )


def hard_choices(text: str, entries: Sequence[torch.Tensor] | None) -> Chosen:
    """Which inputs are hard choices: those that have entries."""
    if not entries:
        return False
    if all(entry.shape[-1] != 0 for entry in entries):
        return True
    choices = zip(chosen_inputs(program_of(text)), entries, strict=True)
    return frozenset(input_.name for input_, entry in choices if entry.shape[-1] != 0)


def _rank(choice: Input) -> int:
    """How many axes the tensor of a choice has."""
    own = {Index: 0, Map: 1}.get(type(choice.type), 2)
    return len(LEADING_AXES[choice.role]) + own


def surrogate_of(text: str, entries: Sequence[torch.Tensor] | None) -> Surrogate:
    """Which surrogate the entries are of, by their shape."""
    choices = chosen_inputs(program_of(text))
    return "dense" if entries and entries[0].dim() > _rank(choices[0]) else "active"


on_every_device(_library, "scan", _scan)
refuse_vmap(_library, "scan")

scan = torch.ops.pdssm_compiler.scan.default


@lru_cache(maxsize=4096)
def slots_of(text: str) -> tuple[list[Slot], list[Slot]]:
    """What the operator's inputs and its results look like, by a program's text."""
    program = program_of(text)
    n = program.state_size
    signature = Signature(program)
    inputs = [
        Slot.of(Argument(i.name, i.type, i.storage, i.role), n) for i in caller_inputs(program)
    ]
    return inputs, [Slot.of(argument, n) for argument in signature.outputs]


def chosen_inputs(program: Program) -> tuple[Input, ...]:
    """The inputs of maps, tables and indices that a caller passes, in order."""
    return tuple(input_ for input_ in caller_inputs(program) if not is_numeric(input_.type))


@of_one_line
def _fake(
    program: str,
    inputs: Sequence[torch.Tensor],
    entries: Sequence[torch.Tensor] | None,
    config: str,
    trusted: bool,
) -> list[torch.Tensor]:
    check_entries(program, entries)
    return scan_shapes(program, inputs)


def scan_shapes(text: str, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors such as a program gives for some inputs, of which only the shapes count."""
    slots, outputs = slots_of(text)
    device = one_device(text, inputs)
    sizes = check(slots, inputs)
    return [allocate(slot, sizes, device) for slot in outputs]


@lru_cache(maxsize=4096)
def adjoint_of(
    text: str,
    wrt: tuple[str, ...],
    cotangents: tuple[str, ...],
    surrogate: Surrogate = "active",
) -> Adjoint:
    """The adjoint of a program by its text, for these inputs, hard choices by a surrogate, and
    these arriving gradients.
    """
    return adjoint(program_of(text), wrt, cotangents, surrogate)


def differentiable(program: Program) -> Program:
    """The program to run where gradients will be wanted: what its backward reads, it writes."""
    return adjoint(program).forward


def output_names(program: Program) -> list[str]:
    """Names of the operator's results, in order."""
    return [argument.name for argument in Signature(program).outputs]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    program, tensors, entries, config, _ = inputs
    ctx.program = program = lines_of(program)
    ctx.config = config_text(backward_config(read_config(config)))
    ctx.count = len(tensors)
    ctx.entries = None if entries is None else [entry.dtype for entry in entries]
    ctx.surrogate = surrogate_of(program, entries)
    # An absent gradient costs nothing; a tensor of zeros would be read.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _backward(
    ctx: Any, grads: Sequence[torch.Tensor | None]
) -> tuple[None, list[Any], list[Any] | None, None, None]:
    program = program_of(ctx.program)
    saved = ctx.saved_tensors
    names = [input_.name for input_ in caller_inputs(program)]
    outputs = output_names(program)
    values = dict(zip(names, saved[: ctx.count], strict=True))
    results = dict(zip(outputs, saved[ctx.count :], strict=True))
    # Autograd gives the grads of a list result, for each of its tensors.
    arriving = {name: grad for name, grad in zip(outputs, grads, strict=True) if grad is not None}
    _, needed, chosen, _, _ = ctx.needs_input_grad
    choices = [input_.name for input_ in chosen_inputs(program)] if ctx.entries else []
    chosen = chosen if ctx.entries else []
    wrt = tuple(name for name, need in zip(names, needed, strict=True) if need)
    wrt += tuple(name for name, need in zip(choices, chosen, strict=True) if need)
    if not wrt or not arriving:
        nothing = None if ctx.entries is None else [None] * len(choices)
        return None, [None] * ctx.count, nothing, None, None
    try:
        derived = adjoint_of(ctx.program, wrt, tuple(sorted(arriving)), ctx.surrogate)
    except PassError as error:
        raise ArgumentError(
            f"the gradient of a scan has no gradient of its own here ({error}); differentiate "
            f"pdssm_compiler.reference.pd_scan for second derivatives"
        ) from error
    reads = {
        **values,
        **{f"grad_{name}": grad for name, grad in arriving.items()},
        **{name: results[output] for name, output in derived.saved.items()},
    }
    backward = derived.program
    tensors = [reads[input_.name] for input_ in caller_inputs(backward)]
    written = scan(one_line(backward.text), tensors, None, ctx.config, True)
    found = dict(zip(output_names(backward), written, strict=True))
    for name in derived.summed:
        found[name] = found[name].sum(dim=0)
    for name, grad in of_all_entries(derived, found, values, wrt):
        found[name] = found[name] + grad if name in found else grad
    # An integer input's gradient is its entry's.
    of_inputs = [
        found[f"grad_{name}"] if need else None for name, need in zip(names, needed, strict=True)
    ]
    # What no token uses has none.
    of_choices = [found.get(f"grad_{name}") for name in choices]
    of_entries = [
        grad.to(dtype) if need and grad is not None else None
        for grad, dtype, need in zip(of_choices, ctx.entries or (), chosen, strict=True)
    ]
    return None, of_inputs, None if ctx.entries is None else of_entries, None, None


def of_all_entries(
    derived: Adjoint,
    found: Mapping[str, torch.Tensor],
    values: Mapping[str, torch.Tensor],
    wrt: Sequence[str],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The gradients of all entries, by each use of a choice, from what the backward gave.

    Args:
        derived: the adjoint, by the dense surrogate.
        found: what its program gave, by name.
        values: the forward's inputs, by name.
        wrt: what has a gradient.

    Yields:
        ``grad_<input>`` and the part of one use; a choice used twice has the sum.
    """
    for use in derived.factors:
        if use.table is None:
            raise ArgumentError(
                f"{use.index} is a map a token, all of whose entries would be [B, T, H, N, N]; "
                f"they have no gradient here: take mixture_pd_scan, whose maps numbers choose"
            )
        left, right = found[use.left], found[use.right]
        table, index = values[use.table], values[use.index]
        if use.table in wrt:
            yield f"grad_{use.table}", map_products(left, right, index, table.shape[1])
        if use.index in wrt:
            yield f"grad_{use.index}", map_scores(left, right, table)


torch.library.register_fake("pdssm_compiler::scan", _fake)
torch.library.register_autograd("pdssm_compiler::scan", _backward, setup_context=_setup_context)

__all__ = [
    "adjoint_of",
    "check_entries",
    "chosen_inputs",
    "differentiable",
    "hard_choices",
    "of_all_entries",
    "output_names",
    "scan",
    "scan_shapes",
    "slots_of",
    "surrogate_of",
]
