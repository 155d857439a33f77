"""The programs whose printed form is kept in ``tests/golden/ir``, before and after each pass.

A name is ``<source>_<orientation>_<class>.<what is printed>``.
"""

from collections.abc import Callable

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint, simplify, specialise, summarise
from pdssm_compiler.ir.passes.specialise import inverse_program, promise_program
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Map, Table, Vector

Stage = Callable[[Program], Program]

# All but whether a token follows another, which is no choice.
_PD_INPUTS = ("diagonal", "dictionary", "drive", "selection")

STAGES: dict[str, Stage] = {
    "program": lambda program: program,
    "adjoint": lambda program: adjoint(program).program,
    "active_adjoint": lambda program: adjoint(program, surrogate="active").program,
    "dense_adjoint": lambda program: adjoint(program, _PD_INPUTS, surrogate="dense").program,
    "fold": lambda program: summarise(program).fold,
    "combine": lambda program: summarise(program).combine,
    "apply": lambda program: summarise(program).apply,
    "specialised": specialise,
    "specialised_adjoint": lambda program: specialise(adjoint(program).program),
    "adjoint_fold": lambda program: summarise(adjoint(program, ["drive"]).program).fold,
    "adjoint_combine": lambda program: summarise(adjoint(program, ["drive"]).program).combine,
}

# Every stage where it first shows something; later variants only what differs.
KEPT: dict[str, tuple[str, ...]] = {
    "dictionary_column_general": (
        "program",
        "adjoint",
        "active_adjoint",
        "dense_adjoint",
        "fold",
        "combine",
        "apply",
        "adjoint_fold",
        "adjoint_combine",
    ),
    "dictionary_row_general": (
        "program",
        "adjoint",
        "active_adjoint",
        "dense_adjoint",
        "fold",
        "combine",
    ),
    "dictionary_column_permutation": ("program", "specialised", "specialised_adjoint"),
    "dictionary_row_permutation": ("specialised_adjoint",),
    "token_column_general": ("adjoint", "active_adjoint"),
    "token_row_general": ("adjoint",),
    "token_column_permutation": ("program", "specialised"),
    "token_row_identity": ("program", "specialised"),
    "none_column_general": ("program", "adjoint", "fold", "combine", "apply"),
    "dictionary_column_packed": ("program", "adjoint", "fold", "combine"),
}


def _pd_scan(name: str) -> Program:
    source, orientation, class_ = name.split("_")
    if class_ == "packed":
        return pd_scan(PdScan(16, 4, map_source=source, packed=True, reverse=True))
    return pd_scan(
        PdScan(
            16,
            4 if source == "dictionary" else None,
            map_source=source,
            map_class=class_,
            orientation=orientation,
            initial_state=True,
            final_state=True,
        )
    )


def _readout() -> Program:
    """A fused body: ``|D| = exp(-softplus(Δ))``, and the read-out ``Re(C x)`` times a gate."""
    build = ProgramBuilder(16, chunk_length=64)
    delta, phase = (build.input(name, Vector("f32")) for name in ("delta", "phase"))
    drive, c = build.input("drive", Vector("c64")), build.input("c", Vector("c64"))
    gain = build.input("gain", Vector("f32"), "head", "bf16")
    state = build.carry("state", Vector("c64"))
    decay = b.function("exp", b.neg(b.function("softplus", delta)))
    after = b.add(b.mul(b.polar(decay, phase), state), drive)
    build.next("state", after)
    build.emit("y", b.mul(b.real(b.mul(c, after)), b.mul(gain, 1.0)))
    return build.build()


PROGRAMS: dict[str, Callable[[], Program]] = {
    f"{name}.{stage}": lambda name=name, stage=stage: STAGES[stage](_pd_scan(name))
    for name, stages in KEPT.items()
    for stage in stages
} | {
    "readout.program": _readout,
    "readout.simplified": lambda: simplify(_readout()),
    "readout.adjoint": lambda: adjoint(_readout()).program,
    "table.inverse": lambda: inverse_program(16, Input("t", Table(4, "permutation"), "head")),
    "map.promise": lambda: promise_program(16, Input("p", Map("identity"), storage="u8")),
}
