"""One step of training: on a GPU compiled, and captured in a graph that each step replays."""

from collections.abc import Callable

import torch
from torch import nn

from examples.state_tracking.tasks import Batch

Step = Callable[[Batch], torch.Tensor]
_WARM_UP = 3


def stepper(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Batch], torch.Tensor],
    example: Batch,
) -> Step:
    """What does a step on a batch, and gives its loss, which the next step overwrites.

    Args:
        model: the parameters' owner.
        optimizer: of them; its learning rates are tensors.
        loss_of: the loss of a batch.
        example: a batch, whose sizes all others have.
    """
    if example.tokens.device.type == "cuda":
        return _Captured(model, optimizer, loss_of, example)

    def step(batch: Batch) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


class _Captured:
    """Forward, backward and optimiser as one graph: a launch a step instead of hundreds."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[Batch], torch.Tensor],
        example: Batch,
    ) -> None:
        self._batch = Batch(*(part.clone() for part in example))
        # torch.compile takes no recurrent networks, which are one call of a library anyway.
        recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
        compiled = loss_of if recurrent else torch.compile(loss_of, fullgraph=True)
        _start_moments(model, optimizer)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                compiled(self._batch).backward()
                optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = compiled(self._batch)
            self._loss.backward()
            optimizer.step()

    def __call__(self, batch: Batch) -> torch.Tensor:
        for mine, given in zip(self._batch, batch, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._loss.detach()


def _start_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Have the optimiser make its moments now: made while capturing, each replay would clear them.
    Nothing changes: gradients and rates are 0, and steps are counted back.
    """
    if optimizer.state:
        return
    rates = [group["lr"].clone() for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"].zero_()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"].copy_(rate)
    for moments in optimizer.state.values():
        moments["step"].zero_()
