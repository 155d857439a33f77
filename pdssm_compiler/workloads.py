"""What is tuned for: scans at some sizes, said by what they are or by their program."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pdssm_compiler.ir.errors import IRError, shown
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import pd_scan
from pdssm_compiler.ir.types import is_number
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.dense import scores_of
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.mixture import DESTINATION, programs_of
from pdssm_compiler.runtime.ops import adjoint_of
from pdssm_compiler.runtime.plan import caller_inputs, program_of
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.spec import ScanSpec, one_of
from pdssm_compiler.suite import CPU_SUITE, STEP, SUITE, Shape

# ``backward`` is that of ``pd_scan``, ``active`` and ``dense`` are those of the two surrogates,
# with the gradients of what chooses the maps; ``mixture`` chooses those of ``mixture_pd_scan``.
DIRECTIONS = ("forward", "backward", "active", "dense", "step", "mixture", "mixture_gradient")
_MIXTURE = ("mixture", "mixture_gradient")
# Of a tensor of states: a petabyte.
_MOST_NUMBERS = 1 << 47


@dataclass(frozen=True)
class Workload:
    """A scan at some sizes.

    Attributes:
        spec: the scan.
        batch, length, heads: ``B``, ``T``, ``H``.
        name: what to call it; "" for its sizes.
        initial_state: whether calls give one.
        final_state: whether they want the last state.
        directions: of :data:`DIRECTIONS`: ``"forward"`` and ``"backward"`` of ``pd_scan``;
            ``"active"`` and ``"dense"``, the backward of ``flash_pd_scan`` by these surrogates,
            with a dictionary; ``"dense"`` with maps a token is that of ``mixture_pd_scan``, whose
            choice of maps and its gradient are ``"mixture"`` and ``"mixture_gradient"`` (of
            ``dictionary_size`` matrices); ``"step"``, one token from a state to the next.
        reverse: whether time runs from the last token to the first.
        packed: whether calls give ``cu_seqlens``; ``batch`` is 1 then.
        noise: whether a mixture has noise.
    """

    spec: ScanSpec
    batch: int
    length: int
    heads: int
    name: str = ""
    initial_state: bool = False
    final_state: bool = False
    directions: tuple[str, ...] = ("forward", "backward")
    reverse: bool = False
    packed: bool = False
    noise: bool = False

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_numbers(self, self.spec.state_size)
        for name in ("initial_state", "final_state", "reverse", "packed", "noise"):
            if type(getattr(self, name)) is not bool:
                told = shown(getattr(self, name))
                raise ArgumentError(f"{name} must be true or false, got {told}")
        if self.packed and self.batch != 1:
            raise ArgumentError(
                f"packed sequences lie along T of one row, so batch must be 1, got {self.batch}; "
                f"give length all tokens"
            )
        if isinstance(self.directions, str) or not self.directions:
            told = shown(self.directions)
            raise ArgumentError(f"directions are some of {', '.join(DIRECTIONS)}, got {told}")
        for direction in self.directions:
            one_of("direction", direction, DIRECTIONS)

    def problems(self, device: torch.device) -> Iterator[TuningProblem]:
        """The programs that its calls run, each a problem to tune.

        Raises:
            ArgumentError: a direction that the scan does not have.
        """
        for direction in self.directions:
            refused = self._refused(direction)
            if refused:
                raise ArgumentError(f"the direction {direction!r} {refused}; leave it out")
            for text, sizes in self._programs(direction):
                yield TuningProblem(text, self._label(sizes), direction, sizes, str(device))

    def _refused(self, direction: str) -> str | None:
        """Why the scan does not have a direction; None if it does."""
        source = self.spec.map_source
        if direction == "active" and source != "dictionary":
            return f"is of flash_pd_scan, whose maps are in a dictionary, not of {source!r} maps"
        if direction == "dense" and source == "none":
            return "is of scans whose maps are chosen, not of one without maps"
        if direction == "step" and (self.reverse or self.packed):
            return "is one token, which is neither of packed sequences nor in reverse"
        if direction in _MIXTURE and (source != "token" or self.spec.dictionary_size is None):
            return (
                f"is of mixture_pd_scan, which makes maps a token (map_source='token') of "
                f"dictionary_size matrices, not of {source!r} maps of {self.spec.dictionary_size}"
            )
        return None

    def _programs(self, direction: str) -> Iterator[tuple[str, Sizes]]:
        """What a direction runs, in the order it runs."""
        # A schedule's chunks are what is tuned.
        spec = replace(self.spec, chunk_length=None)
        sizes = Sizes(self.batch, self.length, self.heads)
        if direction in _MIXTURE:
            assert spec.dictionary_size is not None
            texts = programs_of(
                spec.state_size, spec.dictionary_size, spec.dtype, spec.orientation, self.noise
            )
            # No token needs another: they are those of one sequence.
            one_row = Sizes(1, self.batch * self.length, self.heads)
            yield texts[_MIXTURE.index(direction)], one_row
            return
        step = direction == "step"
        program = pd_scan(
            spec.program_spec(
                initial_state=self.initial_state or step,
                final_state=self.final_state or step,
                reverse=self.reverse,
                packed=self.packed,
            )
        )
        if step:
            yield program.text, Sizes(self.batch, 1, self.heads)
        elif direction == "forward":
            yield program.text, sizes
        else:
            yield _backward(program, direction), sizes
            if direction == "dense" and spec.map_source == "dictionary":
                assert spec.dictionary_size is not None
                yield scores_of(spec.state_size, spec.dictionary_size, spec.dtype, sizes)

    def _label(self, sizes: Sizes) -> str:
        spec = self.spec
        maps = "" if spec.map_source == "none" else f" {spec.map_class} {spec.map_source}"
        size = f" K={spec.dictionary_size}" if spec.dictionary_size else ""
        row = " row" if spec.orientation == "row" and maps else ""
        way = f"{' packed' if self.packed else ''}{' reverse' if self.reverse else ''}"
        noise = " with noise" if self.noise else ""
        kept = spec.payload_dtype or spec.dtype
        dtype = str(kept).removeprefix("torch.")
        told = f"N={spec.state_size}{size}{maps}{row}{way} {dtype}{noise}"
        return f"{self.name or _told(sizes)}: {told}"


def _backward(program: Program, direction: str) -> str:
    """The adjoint that a backward runs, where everything that has a gradient wants it."""
    learned = {"backward": ()}.get(direction, ("dictionary", "selection", DESTINATION))
    wrt = tuple(i.name for i in caller_inputs(program) if is_number(i.type) or i.name in learned)
    finals = [output.name for output in program.final_outputs]
    arriving = tuple(sorted([*finals, *(output.name for output in program.token_outputs)]))
    surrogate: Any = "dense" if direction == "dense" else "active"
    return adjoint_of(program.text, wrt, arriving, surrogate).program.text


@dataclass(frozen=True)
class ProgramWorkload:
    """A program at some sizes: what no :class:`Workload` says, such as a scan with functions of
    one's own or with gradients of a part of its inputs. :func:`pdssm_compiler.called` gives them.

    Attributes:
        program: its text form.
        batch, length, heads: ``B``, ``T``, ``H``.
        name: what to call it; "" for its sizes.

    Raises:
        ArgumentError: a field that is wrong, or text that is no program.
    """

    program: str
    batch: int
    length: int
    heads: int
    name: str = ""

    def __post_init__(self) -> None:
        _check_sizes(self)
        if not isinstance(self.program, str):
            raise ArgumentError(f"program must be text, got {shown(self.program)}")
        try:
            program = program_of(self.program)
        except IRError as error:
            raise ArgumentError(f"program is not the text of one: {error}") from None
        _check_numbers(self, program.state_size)
        # As calls have it, however it was spaced.
        object.__setattr__(self, "program", program.text)

    def problems(self, device: torch.device) -> Iterator[TuningProblem]:
        """The program, as a problem to tune."""
        program, sizes = program_of(self.program), Sizes(self.batch, self.length, self.heads)
        label = f"{self.name or _told(sizes)}: {self.program.splitlines()[0]}"
        yield TuningProblem(self.program, label, program.direction, sizes, str(device))


AnyWorkload = Workload | ProgramWorkload


def _check_sizes(workload: AnyWorkload) -> None:
    for name in ("batch", "length", "heads"):
        value = getattr(workload, name)
        if type(value) is not int or value < 1:
            raise ArgumentError(f"{name} must be an int of at least 1, got {shown(value)}")
    if not isinstance(workload.name, str) or not workload.name.isprintable():
        raise ArgumentError(f"name must be printable text, got {shown(workload.name)}")


def _check_numbers(workload: AnyWorkload, state_size: int) -> None:
    if workload.batch * workload.length * workload.heads * state_size > _MOST_NUMBERS:
        raise ArgumentError(
            f"batch={shown(workload.batch)} length={shown(workload.length)} "
            f"heads={shown(workload.heads)} are more numbers a tensor than any device holds; use "
            f"the sizes of a call"
        )


def _told(sizes: Sizes) -> str:
    return f"B={sizes.batch} T={sizes.length} H={sizes.heads}"


def check_workloads(workloads: object) -> Sequence[AnyWorkload]:
    """Refuse what is no sequence of workloads; gives it back.

    Raises:
        ArgumentError: names what is none.
    """
    each: Sequence[Any] = workloads if isinstance(workloads, Sequence) else [workloads]
    for one in each:
        if not isinstance(one, Workload | ProgramWorkload):
            raise ArgumentError(
                f"workloads must be a list of Workload, got {shown(one)}; make one with "
                f"Workload(spec, batch, length, heads)"
            )
    return each


def those_there_are(workload: Workload) -> Workload:
    """A workload without the directions that its scan does not have."""
    kept = tuple(d for d in workload.directions if workload._refused(d) is None)
    return replace(workload, directions=kept)


def suite(device: torch.device, directions: Sequence[str]) -> list[Workload]:
    """The shipped suite: the shapes for a device, each with permutations and with maps at random,
    in those of the directions that scans of a dictionary have; of the step, its own.
    """
    shapes = CPU_SUITE if device.type == "cpu" else SUITE
    scans = tuple(direction for direction in directions if direction not in ("step", *_MIXTURE))
    found = [_shape(shape, maps, scans) for shape in shapes for maps in _SUITE_MAPS if scans]
    if "step" in directions:
        found += [_shape(STEP, maps, ("step",)) for maps in _SUITE_MAPS]
    return found


_SUITE_MAPS = ("permutation", "general")


def _shape(shape: Shape, maps: str, directions: tuple[str, ...]) -> Workload:
    spec = ScanSpec(shape.state_size, shape.dictionary_size, map_class=maps)  # type: ignore[arg-type]
    return Workload(
        spec, shape.batch, shape.length, shape.heads, shape.name, directions=directions
    )
