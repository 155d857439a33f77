"""Sets of values for whole tables."""

from dataclasses import replace

from examples.state_tracking.models import Sizes
from examples.state_tracking.settings import Settings
from examples.state_tracking.tasks import task_of

# The published tables' rows, and how many layers and maps they were made with.
TABLE2 = ("cycle-navigation", "even-pairs", "modular-arithmetic", "parity")
TABLE3 = ("A5-2", "A5-6", "A5-8", "A5-12", "S5-4", "S5-8", "S5-32")
_TABLE3_SIZES = Sizes(dictionary=32, layers=1)
# Minutes on a CPU; solves parity. No drive, phases too small to learn and magnitudes next to 1
# leave a model nothing but an automaton. The rate stays, so that magnitudes go on towards 1 when
# hardly an answer is wrong.
_SMALL = Settings(
    "",
    "",
    sizes=Sizes(32, 16, 4, 1, 0.05, turns=1e-12, loss=1e-2, drive=0.0),
    steps=3000,
    batch=64,
    longest=80,
    grow_below=0.3,
    test_sequences=256,
    rate=2e-2,
    last_rate=2e-2,
    every=100,
)
# Automata, also of dozens of states: a map of its own for each symbol, learned by steps in
# proportion to gradients, so that maps of which nothing is wrong stay, and never so firmly that
# they cannot change, from sequences that begin with two tokens at most and grow by little, once
# hardly an answer is wrong, or after a while: two words that share a state which should not may be
# told apart by longer ones alone. Magnitudes are 1 in float32, so that nothing is lost on the way;
# answers follow from states alone.
_STEADY = Settings(
    "",
    "",
    sizes=Sizes(
        dictionary=32,
        layers=1,
        dropout=0.0,
        margin=0.5,
        apart=8.0,
        turns=1e-12,
        loss=1e-12,
        drive=0.0,
        skip=0.0,
    ),
    batch=512,
    shortest=1,
    grow_below=0.03,
    grow_by=1.2,
    grow_after=20,
    rate=5e-3,
    last_rate=5e-3,
    maps_epsilon=1e-2,
    maps_margin=3.0,
    warm_up=0.0,
    weight_decay=0.0,
    test_sequences=2048,
    every=100,
)
# S5 has 120 elements, and a new one is found among states to spare.
_STATES_OF_S5 = 256
# Of each symbol: a map that fewer tokens use has smaller gradients.
_MAPS_RATE = 30.0
PRESETS = ("published", "steady", "small")


def settings_of(preset: str, task: str, model: str, seed: int) -> Settings:
    """The settings of a run.

    Args:
        preset: one of :data:`PRESETS`.
        task: see :class:`Settings`.
        model: likewise.
        seed: likewise.

    Raises:
        ValueError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    if preset == "small":
        return replace(_SMALL, task=task, model=model, seed=seed)
    if preset == "published":
        is_word_problem = task[:3] in ("A5-", "S5-")
        return Settings(task, model, seed, _TABLE3_SIZES if is_word_problem else Sizes())
    sizes, symbols = _STEADY.sizes, task_of(task).symbols
    states = _STATES_OF_S5 if task[:2] == "S5" else sizes.state
    maps = max(sizes.dictionary, 1 + symbols)  # one for padding
    return replace(
        _STEADY,
        task=task,
        model=model,
        seed=seed,
        sizes=replace(sizes, state=states, dictionary=maps),
        maps_rate=_MAPS_RATE * symbols,
    )
