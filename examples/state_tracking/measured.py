"""What a run's log has."""

from typing import NamedTuple


class Measured(NamedTuple):
    """A line of a run's log.

    Attributes:
        step: steps done.
        loss: the mean since the line before.
        accuracy: on test lengths.
        seconds: of training until then, with the runs beside it, measurements apart.
    """

    step: int
    loss: float
    accuracy: float
    seconds: float
