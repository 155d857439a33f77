"""What is tuned: a program at some sizes on a device."""

from dataclasses import dataclass
from functools import cached_property

import torch

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.plan import program_of
from pdssm_compiler.runtime.tuning.precompile import Job
from pdssm_compiler.runtime.tuning.rows import place_of
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem


@dataclass(frozen=True)
class TuningProblem:
    """One program at some sizes.

    Attributes:
        text: the program's text form, as calls have it.
        label: what it is, for readers.
        direction: ``forward``, ``backward``, ``active`` or ``step``.
        sizes: ``B``, ``T``, ``H``.
        device: by torch's name.
        absent: a GPU that is not here, in the device's place: it is predicted for, not measured.
    """

    text: str
    label: str
    direction: str
    sizes: Sizes
    device: str = "cpu"
    absent: Target | None = None

    @cached_property
    def program(self) -> Program:
        """The specialised program: what kernels are made of."""
        return specialise(program_of(self.text))

    @property
    def target(self) -> Target:
        """The device, as schedules know it."""
        return self.absent or target_of(torch.device(self.device))

    @property
    def bucket(self) -> Problem:
        """The sizes, as schedules are chosen by them."""
        return Problem.bucket(self.sizes.batch * self.sizes.heads, self.sizes.length)

    @property
    def alignment(self) -> int:
        """What the pointers of torch's own tensors are multiples of, as plans see them."""
        return 16 if torch.device(self.device).type == "cuda" else 0

    @property
    def threads(self) -> int:
        """How many run a CPU's kernels; 0 elsewhere."""
        return place_of(self.target)[1]

    @property
    def race(self) -> tuple[tuple[str, int], tuple[int, int, int]]:
        """What its rows say as :attr:`Row.race`."""
        return place_of(self.target), (*self.sizes,)

    def job(self, config: str) -> Job:
        """The kernel of a config, to be compiled."""
        return Job(self.text, config, self.target, self.alignment)

    def __str__(self) -> str:
        return f"{self.label} {self.direction}"
