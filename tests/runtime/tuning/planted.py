"""A template whose configs misbehave, each in one way, on a backend of its own.

Importing this module in a process of the tuner plants it there; problems and jobs of the classes
below have it imported. In the tests' own process, ``plant`` does.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any

import torch

from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime import key
from pdssm_compiler.runtime.backends import BACKENDS, Kernel, Sizes
from pdssm_compiler.runtime.backends.pytorch import Pytorch, PytorchKernel
from pdssm_compiler.runtime.tuning.precompile import Job
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens, TorchTokensConfig


class Does(IntEnum):
    """What a config does besides what it should, or instead."""

    right = 0
    wrong_values = 1
    leaves_out = 2
    wrong_at_full_size = 3
    writes_beside = 4
    writes_inputs = 5
    aborts = 6
    hangs = 7
    takes_too_much = 8
    breaks_the_device = 9
    does_not_compile = 10
    compiles_for_ever = 11
    ends_its_compiler = 12
    right_after_all = 13
    loses_a_late_carry = 14
    begins_again_late = 15
    looks_back_once = 16
    writes_inputs_late = 17
    leaves_out_a_middle_row = 18
    wrong_in_a_middle_row = 19


# The status of each one's row in a race.
STATUS = {
    Does.right: "ok",
    Does.wrong_values: "wrong",
    Does.writes_beside: "wrong",
    Does.aborts: "crash",
    Does.hangs: "hang",
    Does.takes_too_much: "out-of-resource",
    Does.breaks_the_device: "crash",
    Does.does_not_compile: "compile-error",
    Does.compiles_for_ever: "timeout",
    Does.ends_its_compiler: "compile-error",
    Does.right_after_all: "ok",
}


# What the gate alone is shown, without a race.
IN_PROCESS = (
    Does.leaves_out,
    Does.wrong_at_full_size,
    Does.writes_inputs,
    Does.loses_a_late_carry,
    Does.begins_again_late,
    Does.looks_back_once,
    Does.writes_inputs_late,
    Does.leaves_out_a_middle_row,
    Does.wrong_in_a_middle_row,
)
# The token from which a long sequence is wrong.
LATE = 2900
# Tokens of a chunk that looks at the one before it and no further.
CHUNK = 64


@dataclass(frozen=True)
class PlantedConfig(Config):
    """One of :class:`Does`."""

    does: int = 0


class Planted(Template[PlantedConfig]):
    """The template."""

    name = "planted"
    backend = "planted"  # type: ignore[assignment]
    kinds = ("cpu", "cuda")
    config_type = PlantedConfig

    def space(self, program: Program, target: Target) -> Iterator[PlantedConfig]:
        for does in Does:
            if does not in IN_PROCESS:
                yield PlantedConfig(int(does))

    def heuristic(self, program: Program, target: Target, problem: Problem) -> PlantedConfig:
        return PlantedConfig()

    def feasible(self, program: Program, target: Target, config: PlantedConfig) -> str | None:
        return None

    def lower(self, program: Program, target: Target, config: PlantedConfig) -> KernelSource:
        made = TorchTokens().lower(program, target, TorchTokensConfig())
        return replace(made, backend="planted", template=self.name, config=asdict(config))


class PlantedBackend(Pytorch):
    """The backend."""

    name = "planted"

    def compile(self, source: KernelSource, alignment: int) -> dict[str, bytes]:
        match source.config["does"]:
            case Does.does_not_compile:
                raise SyntaxError("no kernel can be made of this")
            case Does.compiles_for_ever:
                time.sleep(1000)
            case Does.ends_its_compiler:
                os._exit(7)
        return super().compile(source, alignment)

    def load(self, source: KernelSource, alignment: int, files: dict[str, bytes]) -> Kernel:
        return PlantedKernel(source)


_broken = False


class PlantedKernel(Kernel):
    """The right kernel, and what its config does besides or instead."""

    def __init__(self, source: KernelSource) -> None:
        plain = replace(source, config=asdict(TorchTokensConfig()))
        self._right = PytorchKernel(plain)
        self._does = Does(source.config["does"])
        self._inputs = len(source.signature.inputs)
        self._arguments = (*source.signature.inputs, *source.signature.outputs)

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        global _broken
        if _broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        written = tensors[self._inputs]
        match self._does:
            case Does.leaves_out:
                return
            case Does.aborts:
                os.abort()
            case Does.hangs if written.is_cuda:
                torch.cuda._sleep(1 << 50)  # in a kernel, and then whoever waits for it
                torch.cuda.synchronize(written.device)
            case Does.hangs:
                time.sleep(1000)
            case Does.takes_too_much if written.is_cuda:
                torch.empty(1 << 50, device=written.device)
            case Does.takes_too_much:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")
            case Does.breaks_the_device if written.is_cuda:
                # The device's own check fails, and whatever asks the device after that.
                beyond = torch.full((1,), 1 << 20, device=written.device)
                torch.ones(1, device=written.device).index_select(0, beyond)
                torch.cuda.synchronize(written.device)
            case Does.breaks_the_device:
                _broken = True
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self._right.launch(tensors, error, sizes)
        match self._does:
            case Does.wrong_values:
                written[-1, -1, -1, -1] += 0.25
            case Does.wrong_at_full_size if sizes.length > 40:
                written[0, -1, 0, 0] += 0.25
            case Does.loses_a_late_carry if sizes.length > LATE:
                # As if nothing had come before, which is forgotten after some tokens.
                late = self._tokens(tensors, LATE, sizes.length)
                self._right.launch(late, error, sizes._replace(length=sizes.length - LATE))
            case Does.begins_again_late if sizes.length > LATE:
                # As an index does that is kept in too few bits.
                written[:, LATE:] = written[:, : sizes.length - LATE].clone()
            case Does.looks_back_once if sizes.length > 40:
                # As if the chunk before the one before had left nothing.
                for start in range(CHUNK, sizes.length, CHUNK):
                    end = min(start + CHUNK, sizes.length)
                    part = self._tokens(tensors, start - CHUNK, end)
                    found = torch.empty_like(part[self._inputs])
                    part[self._inputs] = found
                    self._right.launch(part, error, sizes._replace(length=end - start + CHUNK))
                    written[:, start:end] = found[:, CHUNK:]
            case Does.writes_inputs_late if sizes.length > 40:
                tensors[0][0, -1, 0, 0] += 0.25
            case Does.leaves_out_a_middle_row if sizes.length > 40:
                written[sizes.batch // 2, :, sizes.heads // 2] = float("nan")
            case Does.wrong_in_a_middle_row if sizes.length > 40:
                written[sizes.batch // 2, 7, sizes.heads // 2] += 0.25
            case Does.writes_beside:
                end = written.storage_offset() + written.numel()
                written.as_strided((1,), (1,), end).fill_(1.0)
            case Does.writes_inputs:
                tensors[0][0, 0, 0, 0] += 0.25

    def _tokens(self, tensors: Sequence[torch.Tensor], start: int, end: int) -> list[torch.Tensor]:
        """The arguments of some tokens."""
        return [
            tensor[:, start:end] if "L" in argument.leading else tensor
            for argument, tensor in zip(self._arguments, tensors, strict=True)
        ]


class PlantedJob(Job):
    """A job whose process has the template."""


class PlantedProblem(TuningProblem):
    """A problem whose process has the template."""

    def job(self, config: str) -> Job:
        return PlantedJob(self.text, config, self.target, self.alignment)


def plant(put: Callable[[Any, str, Any], None]) -> None:
    """Add the template and the backend where they are looked up."""
    put(TEMPLATES, "planted", Planted())
    put(BACKENDS, "planted", PlantedBackend())
    for packages in (key._COMPILERS, key._LOADERS):
        put(packages, "planted", ())


if getattr(sys.modules["__main__"].__spec__, "name", "") == "pdssm_compiler.runtime.tuning.child":
    plant(lambda known, name, value: known.__setitem__(name, value))
