"""What is timed: programs with their tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from benchmarks.problems import MAP_CLASSES, random_problem
from pdssm_compiler.arguments import read_call
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.ops import adjoint_of
from pdssm_compiler.runtime.plan import caller_inputs, program_of, run
from pdssm_compiler.runtime.tuning.floor import floor_bytes
from pdssm_compiler.suite import Shape

# The inputs whose gradients each backward gives. "Backward, active" is that of `flash_pd_scan`.
BACKWARDS = {
    "backward": ("diagonal", "drive"),
    "backward, active": ("diagonal", "dictionary", "drive", "selection"),
}
DIRECTIONS = ("forward", *BACKWARDS)
# A step of training, as one sum.
BOTH = "forward + backward, active"


@dataclass(frozen=True)
class Call:
    """One run of a program.

    Attributes:
        text: the program's text form.
        tensors: its inputs, in order.
        config: an explicit schedule, or "".
    """

    text: str
    tensors: Sequence[torch.Tensor] = field(repr=False)
    config: str = ""

    @property
    def program(self) -> Program:
        """The program."""
        return program_of(self.text)

    def __call__(self) -> list[torch.Tensor]:
        """Run it; what is promised about the maps holds by their making."""
        return run(self.text, self.tensors, self.config, trusted=True)

    def copy(self) -> "Call":
        """The same call on memory of its own."""
        return Call(self.text, [tensor.clone() for tensor in self.tensors], self.config)

    @cached_property
    def floor_bytes(self) -> int:
        """See :func:`~pdssm_compiler.runtime.tuning.floor.floor_bytes`."""
        return floor_bytes(self.text, self.tensors)


def calls_of(
    shape: Shape,
    maps: str,
    device: torch.device,
    payload: torch.dtype | None = None,
    directions: Sequence[str] = DIRECTIONS,
) -> dict[str, Call]:
    """The forward of a random problem and those of its backwards that are asked for.

    A step, of one token, starts from a state, gives the next, and has no backward. The states
    that a backward reads are random: its time does not depend on them, and it can be timed where
    the forward fails.

    Args:
        shape: the sizes.
        maps: one of :data:`~benchmarks.problems.MAP_CLASSES`.
        device: where.
        payload: a dtype of drive and states other than the diagonal's.
        directions: of :data:`DIRECTIONS`.
    """
    is_step = shape.length == 1
    problem = random_problem(shape, device, maps=maps)
    drive = problem.drive
    if payload is not None:
        drive = torch.view_as_real(drive).to(payload)
    before = torch.randn_like(problem.drive[:, 0]) if is_step else None
    request = read_call(
        problem.diagonal,
        drive,
        problem.dictionary,
        problem.selection,
        None,
        MAP_CLASSES[maps],
        "column",
        before,
        is_step,
    )
    found = {"forward": Call(request.text, request.tensors)}
    if is_step or directions == ("forward",):
        return found
    names = [input_.name for input_ in caller_inputs(program_of(request.text))]
    reads = dict(zip(names, request.tensors, strict=True))
    states = torch.randn_like(drive)
    reads["grad_states"] = torch.randn_like(drive)
    for direction, wrt in BACKWARDS.items():
        if direction not in directions:
            continue
        derived = adjoint_of(request.text, wrt, ("states",))
        reads |= dict.fromkeys(derived.saved, states)
        text = derived.program.text
        inputs = caller_inputs(program_of(text))
        found[direction] = Call(text, [reads[input_.name] for input_ in inputs])
    return found
