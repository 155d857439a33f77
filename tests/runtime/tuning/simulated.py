"""GPUs that follow the cost model's law to the letter, and what would be measured on them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from pdssm_compiler import ScanSpec, Workload
from pdssm_compiler.runtime.tuning.evidence import Evidence, Sample
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.rows import Row, figures_of
from pdssm_compiler.runtime.tuning.space import Entry, space_of
from pdssm_compiler.schedules.cost import Costs, Counts
from pdssm_compiler.schedules.target import Target, named_target

H100 = named_target("h100")
# Half of it, with less shared memory, beside a fast memory.
SMALL = replace(
    H100, name="A small GPU", processors=66, shared_memory=99 << 10, bandwidth=2_400 * 10**9
)
_TEMPLATES = ("cuda-rows", "cuda-chunks", "cuda-step")
# Not what the model assumes.
TRUTH = Costs(
    Costs.prior(()).shared | {"traffic": 1.25, "latency": 7e-7, "issue": 2e-9, "collect": 0.8},
    {
        "cuda-rows": {"step": 4e-8, "pass": 1.5e-7},
        "cuda-chunks": {"step": 9e-8, "pass": 2.5e-7},
        "cuda-step": {"step": 7e-8, "pass": 1.5e-7},
    },
)
# Every so many of the candidates are measured.
_EVERY = 7


@cache
def problems(target: Target) -> tuple[TuningProblem, ...]:
    """Problems of several shapes."""
    found = [
        Workload(ScanSpec(32, 8), 8, 2048, 32, directions=("forward",)),
        Workload(ScanSpec(32, 8, map_class="permutation"), 1, 8192, 8, directions=("forward",)),
        Workload(ScanSpec(64, 4), 2, 4096, 16, directions=("active",)),
        Workload(ScanSpec(16, None, map_source="none"), 16, 512, 16, directions=("forward",)),
    ]
    cpu = torch.device("cpu")
    return tuple(replace(p, absent=target) for each in found for p in each.problems(cpu))


@cache
def candidates(problem: TuningProblem) -> tuple[Entry, ...]:
    """The heuristics' choices first."""
    space = space_of(problem)
    found = (*space.first, *space.others)
    return tuple(entry for entry in found if entry.template.name in _TEMPLATES)


def seconds(problem: TuningProblem, entries: Sequence[Entry], costs: Costs = TRUTH) -> np.ndarray:
    """What candidates take."""
    target, (batch, length, heads) = problem.target, problem.sizes
    work = [e.template.work(problem.program, target, e.config, batch * heads, length)
            for e in entries]  # fmt: skip
    assert None not in work
    names = [entry.template.name for entry in entries]
    return costs.seconds(Counts(names, work, [target] * len(work)))  # type: ignore[arg-type]


@cache
def measured(target: Target = H100, every: int = _EVERY) -> Evidence:
    """What a race leaves: the heuristics, some of the others, and the fastest of all."""
    samples = []
    for problem in problems(target):
        entries = candidates(problem)
        took = seconds(problem, entries)
        heuristics = [i for i, entry in enumerate(entries) if entry.changes <= 1]
        kept = {*heuristics[:3], *range(0, len(entries), every), int(np.argmin(took))}
        samples += [sample(problem, entries[i], float(took[i])) for i in sorted(kept)]
    return Evidence(tuple(samples))


def sample(problem: TuningProblem, entry: Entry, took: float) -> Sample:
    """A candidate that was measured."""
    target, (batch, length, heads) = problem.target, problem.sizes
    made = Row(
        problem.program.fingerprint, problem.label, problem.direction, batch, length, heads,
        entry.template.name, entry.fields, entry.heuristic, entry.changes, "ok", target.name,
        str(target), 0, {"torch": "0"}, "0" * 40, "2030-01-02T03:04:05+00:00", ms=took * 1e3,
        figures=figures_of(target),
    )  # fmt: skip
    work = entry.template.work(problem.program, target, entry.config, batch * heads, length)
    assert work is not None
    return Sample(made, problem.program, target, entry.config, work)
