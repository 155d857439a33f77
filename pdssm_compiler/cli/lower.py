"""``pdssm-compiler lower``: print any stage on the way from a specification to a kernel."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pdssm_compiler.cli import options as o
from pdssm_compiler.cli.consoles import messages
from pdssm_compiler.ir.errors import PdssmError
from pdssm_compiler.spec import ScanSpec

if TYPE_CHECKING:
    from pdssm_compiler.ir.programs import PdScan


class Stage(StrEnum):
    """What to print."""

    ir = "ir"
    specialised = "specialised"
    adjoint = "adjoint"
    summary = "summary"
    schedule = "schedule"
    source = "source"
    backward_source = "backward-source"
    ttir = "ttir"
    ttgir = "ttgir"
    llir = "llir"
    cuda = "cuda"
    ptx = "ptx"
    sass = "sass"
    amdgcn = "amdgcn"


# What every target has; the others are of its backend's compilers.
_PROGRAMS = (Stage.ir, Stage.specialised, Stage.adjoint, Stage.summary)
_OURS = (*_PROGRAMS, Stage.schedule, Stage.source, Stage.backward_source)


class StageError(PdssmError, ValueError):
    """The target has no such stage."""


class SizesError(PdssmError, ValueError):
    """Some of a call's sizes are given, and not all."""


@o.takes_spec
def lower(
    spec: ScanSpec,
    stage: Annotated[Stage, typer.Argument(help="What to print.")] = Stage.ir,
    target: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, a GPU such as sm_90 or h200, or a file that describes one."),
    ] = None,
    template: o.Template = None,
    batch: Annotated[
        int | None, typer.Option("--batch", "-B", min=1, help="B, sequences.")
    ] = None,
    length: Annotated[int | None, typer.Option("--length", "-T", min=1, help="T, tokens.")] = None,
    heads: Annotated[int | None, typer.Option("--heads", "-H", min=1, help="H, heads.")] = None,
    initial_state: o.InitialState = False,
    final_state: o.FinalState = False,
    packed: o.Packed = False,
    reverse: o.Reverse = False,
) -> None:
    """Print a stage. Of a scan: ir, specialised, adjoint, summary. Of its kernels on a target:
    schedule, source, backward-source. Of the forward kernel's compiler: cuda, ptx, sass
    (cuda-step, cuda-rows, cuda-chunks); ttir, ttgir, llir, then ptx, sass or amdgcn (triton-rows,
    triton-lookback, triton-chunks). With --batch, --length and --heads a kernel is what calls of
    these sizes take, by logs and predictions as well; without them, what is taken where sizes are
    not known.
    """
    from pdssm_compiler.compiled import compile
    from pdssm_compiler.runtime.backends import BACKENDS

    if stage in _PROGRAMS:
        for option, given in (("--target", target), ("--template", template)):
            if given is not None:
                told = f"{option} is not used: {stage.value} is the same for all"
                messages().print(told, markup=False, highlight=False)
        program_spec = spec.program_spec(
            initial_state=initial_state, final_state=final_state, packed=packed, reverse=reverse
        )
        typer.echo(_program(stage, program_spec), nl=False)
        return
    sizes = (batch, length, heads)
    if None in sizes and any(sizes):
        raise SizesError("--batch, --length and --heads go together; give all three, or none")
    compiled = compile(
        spec,
        target,
        config=template,
        sizes=sizes if any(sizes) else None,  # type: ignore[arg-type]
        initial_state=initial_state,
        output_final_state=final_state,
        packed=packed,
        reverse=reverse,
    )
    if stage is Stage.schedule:
        typer.echo(compiled.explain())
    elif stage is Stage.source:
        typer.echo(compiled.source.text, nl=False)
    elif stage is Stage.backward_source:
        typer.echo(compiled.backward_source.text, nl=False)
    else:
        theirs = BACKENDS[compiled.source.backend].stages(compiled.source, compiled.files)
        if stage.value not in theirs:
            stages = ", ".join((*(s.value for s in _OURS), *theirs))
            raise StageError(
                f"{compiled.source.template} on {compiled.target} has no stage {stage.value!r}; "
                f"name one of its own ({stages}), another --template, or another --target, such "
                f"as sm_90 or gfx942"
            )
        typer.echo(theirs[stage.value](), nl=False)


def _program(stage: Stage, spec: "PdScan") -> str:
    """A stage that needs no target."""
    from pdssm_compiler.ir.passes import adjoint, specialise, summarise
    from pdssm_compiler.ir.programs import pd_scan

    program = pd_scan(spec)
    if stage is Stage.ir:
        return program.text
    if stage is Stage.specialised:
        return specialise(program).text
    if stage is Stage.adjoint:
        return adjoint(program).program.text
    summary = summarise(program)
    parts = (("fold", summary.fold), ("combine", summary.combine), ("apply", summary.apply))
    return "\n".join(f"# {name}\n{part.text}" for name, part in parts)
