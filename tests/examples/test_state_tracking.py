"""The state-tracking example: runs resume exactly, logs and results say what was, and commands."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from examples.state_tracking import presets
from examples.state_tracking.__main__ import app
from examples.state_tracking.evaluation import accuracy
from examples.state_tracking.lengths import LENGTHS, over_lengths
from examples.state_tracking.measured import Measured
from examples.state_tracking.models import BLOCKS, DiagonalSSM, Sizes, Tracker
from examples.state_tracking.presets import settings_of
from examples.state_tracking.schedule import longest, rate, temperature
from examples.state_tracking.settings import Settings
from examples.state_tracking.speed import speeds
from examples.state_tracking.stepping import _start_moments
from examples.state_tracking.tasks import TASKS, task_of
from examples.state_tracking.training import Run, train
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.torch_only import torch_only


@pytest.fixture(autouse=True)
def _no_compiler() -> Iterator[None]:
    """What kernels do is tested elsewhere; here none is waited for."""
    with torch_only(TorchTokens()):
        yield


SMALL = Settings(
    "parity", "pdssm", 3, Sizes(8, 6, 3, 1, 0.1), steps=6, batch=5, shortest=2, longest=7,
    test_shortest=4, test_longest=9, test_sequences=12, every=2,
)  # fmt: skip


def parameters(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def without_seconds(run: Run) -> list[Measured]:
    return [line._replace(seconds=0.0) for line in run.log]


@pytest.mark.parametrize(
    "model",
    ["pdssm", *(pytest.param(m, marks=pytest.mark.stress) for m in BLOCKS if m != "pdssm")],
)
def test_a_run_goes_on_as_if_it_had_not_been_ended(tmp_path: Path, model: str) -> None:
    """Ended after any step; with dropout, whose random numbers follow from the step too."""
    settings = replace(SMALL, model=model)
    whole = Run(settings, tmp_path / "whole", "cpu")
    train([whole])
    assert [line.step for line in whole.log] == [2, 4, 6]
    ended = Run(settings, tmp_path / "ended", "cpu")
    for _ in range(2):
        ended.advance()
    ended.measure()
    ended.advance()  # of which nothing is kept
    again = Run(settings, tmp_path / "ended", "cpu")
    assert again.step == 2
    train([again])
    assert without_seconds(again) == without_seconds(whole)
    assert all(map(torch.equal, parameters(again), parameters(whole)))
    # What is done stays as it is.
    last = Run(settings, tmp_path / "ended", "cpu")
    assert last.is_done
    train([last])
    assert last.step == 6
    lines = [
        json.loads(line)
        for line in (tmp_path / "ended" / "log.jsonl").read_text().split("\n")
        if line
    ]
    assert [line["step"] for line in lines] == [2, 4, 6]


def test_runs_beside_one_another_are_what_each_is_alone(tmp_path: Path) -> None:
    each = [replace(SMALL, seed=seed) for seed in (1, 2)]
    together = [Run(s, tmp_path / "together" / s.name, "cpu") for s in each]
    told = []
    train(together, lambda run, line: told.append((run.settings.seed, line.step)))
    assert told == [(1, 2), (2, 2), (1, 4), (2, 4), (1, 6), (2, 6)]
    for settings, run in zip(each, together, strict=True):
        alone = Run(settings, tmp_path / "alone" / settings.name, "cpu")
        train([alone])
        assert without_seconds(alone) == without_seconds(run)
    assert not all(map(torch.equal, parameters(together[0]), parameters(together[1])))


def test_other_settings_are_refused(tmp_path: Path) -> None:
    Run(SMALL, tmp_path, "cpu")
    with pytest.raises(ValueError, match="has a run of other settings; name another folder"):
        Run(replace(SMALL, rate=1e-3), tmp_path, "cpu")
    assert Settings.read(tmp_path) == SMALL


def test_processes_on_one_folder_do_not_take_each_other_s_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = Run(SMALL, tmp_path, "cpu"), Run(SMALL, tmp_path, "cpu")
    replaced = os.replace

    def meanwhile(part: Path, place: Path) -> None:
        monkeypatch.setattr(os, "replace", replaced)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: -1)
            theirs.measure()
        replaced(part, place)

    monkeypatch.setattr(os, "replace", meanwhile)
    mine.measure()
    assert {each.name for each in tmp_path.iterdir()} == {
        "settings.json",
        "log.jsonl",
        "checkpoint.pt",
    }


def test_enough_ends_a_run(tmp_path: Path) -> None:
    run = Run(replace(SMALL, enough=-1.0), tmp_path, "cpu")
    train([run])
    assert run.step == 2
    assert run.is_done


def test_the_rate_rises_and_falls() -> None:
    settings = replace(SMALL, steps=1000, rate=2e-3, last_rate=1e-5)
    rates = [rate(settings, step) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-5)
    assert rates[99] == pytest.approx(2e-3)
    assert max(rates) == pytest.approx(2e-3)
    assert rates[549] == pytest.approx((2e-3 + 1e-5) / 2, rel=0.01)
    assert rates[-1] == pytest.approx(1e-5, rel=0.05)
    assert all(a >= b for a, b in pairwise(rates[99:]))


def test_lengths_grow(tmp_path: Path) -> None:
    """In batches of one width, whatever the lengths in them."""
    settings = replace(SMALL, task="modular-arithmetic", growing=0.5, steps=100, longest=31)
    assert [longest(settings, step) for step in (0, 25, 49, 50, 99)] == [4, 17, 30, 31, 31]
    assert longest(replace(settings, growing=0.0), 0) == 31
    run = Run(settings, tmp_path, "cpu")
    early, late = run.draw(0), run.draw(99)
    assert early.tokens.shape == late.tokens.shape == (5, 32)
    assert early.lengths.max() <= 4 < late.lengths.max()


def test_lengths_grow_with_success(tmp_path: Path) -> None:
    """By half after each measurement with a small loss, in batches of few widths."""
    settings = replace(SMALL, grow_below=0.5, longest=40, shortest=3)
    log = [Measured(n, loss, 0.0, 0.0) for n, loss in enumerate((0.6, 0.4, 0.3, 0.7, 0.1))]
    grown = [longest(settings, 7, log[:n]) for n in range(6)]
    assert grown == [6, 6, 9, 13, 13, 19]
    assert longest(settings, 7, log * 3) == 40
    run = Run(settings, tmp_path, "cpu")
    widths = []
    for n in (0, 3, 5, 15):
        run.log = (log * 3)[:n]
        batch = run.draw(1)
        assert batch.lengths.max() <= longest(settings, 1, run.log)
        widths.append(batch.tokens.shape[1])
    assert widths == [10, 20, 20, 40]


def test_lengths_grow_by_a_factor_and_by_one_at_least() -> None:
    settings = replace(SMALL, grow_below=0.5, grow_by=1.2, longest=40, shortest=3)
    log = [Measured(n, 0.1, 0.0, 0.0) for n in range(9)]
    grown = [longest(settings, 7, log[:n]) for n in range(8)]
    assert grown == [6, 7, 8, 9, 10, 12, 14, 16]
    poor = [line._replace(loss=0.9) for line in log]
    waited = replace(settings, grow_after=3)
    assert [longest(waited, 7, poor[:n]) for n in range(8)] == [6, 6, 6, 7, 7, 7, 8, 8]
    assert longest(waited, 7, [*poor[:2], log[0], *poor[:2]]) == 7
    # Numbers that no float holds are never come to.
    assert longest(replace(settings, grow_by=1e18), 7, log * 3) == 40
    assert longest(replace(settings, grow_by=1.5), 7, log * 2000) == 40


def test_maps_learn_at_a_rate_of_their_own(tmp_path: Path) -> None:
    """In proportion to their gradients, where the epsilon is large; and so they go on."""
    settings = replace(SMALL, rate=1e-2, maps_rate=50.0, maps_epsilon=1.0, warm_up=0.0)
    run = Run(settings, tmp_path, "cpu")
    block = run.model.blocks[0]
    before = block.dictionary_logits.detach().clone()
    run.advance()
    moved, gradient = before - block.dictionary_logits, block.dictionary_logits.grad
    assert gradient.abs().max() > 0
    # Beside such an epsilon the root of the mean square is nothing.
    torch.testing.assert_close(moved, 0.5 * gradient, rtol=0.02, atol=1e-6)
    assert run.model.head.weight.grad.abs().max() > 0
    run.advance()
    run.measure()
    again = Run(settings, tmp_path, "cpu")
    assert [g["eps"] for g in again.optimizer.param_groups] == [1e-8, 1e-8, 1.0]
    for each in (run, again):
        each.advance()
    assert all(map(torch.equal, parameters(run), parameters(again)))


def test_symbols_with_maps_of_their_own() -> None:
    torch.manual_seed(0)
    model = Tracker("pdssm", 9, Sizes(64, 6, 5, 1, apart=8.0), 4)
    block = model.blocks[0]
    logits = block.selector(model.embedding.weight[:4])
    assert logits.argmax(-1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(logits.diagonal(), torch.full((4,), 8.0))
    few = Tracker("pdssm", 9, Sizes(64, 6, 2, 1, apart=8.0), 4).blocks[0]
    assert few.selector.weight.shape == (2, 64)


def test_temperature_falls_by_equal_factors(tmp_path: Path) -> None:
    settings = replace(SMALL, temperature=4.0, last_temperature=0.25, steps=5)
    assert [temperature(settings, step) for step in range(5)] == [4, 2, 1, 0.5, 0.25]
    run = Run(settings, tmp_path, "cpu")
    seen = []
    for _ in range(3):
        run.advance()
        seen.append(run.model.blocks[0].temperature.item())
    assert seen == [4, 2, 1]


def test_where_models_begin() -> None:
    """Phases, magnitudes, drives and dictionaries, by what the sizes say of them."""
    torch.manual_seed(0)
    own = Tracker("pdssm", 3, Sizes(8, 64)).blocks[0]
    torch.manual_seed(0)
    sizes = Sizes(8, 64, turns=1e-4, loss=1e-2, drive=0.5, margin=3.0, noise=0.25)
    block = Tracker("pdssm", 3, sizes).blocks[0]
    turns = block.diagonal.phase.last.bias.sigmoid()
    losses = 1 - block.diagonal.magnitude.last.bias.sigmoid()
    assert 1e-5 <= turns.min() < turns.max() <= 1.001e-4
    assert 0.9e-5 <= losses.min() < losses.max() <= 1.001e-2
    torch.testing.assert_close(2 * block.drive_proj.weight.std(), own.drive_proj.weight.std())
    chosen = block.dictionary_logits.amax(-2)
    assert 2 < chosen.min() < chosen.max() < 5
    assert block.noise == 0.25


def test_others_begin_where_one_has_ended(tmp_path: Path) -> None:
    """With a limit of two at once; and none is begun once the time is up."""
    made: list[int] = []

    def runs() -> Iterator[Run]:
        for seed in range(4):
            made.append(seed)
            settings = replace(SMALL, seed=seed, steps=2 if seed == 0 else 6)
            yield Run(settings, tmp_path / f"{seed}", "cpu")

    told: list[tuple[int, int]] = []

    def tell(run: Run, line: Measured) -> None:
        told.append((run.settings.seed, line.step))

    assert len(train(runs(), tell, together=2)) == 4
    assert told[:6] == [(0, 2), (1, 2), (1, 4), (2, 2), (1, 6), (2, 4)]
    assert dict(told) == {0: 2, 1: 6, 2: 6, 3: 6}
    made.clear()
    assert train(runs(), tell, together=2, seconds=0.0) == []
    assert made == []


def test_speeds(tmp_path: Path) -> None:
    planned = [replace(SMALL, seed=seed) for seed in range(2)]
    alone, both = speeds(planned, (1, 2), 2, torch.device("cpu"))
    assert (alone.together, alone.gain, both.together) == (1, 1.0, 2)
    assert both.gain == pytest.approx(2 * alone.seconds / both.seconds)
    words = ("--models", "lstm", "--tasks", "parity", "--counts", "1", "--steps", "1")
    code, said = command(
        "speed", *words, "--preset", "small", "--device", "cpu", "--out", str(tmp_path)
    )
    assert code == 0, said
    assert "lstm, 1 at once: " in said
    assert json.loads((tmp_path / "speed.json").read_text())["speed"][0]["model"] == "lstm"


def test_the_diagonal_ablation_is_the_recurrence_without_maps() -> None:
    torch.manual_seed(0)
    block = DiagonalSSM(4, state_size=3, dropout=0.0)
    x = torch.randn(2, 5, 4)
    diagonal = torch.view_as_complex(block.diagonal(x))
    drive = torch.view_as_complex(block.drive_proj(x).unflatten(-1, (3, 2)))
    state, states = torch.tensor([1.0 + 0j, 0, 0]).expand(2, 3), []
    for t in range(5):
        state = diagonal[:, t] * state + drive[:, t]
        states.append(torch.cat([state.real, state.imag], -1))
    want = block.norm(block.readout(torch.stack(states, 1)) + block.skip * x)
    torch.testing.assert_close(block(x), want)
    assert not any(
        "dictionary" in name or "selector" in name for name, _ in block.named_parameters()
    )


@pytest.mark.parametrize("kind", BLOCKS)
def test_padding_changes_nothing(kind: str) -> None:
    torch.manual_seed(1)
    model = Tracker(kind, 6, Sizes(8, 6, 3, 2)).eval()
    tokens = torch.tensor([[1, 2, 5, 3, 0, 0, 0]])
    lengths = torch.tensor([4])
    torch.testing.assert_close(model(tokens[:, :4], lengths), model(tokens, lengths))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_first_layer_reads_symbols(layers: int) -> None:
    """Of their table, on a GPU one with rows for more: as it would read their vectors."""
    torch.manual_seed(1)
    model = Tracker("pdssm", 9, Sizes(8, 6, 3, layers, 0.0), 4)
    tokens, lengths = torch.randint(4, (5, 7)), torch.tensor([7, 1, 3, 4, 6])
    first, *others = model.blocks
    vectors = [lambda table, symbols: first(model.embedding(symbols)), *others]
    padded = [
        lambda table, symbols: first(
            torch.nn.functional.pad(table, (0, 0, 0, 12)), symbols=symbols
        ),
        *others,
    ]
    found = []
    for blocks in (None, vectors, padded):
        scores = model(tokens, lengths, blocks)
        grads = torch.autograd.grad(scores.sin().sum(), list(model.parameters()))
        found.append((scores, *grads))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


def test_accuracy_is_of_all_sequences() -> None:
    """In batches, the last one smaller, of a model that is right for half of the answers."""
    task = TASKS["parity"]
    seen: list[int] = []

    class Guess(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            assert not self.training
            seen.append(len(tokens))
            scores = torch.zeros(len(tokens), 3)
            scores[:, 2] = 1
            return scores

    guess, random = Guess().train(), torch.Generator().manual_seed(0)
    found = accuracy(guess, task, 700, (150, 300), random)
    assert seen == [109] * 6 + [46]
    assert 0.43 < found < 0.57
    assert guess.training


def test_lengths_far_beyond(tmp_path: Path) -> None:
    run = Run(SMALL, tmp_path, "cpu")
    found = over_lengths(run, (8, 100), tokens=400, most=30)
    assert {length: count for length, (_, count) in found.items()} == {8: 30, 100: 4}
    assert found == over_lengths(run, (8, 100), tokens=400, most=30)


def command(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "_SMALL", replace(presets._SMALL, test_sequences=9))
    monkeypatch.setattr(over_lengths, "__defaults__", (LENGTHS, 2000, 50))
    out = tmp_path / "runs"
    code, said = command(
        *("table2", "--preset", "small", "--tasks", "parity,even-pairs", "--models", "lstm"),
        *("--seeds", "2", "--steps", "3", "--together", "9", "--out", str(out)),
        *("--device", "cpu"),
    )
    assert code == 0, said
    assert "Accuracy on 40 to 256 tokens, %" in said
    assert "(2)" in said
    found = json.loads((out / "results.json").read_text())
    assert {"device", "versions", "commit", "date"} <= found.keys()
    assert found["together"] == 4  # no more than there are
    assert [run["settings"]["seed"] for run in found["runs"]] == [0, 0, 1, 1]
    assert all(run["done"] and run["log"][-1]["step"] == 3 for run in found["runs"])
    assert (out / "curves.png").stat().st_size > 0
    code, said = command("lengths", str(out), "--longest", "300", "--device", "cpu")
    assert code == 0, said
    assert "parity-lstm-1: 40: " in said
    assert (out / "lengths.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("table2", "--tasks", "party"), "there is no task 'party'; there are cycle-navigation"),
        (("table2", "--models", "gpt"), "there is no model 'gpt'; there are pdssm"),
        (("table2", "--set", "sizes.layers=0"), "sizes.layers is at least 1, not 0"),
        (("table2", "--set", "rate=-1"), "rate is a number from 0 on, not -1.0"),
        (("table2", "--set", "temperature=0"), "temperature is above 0"),
        (("table2", "--set", "last_temperature=1e-45"), "last_temperature is above 0, 1e-30 at"),
        (("table2", "--set", "grow_by=0.5"), "grow_by is at least 1, not 0.5"),
        (("table2", "--set", "maps_epsilon=0"), "maps_epsilon is above 0"),
        (("table2", "--set", "maps_rate=1e300"), "maps_rate is at most 1e+18, not 1e+300"),
        (("table2", "--set", "sizes.dropout=2"), "sizes.dropout is a part, at most 1"),
        (("table2", "--set", "sizes.loss=2"), "sizes.loss is a part, at most 1"),
        (("table2", "--set", "longest=2"), "shortest=3 is above longest=2"),
        (("table2", "--set", "rate=1e39"), "rate is at most 1e+18"),
        (("speed", "--counts", "0"), "'0' is no list of numbers from 1 on"),
        (("speed", "--counts", "1,x"), "'1,x' is no list of numbers from 1 on"),
        (
            ("table2", "--tasks", "parity,parity"),
            "parity-flash-0, parity-pdssm-0 more than once; name each task",
        ),
        (
            ("table2", "--models", "flash,lstm,flash"),
            "modular-arithmetic-flash-0, parity-flash-0 more than once; name each",
        ),
        (("table2", "--device", "tpu"), "there is no device 'tpu' here; name cpu, or cuda where"),
        (("table2", "--device", "cuda:999"), "there is no device 'cuda:999' here"),
        (("table2", "--device", "meta"), "there is no device 'meta' here"),
        (("table2", "--set", "speed=1"), "'speed=1' changes nothing that there is; write NAME="),
        (("table2", "--set", "steps=2.5"), "'steps=2.5' has no int for steps; write a number"),
        (("table2", "--set", "rate=[1]"), "'rate=[1]' has no float for rate; write a number"),
        (("table2", "--set", "rate=true"), "'rate=true' has no float for rate; write a number"),
        (("table2", "--set", "batch=1e400"), "'batch=1e400' has no int for batch; write a number"),
        (("table2", "--set", "batch=1e20"), "batch is at most 2147483647, not 1000000000000"),
        (("table2", "--set", "seed=-1"), "seed is at least 0, not -1"),
        (("table2", "--set", "sizes.size=1"), "the name one of sizes.width, sizes.state"),
        (("table3", "--tasks", "A5-²"), "there is no task 'A5-²'; there are cycle-navigation"),
        (
            ("table3", "--preset", "tiny"),
            "there is no preset 'tiny'; there are published, steady, small",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    code, text = command(*words, "--out", str(tmp_path / "runs"))
    assert code == 2
    assert said in " ".join(text.replace("│", " ").split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("settings.json", b'{"task":', "settings.json does not say what run this is"),
        ("settings.json", b"[]", "settings.json does not say what run this is"),
        (
            "settings.json",
            json.dumps({**SMALL.as_json(), "rate": "fast"}).encode(),
            "settings.json does not say what run this is",
        ),
        ("settings.json", None, "settings.json does not say what run this is"),
        (
            "settings.json",
            json.dumps({**SMALL.as_json(), "grow_by": 0.0}).encode(),
            "settings.json is of no run: grow_by is at least 1, not 0.0",
        ),
        ("checkpoint.pt", b"", "checkpoint.pt cannot be read"),
        ("checkpoint.pt", b"PK half of it", "checkpoint.pt cannot be read"),
    ],
)
def test_what_is_damaged_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = tmp_path / SMALL.name
    Run(SMALL, folder, "cpu").measure()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    code, said = command("lengths", str(tmp_path), "--device", "cpu")
    assert code == 2
    assert message in " ".join(said.replace("│", " ").split())
    with pytest.raises(ValueError, match="remove"):
        Run(SMALL, folder, "cpu")


@pytest.mark.parametrize(
    ("log", "error"), [([], "IndexError"), ([(1, 2)], "ValueError"), (["abcd"], "ValueError")]
)
def test_a_checkpoint_without_a_measurement_is_damaged(
    tmp_path: Path, log: list[object], error: str
) -> None:
    folder = tmp_path / SMALL.name
    Run(SMALL, folder, "cpu").measure()
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(state | {"log": log}, folder / "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"checkpoint\.pt cannot be read \({error}\)"):
        Run(SMALL, folder, "cpu")


def test_a_checkpoint_s_numbers_are_held_to_their_checksums(tmp_path: Path) -> None:
    """Half a file, and bytes changed in the middle of one, which ``torch.load`` takes."""
    folder = tmp_path / SMALL.name
    Run(SMALL, folder, "cpu").measure()
    whole = (folder / "checkpoint.pt").read_bytes()
    weight = Run(SMALL, folder, "cpu").model.state_dict().popitem()[1].numpy().tobytes()[:8]
    changed = whole.replace(weight, bytes(255 - byte for byte in weight))
    assert changed != whole
    for content in (whole[: len(whole) // 2], changed):
        (folder / "checkpoint.pt").write_bytes(content)
        code, said = command("lengths", str(tmp_path), "--device", "cpu")
        assert code == 2
        assert "checkpoint.pt cannot be read" in " ".join(said.replace("│", " ").split())


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ("--preset", "small", "--tasks", "parity", "--device", "cpu")
    code, said = command("table2", *words, "--out", str(tmp_path / "file"))
    assert code == 2
    assert "cannot have runs" in said
    assert "name another folder by --out" in " ".join(said.replace("│", " ").split())


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(runs: object, told: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("examples.state_tracking.__main__.train", interrupted)
    words = ("table2", "--preset", "small", "--tasks", "parity", "--models", "lstm")
    code, said = command(*words, "--out", str(tmp_path), "--device", "cpu")
    assert code == 130
    assert "the same command goes on from the last measurement of each run" in said


def test_what_memory_does_not_hold_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("table2", "--preset", "small", "--tasks", "parity", "--models", "lstm")
    words = (*words, "--device", "cpu", "--out", str(tmp_path))
    sizes, errors = [(2**60,), (2**60, 8)], [MemoryError(), torch.OutOfMemoryError("CUDA's")]

    def too_much(runs: object, told: object, **options: object) -> None:
        if sizes:
            torch.empty(sizes.pop(), dtype=torch.uint8)
        raise errors.pop() if errors else RuntimeError("a mistake")

    monkeypatch.setattr("examples.state_tracking.__main__.train", too_much)
    for _ in range(4):
        code, said = command(*words)
        assert code == 2
        assert "there is not enough memory" in " ".join(said.replace("│", " ").split())
    with pytest.raises(RuntimeError, match="a mistake"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    Run(SMALL, tmp_path / SMALL.name, "cpu").measure()
    (tmp_path / "automata.json").mkdir()
    words = ("automaton", str(tmp_path), "--device", "cpu")
    code, said = command(*words)
    assert code == 2
    assert "a file cannot be read or written" in " ".join(said.replace("│", " ").split())
    assert not list(tmp_path.glob("*.part"))


def test_a_time_in_which_nothing_begins(tmp_path: Path) -> None:
    words = ("table2", "--preset", "small", "--tasks", "parity", "--models", "lstm")
    code, said = command(*words, "--limit", "1e-12", "--device", "cpu", "--out", str(tmp_path))
    assert code == 0, said
    assert "the time is up; the same command goes on" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lengths", "automaton"])
def test_none_that_is_solved(tmp_path: Path, name: str) -> None:
    """Is said, for one run's folder too; what was stored before stays."""
    Run(SMALL, tmp_path / SMALL.name, "cpu").measure()
    (tmp_path / f"{name}.json").write_text("{}")
    for folder in (tmp_path, tmp_path / SMALL.name):
        code, said = command(name, str(folder), "--solved", "--device", "cpu")
        assert code == 2
        assert "has ended above 99.95 %" in " ".join(said.replace("│", " ").split())
    assert (tmp_path / f"{name}.json").read_text() == "{}"


