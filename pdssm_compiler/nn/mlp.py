"""Linear, GELU, Linear: :class:`Mlp`."""

from typing import Any, cast

from torch import nn


class Mlp(nn.Sequential):
    """The two-layer MLP of PD-SSM's diagonals and of its read-out (arXiv 2509.22284).

    Args:
        width: of the inputs.
        hidden: in between.
        out: of the results.
    """

    def __init__(self, width: int, hidden: int, out: int, **factory: Any) -> None:
        super().__init__(
            nn.Linear(width, hidden, **factory), nn.GELU(), nn.Linear(hidden, out, **factory)
        )

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the inputs."""
        return cast(nn.Linear, self[0])

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the results."""
        return cast(nn.Linear, self[2])

    def reset_parameters(self) -> None:
        """Start anew, as ``torch.nn.Linear`` does."""
        self.first.reset_parameters()
        self.last.reset_parameters()
