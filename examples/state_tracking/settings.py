"""What a run is: everything that its result depends on, and nothing else."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from examples.state_tracking.models import BLOCKS, Sizes
from examples.state_tracking.tasks import task_of

# What a run is called, by its settings.
NAME = "{task}-{model}-{seed}"
# Of real numbers: what two of them multiply to is one in float32.
_LARGEST = 1e18
# Of what is divided by, in float32.
_SMALLEST = 1e-30
# Of whole numbers: sizes, which memory ends long before, and steps.
_MOST = 2**31 - 1


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
        grow_below: in place of that the mean loss, from one measurement to the next, below which
            it grows; 0 for none.
        grow_by: the factor of that, and by one token at least.
        grow_after: measurements after which they grow all the same.
        test_shortest: likewise, of those that accuracy is measured on.
        test_longest: likewise.
        test_sequences: how many.
        rate: the largest learning rate.
        last_rate: what a cosine ends at.
        maps_rate: the dictionary's learning rate, by its part of ``rate``; 1 for the same.
        maps_epsilon: what is added to the root of its gradients' mean square. Where that is
            smaller a step is in proportion to the gradient, so that maps of which nothing is wrong
            stay.
        maps_margin: by how much the chosen entry of a map may stand above others, in logits; 0 for
            any.
        warm_up: part of the steps in which the rate rises.
        weight_decay: of matrices, but for embedding and dictionary.
        temperature: of the softmax that maps learn by, in the first step.
        last_temperature: in the last.
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
    grow_below: float = 0.0
    grow_by: float = 1.5
    grow_after: int = 1_000_000
    test_shortest: int = 40
    test_longest: int = 256
    test_sequences: int = 2048
    rate: float = 2e-3
    last_rate: float = 1e-5
    maps_rate: float = 1.0
    maps_epsilon: float = 1e-8
    maps_margin: float = 0.0
    warm_up: float = 0.1
    weight_decay: float = 1e-2
    temperature: float = 1.0
    last_temperature: float = 1.0
    every: int = 1000
    enough: float = 0.9995

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return NAME.format_map(vars(self))

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
            sizes = Sizes(**found["sizes"])
            made = Settings(**found | {"sizes": sizes})
            for owner in (sizes, made):
                _check_types(owner)
            return made
        except (KeyError, TypeError) as error:
            raise _unreadable(folder, error) from None

    @staticmethod
    def stored(folder: Path) -> Any:
        """What is in the settings' file of a folder; errors as of :meth:`read`."""
        try:
            return json.loads((folder / "settings.json").read_text())
        except (OSError, ValueError) as error:
            raise _unreadable(folder, error) from None

    def changed(self, changes: Iterable[str]) -> "Settings":
        """With other values, each as ``rate=1e-3`` or ``sizes.layers=1``.

        Raises:
            ValueError: a change that is none, of a setting that there is not, or by a value of
                another type than it has.
        """
        made = self
        for change in changes:
            name, is_one, value = change.partition("=")
            owner, _, of_sizes = name.partition(".")
            inner = made.sizes if owner == "sizes" else made
            prefix, key = ("sizes.", of_sizes) if owner == "sizes" else ("", name)
            known = {f.name: getattr(inner, f.name) for f in fields(inner)}
            if not is_one or type(known.get(key)) not in (int, float):
                numbers = [prefix + n for n, v in known.items() if isinstance(v, int | float)]
                others = "" if prefix else ", or sizes.NAME for the model's"
                raise ValueError(
                    f"{change!r} changes nothing that there is; write NAME=VALUE, the name one of "
                    f"{', '.join(numbers)}{others}"
                )
            kind = type(known[key])
            try:
                number = json.loads(value)
                new = {key: kind(number)}
                if isinstance(number, bool) or new[key] != number:
                    raise ValueError
            # A whole number that no float holds, and infinity, which no whole number is.
            except (OverflowError, TypeError, ValueError):
                raise ValueError(
                    f"{change!r} has no {kind.__name__} for {key}; write a number"
                ) from None
            made = (
                replace(made, sizes=replace(made.sizes, **new))
                if owner == "sizes"
                else replace(made, **new)
            )
        return made

    def check(self) -> None:
        """Raises ValueError: a task or a model that there is not, or a number that no run has."""
        task_of(self.task)
        if self.model not in BLOCKS:
            raise ValueError(f"there is no model {self.model!r}; there are {', '.join(BLOCKS)}")
        numbers = asdict(self) | {f"sizes.{k}": v for k, v in asdict(self.sizes).items()}
        for name, value in numbers.items():
            least = 0 if name == "seed" else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name} is at least {least}, not {value}")
            if isinstance(value, int) and value > _MOST:
                raise ValueError(f"{name} is at most {_MOST}, not {value}")
            if isinstance(value, float) and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is a number from 0 on, not {value}")
            if isinstance(value, float) and value > _LARGEST:
                raise ValueError(f"{name} is at most {_LARGEST:g}, not {value}")
        if self.grow_by < 1:
            raise ValueError(f"grow_by is at least 1, not {self.grow_by}")
        for name in ("temperature", "last_temperature"):
            if getattr(self, name) < _SMALLEST:
                raise ValueError(
                    f"{name} is above 0, {_SMALLEST:g} at least: the softmax divides by it"
                )
        if not self.maps_epsilon:
            raise ValueError("maps_epsilon is above 0: maps without gradients divide by it")
        for name in ("warm_up", "growing", "sizes.dropout", "sizes.turns", "sizes.loss"):
            if numbers[name] > 1:
                raise ValueError(f"{name} is a part, at most 1, not {numbers[name]}")
        if self.model == "flash" and not self.sizes.drive and self.sizes.layers > 1:
            raise ValueError(
                f"flash without drive is one layer, not sizes.layers={self.sizes.layers}: what it "
                f"reads of a token does not learn"
            )
        for least, most in (("shortest", "longest"), ("test_shortest", "test_longest")):
            if numbers[least] > numbers[most]:
                raise ValueError(f"{least}={numbers[least]} is above {most}={numbers[most]}")


def _check_types(owner: "Settings | Sizes") -> None:
    """Raises TypeError: a value of another type than its setting's; an int is a float too."""
    for name, kind in get_type_hints(type(owner)).items():
        value = getattr(owner, name)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise TypeError(f"{name} is {value!r}")


def _unreadable(folder: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{folder / 'settings.json'} does not say what run this is ({type(error).__name__}: "
        f"{error}); bring it back, or remove {folder}"
    )
