"""Rows: what was timed of a case, one kernel or one sum of kernels each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

import pdssm_compiler
from benchmarks.calls import BOTH, Call, calls_of
from benchmarks.cases import Case
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.runtime.backends import BACKENDS, Sizes
from pdssm_compiler.runtime.compile_service import BuiltKernel, choose, config_text
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.runtime.plan import plan_for, program_of
from pdssm_compiler.runtime.tuning.precompile import Compiled, Job, helper_jobs
from pdssm_compiler.runtime.tuning.timing import Clock
from pdssm_compiler.schedules.registry import candidates
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.suite import Shape

Row = dict[str, Any]
# What the sum runs, one after the other.
_SUMMED = ("forward", "backward, active")


class Choice(NamedTuple):
    """A template that can run a program, its config, and whether a plain call takes it."""

    template: str
    config: Any
    chosen: bool


def choices(text: str, target: Target, shape: Shape, most: int) -> list[Choice]:
    """The first ``most`` templates that can run a program at this size, each by its heuristic; the
    first is the one that a plain call takes.
    """
    program = specialise(program_of(text))
    problem = Problem.bucket(shape.batch * shape.heads, shape.length)
    schedule = choose(program, target, None, problem)
    found = [Choice(schedule.template.name, schedule.config, True)]
    for template, config, refused in candidates(program, target, problem):
        able = refused is None and BACKENDS[template.backend].unavailable() is None
        if able and config != schedule.config:
            found.append(Choice(template.name, config, False))
    return found[:most]


def alignment_on(device: torch.device) -> int:
    """What the pointers of torch's own tensors are multiples of, as plans see them."""
    return 16 if device.type == "cuda" else 0


def jobs_of(cases: Iterable[Case], target: Target, alignment: int) -> Iterator[Job]:
    """Every kernel that cases will run."""
    for case in cases:
        # Programs do not depend on batch and length, but that one token is a step.
        small = replace(case.shape, batch=1, length=min(case.shape.length, 2))
        for call in _calls(case, small, torch.device("cpu")).values():
            # What no template can run is told where it is measured.
            with suppress(NoTemplateError):
                yield from helper_jobs(call.text, target, case.shape.heads)
                for choice in choices(call.text, target, case.shape, case.most):
                    yield Job(call.text, config_text(choice.config), target, alignment)


def _calls(case: Case, shape: Shape, device: torch.device) -> dict[str, Call]:
    """The single calls of a case, those that its sum adds among them."""
    payload = getattr(torch, case.payload) if case.payload else None
    single = dict.fromkeys(d for d in case.directions if d != BOTH)
    if BOTH in case.directions:
        single |= dict.fromkeys(_SUMMED)
    return calls_of(shape, case.maps, device, payload, tuple(single))


def attempt(row: Row, function: Callable[[], Row]) -> Row:
    """A row with what a function adds to it, or with the error it ends in."""
    try:
        return row | function()
    except Exception as error:
        # A kernel that fails is a result, not the end of the others.
        return row | {"error": f"{type(error).__name__}: {error}"}


def _run(calls: Sequence[Call]) -> list[list[torch.Tensor]]:
    return [call() for call in calls]


