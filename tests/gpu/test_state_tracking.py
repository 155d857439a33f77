"""The state-tracking example on a GPU: a captured step does what one in parts does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.state_tracking import training
from examples.state_tracking.measured import Measured
from examples.state_tracking.models import BLOCKS
from examples.state_tracking.presets import settings_of
from examples.state_tracking.stepping import Step, Work, stepper
from examples.state_tracking.training import Run, train
from tests.examples.test_state_tracking import SMALL, without_seconds

ALIKE = replace(SMALL, sizes=replace(SMALL.sizes, dropout=0.0))


def in_parts(work: Work, stream: torch.cuda.Stream) -> Step:
    return stepper(work, None)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_captured_step(
    tmp_path: Path, kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(ALIKE, model=kind)
    captured = Run(settings, tmp_path / "captured", device)
    train([captured])
    monkeypatch.setattr(training, "stepper", in_parts)
    alone = Run(settings, tmp_path / "parts", device)
    train([alone])
    for mine, right in zip(captured.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", ["parity", "modular-arithmetic", "A5-2"])
def test_a_graph_draws_what_its_seed_and_length_say(
    task: str, tmp_path: Path, device: torch.device
) -> None:
    """Captured once, replayed for other steps, and for sequences that have grown."""
    settings = replace(ALIKE, task=task, longest=40, shortest=1, grow_below=1e9, batch=50)
    run = Run(settings, tmp_path, device)
    graph = torch.cuda.CUDAGraph()
    batches = run._batches
    run.draw(0)
    graph.register_generator_state(batches.random)
    with torch.cuda.graph(graph):
        captured = batches.next(10)
    longest = set()
    for step in range(5):
        run.log = [Measured(n, 0.0, 0.0, 0.0) for n in range(step)]
        drawn = run.draw(step)
        assert run._begin(step) == 10
        graph.replay()
        assert all(map(torch.equal, captured, drawn))
        longest.add(int(drawn.lengths.max()))
    assert len(longest) > 2


def test_a_run_goes_on_as_if_it_had_not_been_ended(tmp_path: Path, device: torch.device) -> None:
    """With dropout, whose seed a replay reads anew."""
    whole = Run(SMALL, tmp_path / "whole", device)
    train([whole])
    ended = Run(SMALL, tmp_path / "ended", device)
    while ended.step < 2:
        ended.advance()
    ended.measure()
    again = Run(SMALL, tmp_path / "ended", device)
    train([again])
    for mine, right in zip(without_seconds(again), without_seconds(whole), strict=True):
        assert mine.loss == pytest.approx(right.loss, rel=1e-4)


def test_runs_at_once(tmp_path: Path, device: torch.device) -> None:
    """On streams of their own, with dropout: each is what it is alone."""
    runs = [Run(replace(SMALL, seed=n), tmp_path / f"{n}", device) for n in range(3)]
    train(runs)
    for run in runs:
        alone = Run(run.settings, tmp_path / f"alone-{run.settings.seed}", device)
        train([alone])
        for mine, right in zip(without_seconds(run), without_seconds(alone), strict=True):
            assert mine.loss == pytest.approx(right.loss, rel=1e-4)


def test_runs_at_once_whose_products_need_memory_of_their_own(
    tmp_path: Path, device: torch.device
) -> None:
    """At the published sizes cuBLAS adds up parts of products in memory that torch gives it."""
    settings = [
        replace(settings_of("steady", "parity", "pdssm", seed), steps=10, every=10)
        for seed in range(3)
    ]
    runs = [Run(each, tmp_path / f"{each.seed}", device) for each in settings]
    train(runs)
    for run in runs:
        alone = Run(run.settings, tmp_path / f"alone-{run.settings.seed}", device)
        train([alone])
        assert run.log[0].loss == pytest.approx(alone.log[0].loss, rel=1e-4)
