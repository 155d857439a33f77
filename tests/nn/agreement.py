"""What the ranks of :mod:`tests.nn.ranks` must have found, on CPUs and on GPUs alike."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

from tests.nn import ranks
from tests.runtime.tuning.launch import launch, seen

ACTS = tuple(act.__name__ for act in ranks.ACTS)
# Some dozens of float64 operations, in another order.
CLOSE = 1e-9


def played(folder: Path, device: str, seconds: float) -> Path:
    """A folder where two ranks have played all acts, beside a checkpoint of one process."""
    for name in ranks.MODELS:
        model, optimizer, _ = ranks.trained(name)
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.save(state, checkpoint_id=folder / f"alone-{name}", no_dist=True)
    status, said = launch(",".join(ACTS), folder, device, seconds, "tests.nn.ranks")
    assert status == 0, said
    return folder


def assert_found(folder: Path, act: str, name: str) -> None:
    """Both ranks found what is so to be so, and numbers to be those of one process."""
    for rank in (0, 1):
        found: dict[str, Any] = seen(folder, act, rank)[name]
        assert found
        for what, value in found.items():
            if isinstance(value, bool):
                assert value, f"{what} on rank {rank}"
            elif what == "ratios":
                # Norms of small samples of one distribution: a factor that is not there, of 10
                # and more for phases and about 5 for drives, would be seen.
                assert value
                assert all(0.4 < ratio < 2.5 for ratio in value), (what, rank, value)
            else:
                limit = 0.05 if act == "mixed" else CLOSE
                assert value <= limit, f"{what} on rank {rank}: {value}"


def assert_loads_alone(folder: Path, name: str) -> None:
    """What two ranks saved is what one process has after the same step, and goes on as it does."""
    want, optimizer, _ = ranks.trained(name)
    model = ranks.made(name, seed=1)
    into = ranks.optimizer_of(model)
    ranks.restore(model, into, folder / f"checkpoint-{name}")
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, want.state_dict()[key], rtol=1e-7, atol=1e-9)
    for each, steps in ((model, into), (want, optimizer)):
        steps.zero_grad()
        ranks.loss_of(each(ranks.inputs(name))).backward()
        steps.step()
    for mine, right in zip(model.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-8)
