"""The cost model's law: counts of work that templates give, and seconds that follow from them."""

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import LEARNED, PdScan, mixture, pd_scan
from pdssm_compiler.schedules.cost import OWN, SHARED, Costs, Counts
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import Target, named_target, named_targets
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.work import Work, blocks_at_once, bytes_in, bytes_out

GPUS = [target for target in named_targets().values() if target.bandwidth]
H100 = named_target("h100")
COUNTING = [t for t in TEMPLATES.values() if t.name.startswith(("cuda-", "triton-"))]
NAMES = [template.name for template in COUNTING]
SCANS = [specialise(pd_scan(PdScan(n, 3, map_class=maps))) for n, maps in
         ((8, "general"), (32, "permutation"), (100, "general"))]  # fmt: skip
PROGRAMS = [*SCANS, specialise(adjoint(pd_scan(PdScan(32, 3)), surrogate="active").program)]
MIXTURES = [mixture(24, 3, "f32", "column"), mixture(128, 40, "f32", "row", noisy=True)]
PROGRAMS += [*MIXTURES, *(adjoint(m, LEARNED, surrogate="dense").program for m in MIXTURES)]


@st.composite
def works(draw: st.DrawFn) -> Work:
    """Any work."""
    count = st.integers(0, 10**7)
    return Work(
        moved=draw(st.integers(1, 10**11)),
        blocks=draw(st.integers(1, 10**6)),
        threads=draw(st.sampled_from([32, 64, 256, 1024])),
        shared_bytes=draw(st.integers(0, 227 << 10)),
        registers=draw(st.integers(0, 255)),
        ahead=draw(count),
        steps=draw(count),
        collecting=draw(count),
        exchanges=draw(count),
        tiles=draw(count),
        waits=draw(count),
        issued=draw(st.integers(0, 10**10)),
        passes=draw(count),
        launches=draw(st.integers(1, 5)),
    )


def seconds(work: Work, target: Target, costs: Costs | None = None) -> float:
    costs = costs or Costs.prior(NAMES)
    return float(costs.seconds(Counts(["cuda-rows"], [work], [target]))[0])


@given(works(), st.sampled_from(GPUS), st.floats(1.0, 1e3))
def test_more_bandwidth_never_takes_longer(work: Work, gpu: Target, more: float) -> None:
    faster = replace(gpu, bandwidth=int(gpu.bandwidth * more))
    assert seconds(work, faster) <= seconds(work, gpu) * (1 + 1e-12)


@given(works(), works(), st.sampled_from(GPUS))
def test_with_endless_bandwidth_what_is_in_series_ranks(one: Work, two: Work, gpu: Target) -> None:
    """Bytes then count only as far as they are not on their way soon enough."""
    endless = replace(gpu, bandwidth=10**30)
    one, two = replace(one, ahead=0), replace(two, ahead=0)
    for each in (one, two):
        more = replace(each, moved=each.moved * 50)
        assert seconds(more, endless) == pytest.approx(seconds(each, endless), rel=1e-9)
    costs = Costs.prior(NAMES)
    parts = costs.parts(Counts(["cuda-rows"] * 2, [one, two], [endless] * 2))
    others = [parts[name] for name in ("chain", "instructions", "carries")]
    if all(part[0] <= part[1] for part in (*others, parts["launches"])):
        assert seconds(one, endless) <= seconds(two, endless) * (1 + 1e-12)


@given(works(), st.sampled_from(GPUS), st.sampled_from([f.name for f in fields(Work)]))
def test_more_work_never_takes_less(work: Work, gpu: Target, name: str) -> None:
    more = 2 * getattr(work, name)
    if name == "ahead":
        # What is on its way at once is no work.
        assert seconds(replace(work, ahead=more), gpu) <= seconds(work, gpu) * (1 + 1e-12)
    elif name not in ("blocks", "threads"):
        # More blocks are more copies on their way; and of threads, blocks have few sizes.
        added = replace(work, **{name: min(more, 255) if name == "registers" else more})
        assert seconds(added, gpu) >= seconds(work, gpu) * (1 - 1e-12)


