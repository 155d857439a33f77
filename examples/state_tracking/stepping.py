"""One step of training: on a GPU compiled, and captured in a graph that each step replays."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from examples.state_tracking.batches import Batches
from examples.state_tracking.models import Tracker
from examples.state_tracking.tasks import Batch

# What takes the seed of what the model draws.
Step = Callable[[int], None]
Loss = Callable[[Batch, Iterable[Callable[..., torch.Tensor]]], torch.Tensor]
_WARM_UP = 3
# Symbols of a table, in steps.
_TABLES = (16, 64, 256, 1024)


@dataclass(frozen=True)
class Work:
    """What a step is made of.

    Attributes:
        model: the parameters' owner.
        optimizer: of them; its learning rates are tensors.
        loss_of: the loss of a batch, by these blocks.
        batches: drawn in each step, as they have been told last.
        width: of them.
        total: a step adds its loss to it.
    """

    model: Tracker
    optimizer: torch.optim.Optimizer
    loss_of: Loss
    batches: Batches
    width: int
    total: torch.Tensor

    def loss(self, blocks: Iterable[Callable[..., torch.Tensor]]) -> torch.Tensor:
        """That of the next batch."""
        return self.loss_of(self.batches.next(self.width), blocks)


def stepper(work: Work, stream: torch.cuda.Stream | None) -> Step:
    """What does a step.

    Args:
        work: see there.
        stream: on a GPU what steps are captured on: of this model alone.
    """
    if stream is not None:
        return _Captured(work, stream)

    def step(seed: int) -> None:
        torch.manual_seed(seed)
        work.optimizer.zero_grad(set_to_none=True)
        loss = work.loss(work.model.blocks)
        loss.backward()
        work.optimizer.step()
        work.total.add_(loss.detach())

    return step


class _Captured:
    """Draws, forward, backward and optimiser as one graph: a launch a step instead of hundreds.

    Blocks are compiled one by one: those of one kind and sizes, of any run, are compiled once.

    Graphs that are captured on one stream share the memory that torch gives cuBLAS for it
    (pytorch/pytorch#193402), so those of runs beside one another would overwrite each other's
    sums: each run captures on a stream of its own.
    """

    def __init__(self, work: Work, stream: torch.cuda.Stream) -> None:
        model, optimizer, device = work.model, work.optimizer, work.total.device
        blocks = [_compiled(block) for block in model.blocks]
        _start_moments(model, optimizer)
        # All graphs that draw from one generator read its seed from one place, and graphs of
        # several streams would read each other's.
        self._random = torch.Generator(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with _drawing_from(self._random):
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    work.loss(blocks).backward()
                    optimizer.zero_grad(set_to_none=True)
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            self._graph.register_generator_state(work.batches.random)
            with torch.cuda.graph(self._graph, stream=stream):
                loss = work.loss(blocks)
                loss.backward()
                optimizer.step()
                work.total.add_(loss.detach())

    def __call__(self, seed: int) -> None:
        self._random.manual_seed(seed)
        self._graph.replay()


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
    Nothing changes: gradients and rates are 0, steps are counted back, and parameters, which a
    hook of the step may hold to a margin, are put back.
    """
    if optimizer.state:
        return
    before = [parameter.detach().clone() for parameter in model.parameters()]
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
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