@dataclass(frozen=True)
class Bench:
    """Where and how rows are measured.

    Attributes:
        device: the device.
        clock: how it is timed.
        roof: bytes a second of a large copy.
        runs: repetitions of each time.
        compiled: what became of the kernels compiled before.
    """

    device: torch.device
    clock: Clock
    roof: float
    runs: int
    compiled: dict[Job, Compiled]

    def rows(self, case: Case) -> list[Row]:
        """Every row of a case; a row that could not be measured has an ``error``."""
        head: Row = {
            "section": case.section,
            "shape": case.shape.name,
            "sizes": case.shape.sizes,
            "maps": case.maps,
            "payload": case.payload or "float32",
        }
        if case.sweep:
            head["sweep"] = case.sweep
        try:
            calls = _calls(case, case.shape, self.device)
        except RuntimeError as error:
            # Out of memory, or a device that an earlier kernel has left unusable.
            return [head | {"direction": d, "error": str(error)} for d in case.directions]
        found = []
        for direction in case.directions:
            row = head | {"direction": direction}
            if direction == BOTH:
                parts = [calls[name] for name in _SUMMED]
                found.append(attempt(row | {"chosen": True}, partial(self._sum, case, parts)))
            else:
                found += self._kernel_rows(case, row, calls[direction])
        return found

    def _kernel_rows(self, case: Case, row: Row, call: Call) -> Iterator[Row]:
        """A row for each template."""
        try:
            able = choices(call.text, target_of(self.device), case.shape, case.most)
        except NoTemplateError as error:
            yield row | {"error": str(error)}
            return
        for template, config, chosen in able:
            of_template = {"template": template, "config": asdict(config), "chosen": chosen}
            exact = replace(call, config=config_text(config))
            yield attempt(row | of_template, partial(self._kernel, exact))

    def _kernel(self, call: Call) -> Row:
        self._refuse_failed(call)
        times = self._timed([call])
        built = self._built(call)
        return times | {
            "program": built.source.program.fingerprint,
            "origin": built.origin,
            "resources": built.kernel.resources(),
        }

    def _sum(self, case: Case, parts: Sequence[Call]) -> Row:
        """Calls one after the other, each by the schedule that a plain call takes."""
        taken = []
        exact = []
        for call in parts:
            (choice,) = choices(call.text, target_of(self.device), case.shape, 1)
            taken.append(choice.template)
            exact.append(replace(call, config=config_text(choice.config)))
            self._refuse_failed(exact[-1])
        return self._timed(exact) | {"template": " + ".join(dict.fromkeys(taken))}

    def _refuse_failed(self, call: Call) -> None:
        """Do not compile again what failed to."""
        alignment = alignment_on(self.device)
        job = Job(call.text, call.config, target_of(self.device), alignment)
        error = self.compiled[job].error if job in self.compiled else None
        if error is not None:
            raise RuntimeError(f"not compiled: {error}")

    def _timed(self, parts: Sequence[Call]) -> Row:
        """Times of calls one after the other: of their work on the device, and of eager calls,
        which the host may hold up.
        """
        moved = sum(call.floor_bytes for call in parts)
        same = self._same_bits(parts)
        copies = [parts]
        for _ in range(self.clock.copies(moved) - 1):
            copies.append([call.copy() for call in parts])
        functions = [partial(_run, calls) for calls in copies]
        times = self.clock.work(functions, self.runs)
        eager = self.clock.calls(functions, self.runs)
        rate = moved / (times["ms"] / 1e3)
        pdssm_compiler.check()
        return {
            **times,
            "eager_ms": eager["ms"],
            "floor_bytes": moved,
            "floor_ms": moved / self.roof * 1e3,
            "gb_per_s": rate / 1e9,
            "of_roof": rate / self.roof,
            "same_bits": same,
            "copies": len(copies),
        }

    @staticmethod
    def _same_bits(parts: Sequence[Call]) -> bool:
        """Whether two runs leave the same bits."""
        return all(
            torch.equal(first.view(torch.int16), second.view(torch.int16))
            for call in parts
            for first, second in zip(call(), call(), strict=True)
        )

    def _built(self, call: Call) -> BuiltKernel:
        """The kernel that a call has run."""
        plan = plan_for(call.text, self.device, alignment_on(self.device), call.config)
        shape = next(tensor.shape for tensor in call.tensors if tensor.is_complex())
        return plan.kernels.of(Sizes(*shape[:3]))


def peak_mib(device: torch.device, call: Callable[[], object]) -> float | None:
    """The most memory a call has at a time beside what was there before it; None on a CPU, where
    torch does not count.
    """
    if device.type != "cuda":
        return None
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