@given(works(), st.sampled_from(GPUS), st.integers(2, 8))
def test_more_processors_never_take_longer(work: Work, gpu: Target, more: int) -> None:
    larger = replace(gpu, processors=gpu.processors * more)
    assert work.waves(larger) <= work.waves(gpu)
    assert seconds(work, larger) <= seconds(work, gpu) * (1 + 1e-12)


@given(works(), st.sampled_from(GPUS), st.floats(1.5, 100.0), st.data())
def test_no_constant_has_the_wrong_sign(
    work: Work, gpu: Target, more: float, data: st.DataObject
) -> None:
    costs = Costs.prior(NAMES)
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(SHARED)))
        dearer = replace(costs, shared=costs.shared | {name: more * costs.shared[name]})
    else:
        name = data.draw(st.sampled_from(sorted(OWN)))
        mine = costs.own["cuda-rows"] | {name: more * costs.own["cuda-rows"][name]}
        dearer = replace(costs, own=costs.own | {"cuda-rows": mine})
    assert seconds(work, gpu, dearer) >= seconds(work, gpu, costs) * (1 - 1e-12)


def feasible(program: Program, target: Target) -> Iterator[tuple[object, object]]:
    """Every seventh feasible candidate of every template."""
    for template in COUNTING:
        if target.kind in template.kinds and template.takes(program) is None:
            configs = [
                template.heuristic(program, target, Problem(64, 1000)),
                *list(template.space(program, target))[::7],
            ]
            for config in configs:
                if template.feasible(program, target, config) is None:
                    yield template, config


@settings(max_examples=12)
@given(
    st.sampled_from(PROGRAMS),
    st.sampled_from(GPUS),
    st.integers(1, 4096),
    st.integers(1, 5000),
)
def test_every_feasible_config_has_work(
    program: Program, gpu: Target, rows: int, length: int
) -> None:
    floor = rows * length * (bytes_in(program) + bytes_out(program))
    found = 0
    for template, config in feasible(program, gpu):
        work = template.work(program, gpu, config, rows, length)
        told = [float(getattr(work, field.name)) for field in fields(Work)]
        assert np.isfinite(told).all(), (template.name, config)
        assert min(told) >= 0
        assert work.blocks >= 1
        assert work.threads >= 1
        # Every token is read and written at least once.
        assert work.moved >= floor
        assert work.steps > 0
        assert seconds(work, gpu) > 0
        found += 1
    assert found


def test_what_a_choice_was_measured_at() -> None:
    """The law before any fit, beside the only times there are of it: of an H200, in ms."""
    h200, sizes = named_target("h200"), (1, 65536)
    template = TEMPLATES["triton-matrices"]
    program = mixture(128, 8, "f32", "column")
    backward = adjoint(program, LEARNED, surrogate="dense").program
    for each, ms in ((program, 0.64), (backward, 1.5 + 1.55 + 1.6)):
        config = template.heuristic(each, h200, Problem(*sizes))
        found = template.work(each, h200, config, *sizes)
        assert found is not None
        assert 0.5 * ms < seconds(found, h200) * 1e3 < 2 * ms


def test_plain_pytorch_counts_nothing() -> None:
    for name in ("torch-tokens", "torch-chunks", "cpu-rows"):
        template = TEMPLATES[name]
        config = template.heuristic(SCANS[0], H100, Problem(8, 100))
        assert template.work(SCANS[0], H100, config, 8, 100) is None


def test_how_many_blocks_run_at_once() -> None:
    # 228 KiB a processor, of which each block takes one more than its own.
    assert [blocks_at_once(H100, 64, kib << 10) for kib in (227, 113, 75, 112)] == [1, 2, 3, 2]
    assert blocks_at_once(H100, 64, 0) == 32
    assert blocks_at_once(H100, 1024, 0) == 2
    assert blocks_at_once(H100, 256, 0, registers=128) == 2
    # What does not fit is not feasible; the law never divides by none.
    assert blocks_at_once(H100, 64, 1 << 20) == 1
    work = Work(moved=1.0, blocks=265, threads=64, shared_bytes=113 << 10)
    assert work.at_once(H100) == 264
    assert work.waves(H100) == 2


def test_a_tokens_bytes() -> None:
    scan = specialise(pd_scan(PdScan(32, 8)))
    # Diagonal and drive, and the selection; the states.
    assert bytes_in(scan) == 2 * 32 * 8 + 4
    assert bytes_out(scan) == 32 * 8
