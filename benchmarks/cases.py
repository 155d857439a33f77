"""What each section of a run measures of our kernels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.calls import BOTH, DIRECTIONS
from benchmarks.layer_sizes import CPU_LAYERS, LAYERS, Layer
from benchmarks.problems import CPU_SWEEPS, SWEEPS, LayerSizes, Sweeps
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.suite import CPU_SUITE, STEP, SUITE, Shape

# In the order they are run.
SECTIONS = (
    "suite", "worst", "scaling", "step", "fused", "layers", "mixture", "loop", "peers", "host",
)  # fmt: skip

PointT = TypeVar("PointT")

# Templates to time, best first: as many as there are, or the one that a call takes.
ALL, CHOSEN = 99, 1


@dataclass(frozen=True)
class Case:
    """One problem, and what is timed of it.

    Attributes:
        section: the section it stands in.
        shape: its sizes.
        maps: how its maps are drawn.
        directions: what is timed; :data:`~benchmarks.calls.BOTH` among them is a sum.
        most: templates to time, best first.
        payload: dtype of drive and states by torch's name, "" for the diagonal's.
        sweep: which size it is a point of.
    """

    section: str
    shape: Shape
    maps: str = "random"
    directions: tuple[str, ...] = ("forward",)
    most: int = CHOSEN
    payload: str = ""
    sweep: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.section, self.shape.name, self.maps, self.payload)))


@dataclass(frozen=True)
class Agenda:
    """What a run measures.

    Attributes:
        shapes: those of the suite, the worst maps and the loop.
        step: the shape of the step.
        sweeps: the shapes of the scaling section.
        peers: whose tokens and width the peers get.
        fused: the shapes of the fused core.
        mixture: the layers of the mixture.
        layers: the sizes of the layers.
        loop_tokens: tokens of the torch loop that are timed, and scaled to all.
        sections: which sections.
        runs: repetitions of each time.
        most: templates to time in the suite, best first.
    """

    shapes: tuple[Shape, ...]
    step: Shape
    sweeps: Sweeps
    peers: Shape
    fused: tuple[Shape, ...]
    mixture: tuple[Layer, ...]
    layers: LayerSizes
    loop_tokens: int
    sections: tuple[str, ...] = SECTIONS
    runs: int = 30
    most: int = ALL

    def cases(self) -> Iterator[Case]:
        """What is timed of our kernels, in order."""
        of_sections = {
            "suite": self._suite,
            "worst": self._worst,
            "scaling": self._scaling,
            "step": self._step,
            "loop": self._loop,
            "peers": self._peers,
        }
        for section in self.sections:
            if section in of_sections:
                yield from of_sections[section]()

    def _suite(self) -> Iterator[Case]:
        for shape in self.shapes:
            for maps in ("permutation", "random"):
                yield Case("suite", shape, maps, (*DIRECTIONS, BOTH), self.most)

    def _worst(self) -> Iterator[Case]:
        for shape in self.shapes:
            for maps in ("random", "one row"):
                yield Case("worst", shape, maps, ("forward", "backward, active"))

    def _scaling(self) -> Iterator[Case]:
        for size, shapes in self.sweeps.items():
            for shape in shapes:
                yield Case("scaling", shape, sweep=size)

    def _step(self) -> Iterator[Case]:
        for maps in ("permutation", "random"):
            yield Case("step", self.step, maps, most=self.most)

    def _loop(self) -> Iterator[Case]:
        for shape in self.shapes:
            yield Case("loop", shape, directions=("forward", "backward"))

    def _peers(self) -> Iterator[Case]:
        for payload in ("", "bfloat16"):
            yield Case("peers", self.peers, directions=("forward", BOTH), payload=payload)


# One to 128 thousand tokens, 32 768 together up to there.
_LAYERS = LayerSizes(1024, 4096, tuple(1 << n for n in range(10, 18)), tokens=1 << 15, decoded=64)
_CPU_LAYERS = LayerSizes(256, 512, (128, 512, 2048), tokens=2048, decoded=8)

GPU = Agenda(
    SUITE,
    STEP,
    SWEEPS,
    SUITE[0],
    fused=SUITE[:2],
    mixture=LAYERS,
    layers=_LAYERS,
    loop_tokens=128,
)
CPU = Agenda(
    CPU_SUITE,
    STEP,
    CPU_SWEEPS,
    CPU_SUITE[0],
    fused=CPU_SUITE[:1],
    mixture=CPU_LAYERS,
    layers=_CPU_LAYERS,
    loop_tokens=CPU_SUITE[0].length,
    sections=tuple(section for section in SECTIONS if section != "peers"),
    runs=20,
)


def few(sweep: Sequence[PointT]) -> tuple[PointT, ...]:
    """The ends of a sweep and its middle."""
    return tuple(dict.fromkeys((sweep[0], sweep[len(sweep) // 2], sweep[-1])))


def chosen_of(names: str | None, known: Sequence[str], what: str) -> tuple[str, ...]:
    """The names of a comma-separated list, in the order they are known in; all for None.

    Raises:
        ArgumentError: one that is not known.
    """
    if names is None:
        return tuple(known)
    asked = [name.strip() for name in names.split(",")]
    for name in asked:
        if name not in known:
            raise ArgumentError(f"unknown {what} {name!r}; name some of {', '.join(known)}")
    return tuple(name for name in known if name in asked)
