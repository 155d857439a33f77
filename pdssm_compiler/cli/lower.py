"""``pdssm-compiler lower``: print any stage on the way from a specification to a kernel."""

from enum import StrEnum
from typing import Annotated

import typer

from pdssm_compiler.cli import options as o
from pdssm_compiler.ir.errors import PdssmError


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
    ptx = "ptx"
    amdgcn = "amdgcn"


class StageError(PdssmError, ValueError):
    """The target has no such stage."""


def lower(
    stage: Annotated[Stage, typer.Argument(help="What to print.")] = Stage.ir,
    target: Annotated[
        str | None, typer.Option(help="cpu, cuda, or an architecture such as sm_90 or gfx942.")
    ] = None,
    state_size: o.StateSize = 32,
    dictionary_size: o.DictionarySize = 32,
    dtype: o.DtypeOption = o.Dtype.complex64,
    payload_dtype: o.PayloadOption = None,
    map_source: o.MapSourceOption = o.MapSource.dictionary,
    map_class: o.MapClassOption = o.MapClass.general,
    orientation: o.OrientationOption = o.Orientation.column,
    initial_state: o.InitialState = False,
    final_state: o.FinalState = False,
) -> None:
    """Print a stage: ir, specialised, adjoint, summary, schedule, source, backward-source, or a
    compiler's own (ttir, ttgir, llir, ptx, amdgcn).
    """
    from pdssm_compiler.compiled import compile

    spec = o.spec_of(
        state_size,
        dictionary_size,
        dtype,
        payload_dtype,
        map_source,
        map_class,
        orientation,
    )
    if stage in (Stage.ir, Stage.specialised, Stage.adjoint, Stage.summary):
        typer.echo(_program(stage, spec, initial_state, final_state), nl=False)
        return
    compiled = compile(spec, target, initial_state=initial_state, output_final_state=final_state)
    if stage is Stage.schedule:
        typer.echo(compiled.explain())
    elif stage is Stage.source:
        typer.echo(compiled.source.text, nl=False)
    elif stage is Stage.backward_source:
        typer.echo(compiled.backward_source.text, nl=False)
    else:
        name = f"scan.{stage.value}"
        if name not in compiled.files:
            stages = ", ".join(sorted(n.removeprefix("scan.") for n in compiled.files))
            raise StageError(
                f"{compiled.target} has no stage {stage.value!r}; it has {stages}: name one of "
                f"them, or another --target"
            )
        typer.echo(compiled.files[name].decode(), nl=False)


def _program(stage: Stage, spec, initial_state: bool, final_state: bool) -> str:  # type: ignore[no-untyped-def]
    """A stage that needs no target."""
    from pdssm_compiler.ir.passes import adjoint, specialise, summarise
    from pdssm_compiler.ir.programs import pd_scan

    program = pd_scan(spec.program_spec(initial_state=initial_state, final_state=final_state))
    if stage is Stage.ir:
        return program.text
    if stage is Stage.specialised:
        return specialise(program).text
    if stage is Stage.adjoint:
        return adjoint(program).program.text
    summary = summarise(program)
    parts = (("fold", summary.fold), ("combine", summary.combine), ("apply", summary.apply))
    return "\n".join(f"# {name}\n{part.text}" for name, part in parts)
