"""``summarise`` op by op: each way a step may be affine in the carry, alone and combined."""

from collections.abc import Callable

import pytest

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import summarise
from pdssm_compiler.ir.types import Map, Scalar, Vector
from pdssm_compiler.ir.value import Value
from tests.ir.chunks import assert_chunks_give_the_scan
from tests.strategies import Sizes, arrays_for

# Of the carry x, complex d and e, a real a, a scalar s, and maps p and q.
Step = Callable[[Value, Value, Value, Value, Value, Value, Value], Value]

STEPS: dict[str, tuple[str, Step]] = {
    "d x": ("diagonal", lambda x, d, e, a, s, p, q: b.mul(d, x)),
    "x a": ("diagonal", lambda x, d, e, a, s, p, q: b.mul(x, a)),
    "s x": ("diagonal", lambda x, d, e, a, s, p, q: b.mul(s, x)),
    "-x": ("diagonal", lambda x, d, e, a, s, p, q: b.neg(x)),
    "-(x + e)": ("diagonal", lambda x, d, e, a, s, p, q: b.neg(b.add(x, e))),
    "d x + e": ("diagonal", lambda x, d, e, a, s, p, q: b.add(b.mul(d, x), e)),
    "a + x": ("diagonal", lambda x, d, e, a, s, p, q: b.add(a, x)),
    "x - e": ("diagonal", lambda x, d, e, a, s, p, q: b.sub(x, e)),
    "e - d x": ("diagonal", lambda x, d, e, a, s, p, q: b.sub(e, b.mul(d, x))),
    "d x + a x": ("diagonal", lambda x, d, e, a, s, p, q: b.add(b.mul(d, x), b.mul(a, x))),
    "d x - (x - e)": ("diagonal", lambda x, d, e, a, s, p, q: b.sub(b.mul(d, x), b.sub(x, e))),
    "d (x + e)": ("diagonal", lambda x, d, e, a, s, p, q: b.mul(d, b.add(x, e))),
    "P x": ("column", lambda x, d, e, a, s, p, q: b.scatter_add(x, p)),
    "P d x + e": (
        "column",
        lambda x, d, e, a, s, p, q: b.add(b.scatter_add(b.mul(d, x), p), e),
    ),
    "d P x": ("column", lambda x, d, e, a, s, p, q: b.mul(d, b.scatter_add(x, p))),
    "P (x + e)": ("column", lambda x, d, e, a, s, p, q: b.scatter_add(b.add(x, e), p)),
    "Q d P x": (
        "column",
        lambda x, d, e, a, s, p, q: b.scatter_add(b.mul(d, b.scatter_add(x, p)), q),
    ),
    "d P x - a P x": (
        "column",
        lambda x, d, e, a, s, p, q: b.sub(
            b.mul(d, b.scatter_add(x, p)), b.mul(a, b.scatter_add(x, p))
        ),
    ),
    "x[p]": ("row", lambda x, d, e, a, s, p, q: b.gather(x, p)),
    "d x[p] + e": ("row", lambda x, d, e, a, s, p, q: b.add(b.mul(d, b.gather(x, p)), e)),
    "(d x)[p]": ("row", lambda x, d, e, a, s, p, q: b.gather(b.mul(d, x), p)),
    "(x + e)[p]": ("row", lambda x, d, e, a, s, p, q: b.gather(b.add(x, e), p)),
    "(d x[p])[q]": (
        "row",
        lambda x, d, e, a, s, p, q: b.gather(b.mul(d, b.gather(x, p)), q),
    ),
    "x by gathered maps": (
        "row",
        lambda x, d, e, a, s, p, q: b.gather(x, b.compose(p, q)),
    ),
}


def program_of(step: Step, direction: str) -> Program:
    build = ProgramBuilder(4, direction)
    d, e = build.input("d", Vector("c128")), build.input("e", Vector("c128"))
    a, s = build.input("a", Vector("f64"), "head"), build.input("s", Scalar("f64"))
    p, q = build.input("p", Map()), build.input("q", Map(), "row")
    x = build.carry("x", Vector("c128"), build.input("x0", Vector("c128"), "row"))
    build.next("x", step(x, d, e, a, s, p, q))
    build.emit("states", step(x, d, e, a, s, p, q))
    return build.build()


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", STEPS)
def test_affine_step(name: str, direction: str) -> None:
    form, step = STEPS[name]
    program = program_of(step, direction)
    summary = summarise(program)
    assert summary.form == form
    arrays = arrays_for(program, Sizes(2, 6, 2), seed=9)
    assert_chunks_give_the_scan(program, summary, arrays, [0, 1, 4, 6])
