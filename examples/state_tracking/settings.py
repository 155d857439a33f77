"""What a run is: everything that its result depends on, and nothing else."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from examples.state_tracking.models import BLOCKS, Sizes
from examples.state_tracking.tasks import task_of


@dataclass(frozen=True)
class Settings:
    """A run; the published values by default.

    Attributes:
        task: see :func:`examples.state_tracking.tasks.task_of`.
        model: one of :data:`examples.state_tracking.models.BLOCKS`.
        seed: of parameters, data and dropout.
        sizes: the model's.
        steps: batches of training, at most.
        batch: sequences of one.
        shortest: tokens of a training sequence, at least.
        longest: at most.
        growing: part of the steps in which that grows from twice the shortest one; 0 for none.
        test_shortest: likewise, of those that accuracy is measured on.
        test_longest: likewise.
        test_sequences: how many.
        rate: the largest learning rate.
        last_rate: what a cosine ends at.
        warm_up: part of the steps in which the rate rises.
        weight_decay: of matrices, but for embedding and dictionary.
        every: steps between two measurements, each of which leaves a checkpoint.
        enough: accuracy above which training stops.
    """

    task: str
    model: str
    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)
    steps: int = 100_001
    batch: int = 256
    shortest: int = 3
    longest: int = 40
    growing: float = 0.0
    test_shortest: int = 40
    test_longest: int = 256
    test_sequences: int = 2048
    rate: float = 2e-3
    last_rate: float = 1e-5
    warm_up: float = 0.1
    weight_decay: float = 1e-2
    every: int = 1000
    enough: float = 0.9995

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"{self.task}-{self.model}-{self.seed}"

    def as_json(self) -> dict[str, Any]:
        """All fields, by name."""
        return asdict(self)

    @staticmethod
    def read(folder: Path) -> "Settings":
        """Those of the run in a folder.

        Raises:
            ValueError: there are none, or what is there is something else.
        """
        found = Settings.stored(folder)
        try:
            return Settings(**found | {"sizes": Sizes(**found["sizes"])})
        except (KeyError, TypeError) as error:
            raise _unreadable(folder, error) from None

    @staticmethod
    def stored(folder: Path) -> Any:
        """What is in the settings' file of a folder; errors as of :meth:`read`."""
        try:
            return json.loads((folder / "settings.json").read_text())
        except (OSError, ValueError) as error:
            raise _unreadable(folder, error) from None

    def for_steps(self, steps: int) -> "Settings":
        """With so many steps; 0 leaves them as they are."""
        return replace(self, steps=steps) if steps else self

    def check(self) -> None:
        """Raises ValueError: a task or a model that there is not."""
        task_of(self.task)
        if self.model not in BLOCKS:
            raise ValueError(f"there is no model {self.model!r}; there are {', '.join(BLOCKS)}")


def _unreadable(folder: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{folder / 'settings.json'} does not say what run this is ({type(error).__name__}: "
        f"{error}); bring it back, or remove {folder}"
    )
