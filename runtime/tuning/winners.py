"""Which of the measured candidates a call takes: a pure function of a log's rows."""

from collections.abc import Iterable, Sequence

from pdssm_compiler.runtime.tuning.rows import Row

# Two timings of one kernel seldom lie closer, on any device.
LEAST_NOISE = 0.01
# How often what a model may be off by stands between a candidate and the heuristic's choice.
_CAUTION = 2.0


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each candidate, of one problem: what is measured again replaces the rest.
    What is predicted replaces nothing.
    """
    measured = (row for row in rows if row.status != "predicted")
    return list({row.candidate: row for row in measured}.values())


def noise(rows: Iterable[Row]) -> float:
    """How far two timings of the same kernel lie apart, as a fraction of the time: what the
    heuristic's rows show, of which each was timed twice.
    """
    apart = [
        abs(row.ms - row.again_ms) / min(row.ms, row.again_ms)
        for row in rows
        if row.ms is not None and row.again_ms is not None
    ]
    return max([LEAST_NOISE, *apart])


def winner(rows: Sequence[Row]) -> Row | None:
    """The fastest candidate that is right, or a simpler one within the noise of its time; None if
    there is none.

    The simplest is what the heuristic says; then, the fewer fields a config changes of what its
    template's heuristic says, the simpler it is. Of two that change as many, the faster wins.

    Args:
        rows: of one problem, in the order they were measured.
    """
    right = [row for row in latest(rows) if row.ms is not None]
    if not right:
        return None
    fastest = min(row.ms for row in right if row.ms is not None)
    close = [row for row in right if row.ms <= fastest * (1 + noise(right))]  # type: ignore[operator]
    return min(close, key=lambda row: (not row.heuristic, row.changes, row.ms))


def expected_winner(rows: Sequence[Row]) -> Row | None:
    """Of predicted candidates, the one to take; None if there is none, or the heuristic's choice
    is not among them.

    What the heuristic says counts by its predicted time, every other candidate by its own and
    twice what the model may be off by: the fastest of hundreds of expected times is mostly one
    that is expected wrongly. Of two with the same time the one with fewer changes is taken.

    Args:
        rows: of one problem.
    """
    right = [row for row in rows if row.predicted_ms is not None]
    if not any(row.heuristic for row in right):
        return None

    def cautious(row: Row) -> float:
        assert row.predicted_ms is not None
        return row.predicted_ms * (1.0 if row.heuristic else 1.0 + _CAUTION * (row.spread or 0.0))

    return min(right, key=lambda row: (cautious(row), row.changes))


def winners(rows: Iterable[Row], predicted: bool = False) -> list[Row]:
    """The winner of each bucket of sizes, on each device and number of threads; of several sizes
    in a bucket, of those measured last.

    Args:
        rows: of one program, oldest first.
        predicted: whether they are of a file of predictions, which has nothing that was measured,
            as a log has nothing predicted.
    """
    races: dict[object, list[Row]] = {}
    for row in rows:
        # The sizes measured last stand last.
        races[row.race] = [*races.pop(row.race, []), row]
    choice = expected_winner if predicted else winner
    found = filter(None, map(choice, races.values()))
    return list({(row.bucket, row.place): row for row in found}.values())
