"""Loops over elements: which value is computed in which.

Thread-level code computes a token as a sequence of loops over ``j`` in ``[0, N)``, the *stages*.
Elementwise ops share the loop of their arguments. A gather reads elements that other iterations
computed, so its source must be complete: a stage earlier, in an array. An inverse and a sum are
complete only after their loop, and so is a scatter-add that adds into an array; one that collects
its sources reads like a gather. This module finds the fewest stages.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Index, Scalar, Table
from pdssm_compiler.ir.value import Value

# Ops that read their first argument at another element than their own.
INDEXING = ("gather", "compose")


@dataclass
class Stages:
    """The loops of a body.

    Attributes:
        computed: for each value that a loop computes, that loop's number; for a scalar, the number
            of the loop before which it is known.
        ready: the first loop in which element ``j`` of a value can be used.
        stored: values that live in an array because a later loop, or another element, needs them.
        seeds: scatter-adds whose array starts from another value instead of zero.
        sums: what such an array holds in the end, and whose array it is.
        commit: the loop at whose end the carries take their next values.
    """

    computed: dict[Value, int] = field(default_factory=dict)
    ready: dict[Value, int] = field(default_factory=dict)
    stored: set[Value] = field(default_factory=set)
    seeds: dict[Value, Value] = field(default_factory=dict)
    sums: dict[Value, Value] = field(default_factory=dict)
    commit: int = 0


def is_uniform(value: Value) -> bool:
    """Whether the value is one number or index for all elements."""
    return isinstance(value.type, Scalar | Index | Table)


@dataclass(frozen=True)
class Reach:
    """What a loop of one kind of code can read.

    Attributes:
        everywhere: whether any element of a value can be read as soon as it is ready.
        own: whether a value's own element can be read in a later loop than its own, without an
            array.
        scatter: how sums by destination are made. ``fill``: added into an array, in the loop that
            computes them. ``split``: likewise, but what is scattered is computed in a loop of its
            own before, which vectorises. ``collect``: each target reads its sources, and the map.
    """

    everywhere: Callable[[Value], bool]
    own: Callable[[Value], bool]
    scatter: Literal["fill", "split", "collect"]

    def fills(self, value: Value) -> bool:
        """Whether the value is an array that its loop fills."""
        return value.op == "invert" or (value.op == "scatter_add" and self.scatter != "collect")


def plan_stages(program: Program, reach: Reach) -> Stages:
    """Assign every value of the body to a loop."""
    stages = Stages()
    if reach.scatter != "collect":
        _seed(stages, program)
    for value in program.body:
        _place(stages, value, reach)
    results = [stages.ready[carry.next] for carry in program.carries]
    reads = [_last_read(stages, program, carry.value) for carry in program.carries]
    stages.commit = max([0, *results, *reads])
    _store_results(stages, program, reach)
    return stages


def _seed(stages: Stages, program: Program) -> None:
    """Find ``add(scatter_add(…), leaf)`` where nothing else needs the scattered sum: adding the
    leaf first saves a loop that zeroes and one read of the array.
    """
    uses = Counter(arg for value in program.body for arg in value.args)
    uses.update(carry.next for carry in program.carries)
    uses.update(output.value for output in program.token_outputs)
    uses.update(total.value for total in program.sum_outputs)
    for value in program.body:
        if value.op != "add":
            continue
        for filled, leaf in (value.args, value.args[::-1]):
            only = filled.op == "scatter_add" and uses[filled] == 1
            if only and leaf.is_leaf and filled.type == leaf.type:
                stages.seeds[filled] = leaf
                stages.sums[value] = filled
                break


def _place(stages: Stages, value: Value, reach: Reach) -> None:
    ready = stages.ready
    start = max((ready[arg] for arg in value.args), default=0)
    if value.op in INDEXING:
        source, map_ = value.args
        start = max(_complete(stages, source, reach), ready[map_])
    elif value.op == "scatter_add" and reach.scatter == "collect":
        start = max(_complete(stages, arg, reach) for arg in value.args)
    elif value.op == "scatter_add" and reach.scatter == "split":
        start = max(_complete(stages, value.args[0], reach), ready[value.args[1]])
    stages.computed[value] = start
    ready[value] = start + (1 if reach.fills(value) or value.op == "sum" else 0)
    for arg in value.args:
        _use(stages, arg, start, reach)


def _complete(stages: Stages, source: Value, reach: Reach) -> int:
    """The first loop in which any element of the source can be read."""
    if reach.everywhere(source) or source in stages.sums:
        return stages.ready[source]
    stages.stored.add(source)
    return stages.ready[source] + 1


def _use(stages: Stages, value: Value, stage: int, reach: Reach) -> None:
    """An elementwise use in a later loop than the one that computes the value needs an array."""
    if is_uniform(value) or reach.own(value) or value in stages.sums:
        return
    if stages.computed[value] < stage:
        stages.stored.add(value)


def _last_read(stages: Stages, program: Program, carry: Value) -> int:
    """The first loop at whose end the carry may be overwritten."""
    last = 0
    for value in program.body:
        if carry in value.args:
            at = stages.computed[value]
            # A read at another element must be over before the loop that overwrites.
            elsewhere = value.op in INDEXING and value.args[0] is carry
            last = max(last, at + 1 if elsewhere else at)
    return last


def _store_results(stages: Stages, program: Program, reach: Reach) -> None:
    for carry in program.carries:
        _use(stages, carry.next, stages.commit, reach)
