"""The candidates of a problem: every config of every template that can run it, on all backends."""

from dataclasses import asdict, dataclass
from typing import Any

from pdssm_compiler.runtime.backends import BACKENDS
from pdssm_compiler.runtime.compile_service import choose, config_text
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.resolve import tuned
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.templates.base import Template


@dataclass(frozen=True)
class Entry:
    """A candidate.

    Attributes:
        template: the template.
        config: its config.
        heuristic: whether a plain call without a log would take it.
        changes: fields that differ from what the template's heuristic says, and one for another
            template than the heuristic's.
        least_ms: less than this it does not take, as its template knows without measuring.
    """

    template: Template[Any]
    config: Any
    heuristic: bool
    changes: int
    least_ms: float = 0.0

    @property
    def fields(self) -> dict[str, Any]:
        """The config, none of its fields left out."""
        return asdict(self.config)

    @property
    def text(self) -> str:
        """The candidate as text."""
        return config_text(self.config)

    def __str__(self) -> str:
        told = " ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"{self.template.name} {told}"


@dataclass(frozen=True)
class Space:
    """What may be measured of a problem.

    Attributes:
        first: what is measured before all else: what each template's heuristic says, the one that
            plain calls take before the others, then what shipped logs say, of the nearest GPU too.
        others: the other feasible configs.
        refused: templates that cannot run it, and why.
    """

    first: tuple[Entry, ...]
    others: tuple[Entry, ...]
    refused: tuple[tuple[Entry, str], ...]


def space_of(problem: TuningProblem) -> Space:
    """Every candidate whose backend is here.

    Raises:
        NoTemplateError: there is none.
    """
    program, target, bucket = problem.program, problem.target, problem.bucket
    taken = choose(program, target, None, bucket, ahead=False, logs=False, wrong=True)
    heuristics, others, refused = [], [], []
    for template in TEMPLATES.values():
        if target.kind not in template.kinds or template.takes(program):
            continue
        if BACKENDS[template.backend].unavailable():
            continue
        first = template.heuristic(program, target, bucket)
        foreign = int(template is not taken.template)
        least = template.least_seconds(program, target, problem.sizes.length) * 1e3
        entry = Entry(template, first, not foreign and first == taken.config, foreign, least)
        reason = template.feasible(program, target, first)
        if reason:
            refused.append((entry, reason))
        else:
            heuristics.append(entry)
        for config in dict.fromkeys(template.space(program, target)):
            if config == first or not template.worthwhile(program, target, bucket, config):
                continue
            if template.feasible(program, target, config) is None:
                others.append(Entry(template, config, False, foreign + changes(first, config)))
    heuristics.sort(key=lambda each: not each.heuristic)
    shipped = {(t.template.name, t.config) for t in tuned(program, target, bucket, own=False)}
    advised = [entry for entry in others if (entry.template.name, entry.config) in shipped]
    others = [entry for entry in others if entry not in advised]
    return Space((*heuristics, *advised), tuple(others), tuple(refused))


def changes(config: Any, other: Any) -> int:
    """How many fields of two configs of a template differ."""
    mine, theirs = asdict(config), asdict(other)
    return sum(mine[name] != theirs[name] for name in mine)
