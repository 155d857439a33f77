"""An op that the package does not have, put into its tables for a test's time.

What is put there is what CONTRIBUTING asks of a new op: an entry in the op table, and a rule for
the emitters. No template, pass or skeleton knows of it.
"""

from collections.abc import Callable
from typing import Any

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.ops import OPS, Op, apply
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.types import Index, Table, Vector
from pdssm_compiler.schedules.emit import arithmetic, pytorch

NAME = "cubed"


def plant(setitem: Callable[[Any, str, Any], None]) -> None:
    """``x³`` of real numbers: the op's entry and its rules.

    Args:
        setitem: a monkeypatch's, which takes them out again.
    """
    entry = Op(
        NAME,
        1,
        lambda types, _: types[0],
        lambda n, attributes, x: x**3,
        lambda g, v: (b.mul(g, b.mul(b.mul(v.args[0], v.args[0]), 3.0)),),
    )
    setitem(OPS, NAME, entry)
    setitem(arithmetic._RULES, NAME, lambda x: (f"{x[0]} * {x[0]} * {x[0]}",))
    setitem(pytorch.RULES, NAME, lambda n, args: f"{args[0]} * {args[0]} * {args[0]}")


def programs() -> list[Program]:
    """A scan whose diagonal and read-out use the op, and its backward, which computes it again."""
    build = ProgramBuilder(5)
    state = build.carry("state", Vector("c64"))
    a, c = (build.input(name, Vector("f32")) for name in ("a", "c"))
    maps = build.input("maps", Table(3), "head")
    which = build.input("which", Index(3), "token")
    diagonal = b.complex_(apply(NAME, b.function("tanh", a)), b.function("sin", c))
    moved = b.scatter_add(b.mul(b.mul(diagonal, 0.5), state), b.select(maps, which))
    following = b.add(moved, build.input("drive", Vector("c64")))
    build.next("state", following)
    build.emit("read", b.mul(b.real(following), apply(NAME, c)))
    build.final("last", "state")
    derived = adjoint(build.build(), surrogate="active")
    return [derived.forward, derived.program]
