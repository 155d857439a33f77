"""A run: training with the published schedule, its log and checkpoints, and exact resumption.

What a step draws follows from the seed and the step's number alone, so a run that was ended at
any point goes on as if it had not been.
"""

import io
import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch.nn import functional

from examples.state_tracking.batches import Batches
from examples.state_tracking.evaluation import accuracy
from examples.state_tracking.files import replace_file
from examples.state_tracking.measured import Measured
from examples.state_tracking.models import Tracker
from examples.state_tracking.schedule import (
    TESTING,
    TRAINING,
    batch_width,
    longest,
    rate,
    seed_of,
    temperature,
)
from examples.state_tracking.settings import Settings
from examples.state_tracking.stepping import Step, Work, stepper
from examples.state_tracking.tasks import Batch, task_of
from pdssm_compiler.nn import PDSSM, FlashPDSSM, parameter_groups

# What reading a checkpoint raises that is damaged, or of another version.
_DAMAGED = (
    AttributeError,
    BadZipFile,
    EOFError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    zlib.error,
)


class Run:
    """One training run in a folder, begun anew or where it was left.

    Args:
        settings: see :class:`Settings`.
        folder: for ``settings.json``, ``log.jsonl`` and ``checkpoint.pt``.
        device: where it runs.

    Raises:
        ValueError: the folder has a run of other settings, or what it has cannot be read.
    """

    def __init__(self, settings: Settings, folder: Path, device: torch.device | str) -> None:
        self.settings, self.folder, self.device = settings, folder, torch.device(device)
        self.task = task_of(settings.task)
        torch.manual_seed(seed_of(settings.seed, 0, 0))
        self.model = Tracker(
            settings.model, self.task.vocabulary, settings.sizes, 1 + self.task.symbols
        )
        self.model.to(self.device)
        kinds = (PDSSM, FlashPDSSM)
        self._mixers = [m for m in self.model.modules() if type(m) in kinds]
        for mixer in self._mixers:
            mixer.temperature.fill_(settings.temperature)
        on_gpu = self.device.type == "cuda"
        self.stream = torch.cuda.Stream(self.device) if on_gpu else None
        self._batches = Batches(self.task, settings, self.device)
        self.optimizer = torch.optim.AdamW(self._groups(), capturable=on_gpu, fused=on_gpu)
        if settings.maps_margin > 0:
            # By the optimiser, so that it is a part of the captured graph.
            self.optimizer.register_step_post_hook(lambda *_: self._hold_maps())
        self.log: list[Measured] = []
        self.step, self.seconds = 0, 0.0
        self._loss = torch.zeros((), device=self.device)
        self._steps: dict[int, Step] = {}
        # What the optimiser was told last.
        self._rate: float | None = None
        self._read_folder()

    @property
    def is_done(self) -> bool:
        """Whether the steps are done, or the accuracy is enough."""
        return self.is_solved or self.step >= self.settings.steps

    @property
    def is_solved(self) -> bool:
        """Whether the last accuracy is enough."""
        return bool(self.log) and self.log[-1].accuracy > self.settings.enough

    def draw(self, step: int) -> Batch:
        """The batch of a step."""
        return self._batches.next(self._begin(step))

    def prepare(self) -> Step:
        """What does the next step; on a GPU it is compiled and captured here, in seconds, if no
        step was as wide.
        """
        width = self._begin(self.step)
        if width not in self._steps:
            work = Work(
                self.model, self.optimizer, self._loss_of, self._batches, width, self._loss
            )
            self._steps[width] = stepper(work, self.stream)
            # Capturing has drawn some.
            self._begin(self.step)
        return self._steps[width]

    def advance(self) -> None:
        """One step of training."""
        settings, step = self.settings, self.prepare()
        if (now := rate(settings, self.step)) != self._rate:
            self._rate = now
            for group in self.optimizer.param_groups:
                group["lr"].fill_(now * group.get("part", 1.0))
        if settings.last_temperature != settings.temperature:
            for mixer in self._mixers:
                mixer.temperature.fill_(temperature(settings, self.step))
        step(seed_of(settings.seed, 0, self.step))
        self.step += 1

    def _begin(self, step: int) -> int:
        """Have the batch of a step drawn next; its width."""
        settings = self.settings
        most = longest(settings, step, self.log)
        self._batches.begin(seed_of(settings.seed, TRAINING, step), most)
        # Of few widths, whatever the lengths: a captured step has one.
        return batch_width(settings.longest, most)

    def measure(self) -> Measured:
        """Accuracy on test lengths; a line of the log, and a checkpoint."""
        settings = self.settings
        random = self._batches.random.manual_seed(seed_of(settings.seed, TESTING, self.step))
        right = accuracy(
            self.model,
            self.task,
            settings.test_sequences,
            (settings.test_shortest, settings.test_longest),
            random,
        )
        steps = self.step - (self.log[-1].step if self.log else 0)
        line = Measured(self.step, self._loss.item() / max(1, steps), right, self.seconds)
        self._loss.zero_()
        self.log.append(line)
        self._save()
        return line

    @property
    def next_measured(self) -> int:
        """The step after which accuracy is measured again."""
        every = self.settings.every
        return min(self.settings.steps, (self.step // every + 1) * every)

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by what they learn at: those that decay, others, and maps, if they do so
        otherwise.
        """
        settings = self.settings
        own = {"part": settings.maps_rate, "eps": settings.maps_epsilon}
        alike = own == {"part": 1.0, "eps": 1e-8}
        maps = set() if alike else {id(mixer.dictionary_logits) for mixer in self._mixers}
        groups: list[dict[str, Any]] = []
        for group in parameter_groups(self.model, settings.weight_decay):
            mine = [each for each in group["params"] if id(each) in maps]
            others = [each for each in group["params"] if id(each) not in maps]
            groups.append(group | {"params": others})
            if mine:
                groups.append(group | {"params": mine} | own)
        for group in groups:
            # A tensor, which a captured graph reads anew each time.
            start = settings.rate * group.get("part", 1.0)
            group["lr"] = torch.tensor(start, device=self.device)
        return groups

    @torch.no_grad()
    def _hold_maps(self) -> None:
        """Raise the dictionary's entries to ``maps_margin`` below the largest of their column:
        where that stands far above the others their gradients vanish, and a map that was right for
        short words stays where it is wrong for longer ones.
        """
        for mixer in self._mixers:
            logits = mixer.dictionary_logits
            least = logits.amax(-2, keepdim=True) - self.settings.maps_margin
            torch.maximum(logits, least, out=logits)

    def _loss_of(
        self, batch: Batch, blocks: Iterable[Callable[..., torch.Tensor]]
    ) -> torch.Tensor:
        scores = self.model(batch.tokens, batch.lengths, blocks)
        return functional.cross_entropy(scores, batch.answers)

    def _read_folder(self) -> None:
        kept = self.folder / "settings.json"
        checkpoint = self.folder / "checkpoint.pt"
        begun = kept.exists() or checkpoint.exists()
        if begun and Settings.read(self.folder) != self.settings:
            raise ValueError(
                f"{self.folder} has a run of other settings; name another folder, or remove it"
            )
        if not begun:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(kept, json.dumps(self.settings.as_json(), indent=1).encode())
        if not checkpoint.exists():
            return
        content = io.BytesIO(checkpoint.read_bytes())
        try:
            # torch does not hold numbers to the checksums beside them.
            if (damaged := ZipFile(content).testzip()) is not None:
                raise BadZipFile(damaged)
            content.seek(0)
            state = torch.load(content, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.log = [
                Measured(int(step), float(loss), float(accuracy), float(seconds))
                for step, loss, accuracy, seconds in state["log"]
            ]
            self.step, self.seconds = self.log[-1].step, self.log[-1].seconds
        except _DAMAGED as error:
            raise ValueError(
                f"{checkpoint} cannot be read ({type(error).__name__}), so it is damaged, or of "
                f"another version; remove it, and the run begins anew"
            ) from error
        # Ended between the two, or damaged: what the checkpoint says is what was.
        if self._log_file() != _content(self.folder / "log.jsonl"):
            replace_file(self.folder / "log.jsonl", self._log_file())

    def _log_file(self) -> bytes:
        return "".join(json.dumps(line._asdict()) + "\n" for line in self.log).encode()

    def _save(self) -> None:
        """The checkpoint first: the log is written from it."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "log": [tuple(line) for line in self.log],
        }
        content = io.BytesIO()
        torch.save(state, content)
        replace_file(self.folder / "checkpoint.pt", content.getvalue())
        replace_file(self.folder / "log.jsonl", self._log_file())


def train(
    runs: Iterable[Run],
    told: Callable[[Run, Measured], None] = lambda run, line: None,
    *,
    together: int | None = None,
    seconds: float = math.inf,
) -> list[Run]:
    """Train runs to their ends, or from where they were left: a step of each in turn, on a GPU
    each on a stream of its own, so that small models fill it together.

    Args:
        runs: on one device; taken as their turn comes.
        told: is given each measurement.
        together: how many train at once; where one ends, the next begins. All by default.
        seconds: after which no more is begun than what leads to the next measurements.

    Returns:
        Those that were begun, or done before.
    """
    began, waiting, active = time.monotonic(), iter(runs), []
    begun: list[Run] = []
    while True:
        active = [run for run in active if not run.is_done]
        if time.monotonic() - began >= seconds:
            return begun
        while together is None or len(active) < together:
            if (new := next(waiting, None)) is None:
                break
            begun.append(new)
            if not new.is_done:
                new.prepare()
                active.append(new)
        if not active:
            return begun
        _train_to_measurements(active)
        for run in active:
            told(run, run.measure())


def _train_to_measurements(runs: Sequence[Run]) -> None:
    """Each to its next one, which takes as long as all of them."""
    on_gpu = runs[0].device.type == "cuda"
    until = {id(run): run.next_measured for run in runs}
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    while left := [run for run in runs if run.step < until[id(run)]]:
        for run in left:
            with torch.cuda.stream(run.stream):
                run.advance()
    if on_gpu:
        torch.cuda.synchronize()
    spent = time.perf_counter() - began
    for run in runs:
        run.seconds += spent


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
