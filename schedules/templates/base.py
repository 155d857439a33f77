"""What every template is: a loop skeleton, a config, a search space, a heuristic and limits."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.source import Backend, KernelSource
from pdssm_compiler.schedules.target import Kind, Target

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Problem:
    """The sizes that pick a schedule; None where the caller does not know them yet.

    Attributes:
        rows: ``B * H``.
        length: ``T``.
    """

    rows: int | None = None
    length: int | None = None

    @classmethod
    def bucket(cls, rows: int, length: int) -> "Problem":
        """The largest sizes with as many bits: what schedules are picked for, so that one size
        after another meets few of them.
        """
        return cls((1 << rows.bit_length()) - 1, (1 << length.bit_length()) - 1)


class Template(ABC, Generic[ConfigT]):
    """A loop skeleton; the body comes from the program through an emitter."""

    name: ClassVar[str]
    backend: ClassVar[Backend]
    kinds: ClassVar[tuple[Kind, ...]]
    config_type: ClassVar[type]

    def accepts(self, config: object) -> bool:
        """Whether a config is one of this template's."""
        return isinstance(config, self.config_type)

    def suits(self, program: Program, target: Target, problem: Problem) -> bool:
        """Whether the template is for problems of this size, if others can run it as well."""
        return True

    @abstractmethod
    def space(self, program: Program, target: Target) -> Iterator[ConfigT]:
        """Every config worth measuring, feasible or not."""

    @abstractmethod
    def heuristic(self, program: Program, target: Target, problem: Problem) -> ConfigT:
        """A good feasible config without measuring."""

    @abstractmethod
    def feasible(self, program: Program, target: Target, config: ConfigT) -> str | None:
        """None if the config can work, otherwise the reason it cannot, in one line."""

    @abstractmethod
    def lower(self, program: Program, target: Target, config: ConfigT) -> KernelSource:
        """Source for a specialised program."""
