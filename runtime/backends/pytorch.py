"""Plain PyTorch: generated source run as it is, or under ``torch.compile``.

The backend for devices that no other serves. Nothing is compiled ahead: the source is the kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pdssm_compiler.runtime.backends.base import Backend, Kernel, Sizes
from pdssm_compiler.runtime.backends.triton_gpu import module_of
from pdssm_compiler.schedules.source import KernelSource

_SOURCE = "source.py"


class Pytorch(Backend):
    """The backend; see the module's text."""

    name = "torch"

    def unavailable(self) -> str | None:
        return None

    def compile(self, source: KernelSource, alignment: int) -> dict[str, bytes]:
        return {_SOURCE: source.text.encode()}

    def needs(self, files: dict[str, bytes]) -> str:
        return "nothing"

    def load(self, source: KernelSource, alignment: int, files: dict[str, bytes]) -> Kernel:
        return PytorchKernel(source)


class PytorchKernel(Kernel):
    """Generated source as functions."""

    def __init__(self, source: KernelSource) -> None:
        self._source = source
        self._scan: Callable[..., None] = module_of(source).scan
        self._reports = bool(source.signature.checks)
        self._compiled: dict[Sizes, Callable[..., None]] | None = None
        if source.config.get("compiled"):
            self._compiled = {}

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        scan = self._scan if self._compiled is None else self._compiled_for(sizes)
        if not self._reports or error.device == tensors[0].device:
            scan(*tensors, error)
            return
        # The word stands on the host. Read and written in the stream's order, without waiting
        # where its memory is pinned, it keeps what an earlier call has left there. (Of two streams
        # that run the kernel at the same moment, one may overwrite the other's.)
        pinned = error.is_pinned()
        word = error.to(tensors[0].device, non_blocking=pinned)
        scan(*tensors, word)
        error.copy_(word, non_blocking=pinned)

    def _compiled_for(self, sizes: Sizes) -> Callable[..., None]:
        """The source under ``torch.compile``; a function of its own for each size, so that none
        uses up another's recompilations.
        """
        assert self._compiled is not None
        if sizes not in self._compiled:
            scan: Any = module_of(self._source).scan
            self._compiled[sizes] = torch.compile(scan, fullgraph=True, dynamic=False)
        return self._compiled[sizes]
