"""What every template is: a loop skeleton, a config, a search space, a heuristic and limits."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args

from pdssm_compiler.ir.errors import PdssmError, shown
from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.source import Backend, KernelSource
from pdssm_compiler.schedules.target import Kind, Target
from pdssm_compiler.schedules.work import Work


class ConfigError(PdssmError, TypeError):
    """A field of a config has a value of another type than its own."""


_TOLD = {int: "an int", bool: "True or False", type(None): "None"}


@dataclass(frozen=True)
class Config:
    """What every template's config is: fields that hold values of just the types they name.

    A subclass checks nothing of its own: which values work depends on program and target, and
    :meth:`Template.feasible` says so.

    Raises:
        ConfigError: another type; the message names the field.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            types: tuple[Any, ...] = get_args(field.type) or (field.type,)
            value = getattr(self, field.name)
            # True is an int to isinstance, and no number of anything.
            if type(value) not in types:
                wanted = " or ".join(_TOLD[type_] for type_ in types)
                raise ConfigError(
                    f"{type(self).__name__}: {field.name} must be {wanted}, got {shown(value)}; "
                    f"pass {wanted}"
                )

    def renewed(self, name: str, today: Any) -> Self | None:
        """What a config that was measured before a field of this name was there says of kernels
        that have it; None if nothing, as its other fields were chosen without it.

        Args:
            name: of the field, whose value is the default here.
            today: what the heuristic says of it now, which is another.
        """
        return None


ConfigT = TypeVar("ConfigT", bound=Config)


# Nothing chosen depends on how many rows or tokens there are beyond 2 to these: the narrowest
# rows, 64 a warp, are many where there are 8 warps a processor, of which no GPU has 4096.
_ROW_BITS, _LENGTH_BITS = 21, 20


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
        """What schedules are picked for, so that one size after another meets few of them: rows up
        to the next power of two, which batches times heads mostly are, and the largest length with
        as many bits.
        """
        return cls(1 << max(0, rows - 1).bit_length(), (1 << length.bit_length()) - 1)

    @classmethod
    def buckets(cls) -> "list[Problem]":
        """Every bucket that a schedule may depend on, that of unknown sizes first."""
        rows = [1 << bits for bits in range(_ROW_BITS + 1)]
        lengths = [1 << bits for bits in range(_LENGTH_BITS + 1)]
        return [cls(), *(cls.bucket(*sizes) for sizes in product(rows, lengths))]

    @property
    def nearest_bucket(self) -> "Problem":
        """Of :meth:`buckets`, the one with the schedule of these sizes."""
        if self.rows is None or self.length is None:
            return Problem()
        rows, length = max(1, self.rows), max(1, self.length)
        return Problem.bucket(min(rows, 1 << _ROW_BITS), min(length, 1 << _LENGTH_BITS))


class Template(ABC, Generic[ConfigT]):
    """A loop skeleton; the body comes from the program through an emitter."""

    name: ClassVar[str]
    backend: ClassVar[Backend]
    kinds: ClassVar[tuple[Kind, ...]]
    config_type: ClassVar[type[Config]]
    # Whether it runs programs over matrices, and no others.
    over_matrices: ClassVar[bool] = False
    # Whether it reads indices that are stored as logits.
    reads_logits: ClassVar[bool] = False

    def accepts(self, config: object) -> bool:
        """Whether a config is one of this template's."""
        return isinstance(config, self.config_type)

    def takes(self, program: Program) -> str | None:
        """None if the template is for programs of this kind, otherwise what it is for."""
        if program.logits and not self.reads_logits:
            return f"{self.name} reads no logits in place of the index %{program.logits[0]}"
        if self.over_matrices == program.over_matrices:
            return None
        own, other = "scans", "programs over matrices"
        if self.over_matrices:
            own, other = other, own
        return f"{self.name} is for {own}, not for {other}"

    def suits(self, program: Program, target: Target, problem: Problem) -> bool:
        """Whether the template is for problems of this size, if others can run it as well."""
        return True

    @abstractmethod
    def space(self, program: Program, target: Target) -> Iterator[ConfigT]:
        """Every config worth measuring, feasible or not."""

    def worthwhile(
        self, program: Program, target: Target, problem: Problem, config: ConfigT
    ) -> bool:
        """Whether one of :meth:`space` is worth measuring at these sizes: not if another does the
        same there, or what it is for is not there.
        """
        return True

    @abstractmethod
    def heuristic(self, program: Program, target: Target, problem: Problem) -> ConfigT:
        """A good feasible config without measuring."""

    @abstractmethod
    def feasible(self, program: Program, target: Target, config: ConfigT) -> str | None:
        """None if the config can work, otherwise the reason it cannot, in one line."""

    def work(
        self, program: Program, target: Target, config: ConfigT, rows: int, length: int
    ) -> Work | None:
        """What a feasible config has a GPU do, in counts; None where the template counts nothing,
        so that no cost model ranks its configs.

        Args:
            program: the specialised program.
            target: what it shall run on.
            config: how.
            rows: ``B * H``, at least 1.
            length: ``T``, at least 1.
        """
        return None

    def least_seconds(self, program: Program, target: Target, length: int) -> float:
        """Less than this, the config that the heuristic says takes no call of so many tokens,
        whatever the rows; 0 where the template does not know. What is hopeless by it is not
        measured.
        """
        return 0.0

    @abstractmethod
    def lower(self, program: Program, target: Target, config: ConfigT) -> KernelSource:
        """Source for a specialised program."""
