"""The batches of a run's steps, drawn on its device; on a GPU as a part of the step's graph."""

import torch

from examples.state_tracking.settings import Settings
from examples.state_tracking.tasks import Batch, Task


class Batches:
    """What is drawn, one batch after another.

    On a GPU the longest length is read on the device and batches are drawn at their full width, so
    that a captured graph draws what its seed and its length say when it is replayed. On a CPU only
    what is needed is drawn: other batches of a seed than on a GPU, likewise uniform.

    Args:
        task: whose.
        settings: for sizes.
        device: where.

    Attributes:
        random: what they are drawn by, of these batches alone.
    """

    def __init__(self, task: Task, settings: Settings, device: torch.device) -> None:
        self._task, self._settings, self._device = task, settings, device
        self.random = torch.Generator(device)
        self._longest = settings.longest
        on_gpu = device.type == "cuda"
        self._there = torch.tensor(settings.longest, device=device) if on_gpu else None

    def begin(self, seed: int, longest: int) -> None:
        """Say what is drawn next, here or by a graph.

        Args:
            seed: below 2⁶⁴.
            longest: tokens of a sequence, at most.
        """
        self.random.manual_seed(seed)
        if longest != self._longest and self._there is not None:
            self._there.fill_(longest)
        self._longest = longest

    def next(self, width: int) -> Batch:
        """A batch.

        Args:
            width: tokens that it has room for, as many as the longest at least; one more, where
                lengths are even and this is not.
        """
        longest = self._longest if self._there is None else self._there
        settings = self._settings
        sizes = (settings.batch, settings.shortest, longest)
        return self._task.batch(*sizes, self.random, self._device, width=width)
