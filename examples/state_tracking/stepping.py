"""One step of training: on a GPU compiled, and captured in a graph that each step replays."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from examples.state_tracking.models import Tracker
from examples.state_tracking.tasks import Batch

# A batch, and the seed of what the model draws.
Step = Callable[[Batch, int], torch.Tensor]
Loss = Callable[[Batch, Iterable[Callable[..., torch.Tensor]]], torch.Tensor]
_WARM_UP = 3
# Symbols of a table, in steps.
_TABLES = (16, 64, 256, 1024, 4096)


def stepper(
    model: Tracker,
    optimizer: torch.optim.Optimizer,
    loss_of: Loss,
    example: Batch,
    stream: torch.cuda.Stream | None,
) -> Step:
    """What does a step on a batch, and gives its loss, which the next step overwrites.

    Args:
        model: the parameters' owner.
        optimizer: of them; its learning rates are tensors.
        loss_of: the loss of a batch, by these blocks.
        example: a batch, whose sizes all others have.
        stream: on a GPU what steps are captured on: of this model alone.
    """
    if stream is not None:
        return _Captured(model, optimizer, loss_of, example, stream)

    def step(batch: Batch, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(batch, model.blocks)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


class _Captured:
    """Forward, backward and optimiser as one graph: a launch a step instead of hundreds.

    Blocks are compiled one by one: those of one kind and sizes, of any run, are compiled once.

    Graphs that are captured on one stream share the memory that torch gives cuBLAS for it
    (pytorch/pytorch#193402), so those of runs beside one another would overwrite each other's
    sums: each run captures on a stream of its own.
    """

    def __init__(
        self,
        model: Tracker,
        optimizer: torch.optim.Optimizer,
        loss_of: Loss,
        example: Batch,
        stream: torch.cuda.Stream,
    ) -> None:
        self._batch = Batch(*(part.clone() for part in example))
        device = example.tokens.device
        blocks = [_compiled(block) for block in model.blocks]
        _start_moments(model, optimizer)
        # All graphs that draw from one generator read its seed from one place, and graphs of
        # several streams would read each other's.
        self._random = torch.Generator(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with _drawing_from(self._random):
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    loss_of(self._batch, blocks).backward()
                    optimizer.zero_grad(set_to_none=True)
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._loss = loss_of(self._batch, blocks)
                self._loss.backward()
                optimizer.step()

    def __call__(self, batch: Batch, seed: int) -> torch.Tensor:
        for mine, given in zip(self._batch, batch, strict=True):
            mine.copy_(given)
        self._random.manual_seed(seed)
        self._graph.replay()
        return self._loss.detach()


def _compiled(block: nn.Module) -> Callable[..., torch.Tensor]:
    # torch.compile takes no recurrent networks, which are one call of a library anyway.
    if any(isinstance(module, nn.RNNBase) for module in block.modules()):
        return block
    # Each width by itself: sizes that vary are code that is slower. A table has runs of a few
    # sizes, each of a few widths.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    compiled: Callable[..., torch.Tensor] = torch.compile(block, fullgraph=True, dynamic=False)

    def padded(x: torch.Tensor, symbols: torch.Tensor | None = None) -> torch.Tensor:
        if symbols is None:
            return compiled(x)
        # Tables of few sizes, whatever the tasks: each is compiled for by itself.
        rows = next(size for size in _TABLES if size >= len(x))
        return compiled(functional.pad(x, (0, 0, 0, rows - len(x))), symbols=symbols)

    return padded


@contextmanager
def _drawing_from(random: torch.Generator) -> Iterator[None]:
    """Have what names no generator draw from this one."""
    default = torch.cuda.default_generators[random.device.index]
    before = default.graphsafe_get_state()
    default.graphsafe_set_state(random.graphsafe_get_state())
    try:
        yield
    finally:
        default.graphsafe_set_state(before)


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
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"].copy_(rate)
    for moments in optimizer.state.values():
        moments["step"].zero_()
