"""Programs that some templates refuse."""

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.types import Vector


def squares() -> Program:
    """What has no summary."""
    build = ProgramBuilder(4)
    carry = build.carry("state", Vector("f32"))
    build.next("state", b.mul(carry, carry))
    build.emit("states", b.add(carry, build.input("drive", Vector("f32"))))
    return build.build()


def summed() -> Program:
    """A sum over all tokens, by no index."""
    build = ProgramBuilder(4)
    carry = build.carry("state", Vector("f32"))
    following = b.add(carry, build.input("drive", Vector("f32")))
    build.next("state", following)
    build.sum("total", following)
    return build.build()