def test_a_log_is_what_its_checkpoint_says(tmp_path: Path) -> None:
    """Ended between the two, and what is written is written as a whole or not at all."""
    Run(SMALL, tmp_path, "cpu").measure()
    log = (tmp_path / "log.jsonl").read_text()
    for damaged in (log[:9], None):
        if damaged is None:
            (tmp_path / "log.jsonl").unlink()
        else:
            (tmp_path / "log.jsonl").write_text(damaged)
        Run(SMALL, tmp_path, "cpu")
        assert (tmp_path / "log.jsonl").read_text() == log
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    Run(SMALL, tmp_path, "cpu")
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept


def test_interrupted_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(SMALL, tmp_path, "cpu")
    run.measure()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(part: Path, place: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    run.advance()
    with pytest.raises(KeyboardInterrupt):
        run.measure()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_moments_begin_and_nothing_else(tmp_path: Path) -> None:
    """Before a step is captured, which needs them; of maps firmer than the margin too."""
    sizes = replace(SMALL.sizes, margin=9.0)
    run = Run(replace(SMALL, sizes=sizes, maps_margin=2.0), tmp_path, "cpu")
    rates = [float(group["lr"]) for group in run.optimizer.param_groups]
    before = parameters(run)
    _start_moments(run.model, run.optimizer)
    assert all(map(torch.equal, parameters(run), before))
    assert [float(group["lr"]) for group in run.optimizer.param_groups] == rates
    assert all(not moments["step"] for moments in run.optimizer.state.values())
    assert len(run.optimizer.state) == len(before)


def test_no_runs_have_no_lengths(tmp_path: Path) -> None:
    code, text = command("lengths", str(tmp_path))
    assert code == 2
    assert "there is no checkpoint in" in text


def test_tables_have_their_published_sizes() -> None:
    two, three = (settings_of("published", task, "pdssm", 0) for task in ("parity", "S5-32"))
    assert (two.sizes.layers, two.sizes.dictionary, two.sizes.state) == (2, 8, 128)
    assert (three.sizes.layers, three.sizes.dictionary, three.sizes.state) == (1, 32, 128)
    assert (two.steps, two.batch, two.shortest, two.longest) == (100_001, 256, 3, 40)
    assert two.grow_below == 0


@pytest.mark.parametrize(
    ("task", "states"),
    [("parity", 128), ("modular-arithmetic", 128), ("A5-12", 128), ("S5-32", 256)],
)
def test_steady_automata_are_maps_that_lose_nothing(task: str, states: int) -> None:
    settings = settings_of("steady", task, "pdssm", 0)
    settings.check()
    assert settings.sizes.state == states
    assert settings.maps_rate == 30 * task_of(task).symbols
    assert settings.sizes.dictionary > task_of(task).symbols
    model = Tracker("pdssm", 130, settings.sizes, 11)
    block = model.blocks[0]
    with torch.no_grad():
        diagonal = block.diagonal(model.embedding.weight)
    assert torch.equal(diagonal[..., 0], torch.ones(130, states))
    assert not block.drive_proj.weight.requires_grad
    assert not block.skip.requires_grad
    assert not block.skip.any()


def test_maps_are_held_to_a_margin(tmp_path: Path) -> None:
    """The largest entry of a column stays as it is, others no more than that below it."""
    sizes = replace(SMALL.sizes, margin=9.0)
    settings = replace(SMALL, sizes=sizes, maps_margin=2.0, maps_rate=50.0, maps_epsilon=1.0)
    free = Run(replace(settings, maps_margin=0.0), tmp_path / "free", "cpu")
    held = Run(settings, tmp_path / "held", "cpu")
    for run in (free, held):
        run.advance()
    of_free, of_held = (run.model.blocks[0].dictionary_logits.detach() for run in (free, held))
    top = of_free.amax(-2, keepdim=True)
    assert (top - of_free).max() > 8
    assert torch.equal(of_held, of_free.maximum(top - 2.0))


def test_flash_by_maps_alone(tmp_path: Path) -> None:
    """What a state holds is its first one, of the magnitudes that maps carry it through, and
    answers follow from where it is.
    """
    sizes = replace(SMALL.sizes, drive=0.0, loss=1e-2, layers=1)
    run = Run(replace(SMALL, model="flash", sizes=sizes), tmp_path, "cpu")
    vectors = run.model.embedding.weight[:3].clone()
    train([run])
    assert torch.equal(run.model.embedding.weight[:3], vectors)
    block = run.model.blocks[0]
    assert block.mixer.dictionary_logits.grad.any()
    tokens = torch.randint(0, 3, (20, 7))
    with torch.no_grad():
        out, cache = block(vectors[tokens], output_cache=True)
        token = block.mixer._project(block.token_norm(vectors).unsqueeze(1), None)
    state = cache.state[:, 0]  # [20, N, 2]
    assert ((state != 0).sum((1, 2)) == 1).all()
    assert not state[..., 1].any()  # without phases it stays real
    assert (state.sum((1, 2)) > (1 - 0.05) ** 7).all()
    # Each symbol has a map of its own, and no part in the read-out.
    assert token.selector.flatten(1).argmax(-1).tolist() == [0, 1, 2]
    for each in (token.readout[..., 0], token.gate):
        torch.testing.assert_close(each, torch.ones_like(each), rtol=0, atol=1e-3)
    places = state[..., 0].argmax(-1)
    alike = places[:, None] == places
    assert alike.sum() > 20
    apart = (out[:, None, -1] - out[:, -1]).abs().amax(-1)
    assert apart[alike].max() < 0.05


def test_flash_by_maps_alone_is_one_layer() -> None:
    sizes = replace(SMALL.sizes, drive=0.0, layers=2)
    with pytest.raises(ValueError, match=r"flash without drive is one layer, not sizes\.layers=2"):
        replace(SMALL, model="flash", sizes=sizes).check()


def test_without_drive_it_stays_so(tmp_path: Path) -> None:
    run = Run(replace(SMALL, sizes=replace(SMALL.sizes, drive=0.0)), tmp_path, "cpu")
    train([run])
    assert not run.model.blocks[0].drive_proj.weight.any()
    assert run.model.blocks[0].readout.weight.grad.any()


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_the_small_preset_solves_parity(tmp_path: Path) -> None:
    run = Run(settings_of("small", "parity", "pdssm", 0), tmp_path, "cpu")
    train([run])
    assert run.log[-1].accuracy > 0.9995
