"""Fused scans by every template that no compiler is needed for, and by CUDA's run on a CPU."""

from typing import Any

import pytest
import torch

from pdssm_compiler import ScanSpec
from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import hoist, specialise
from pdssm_compiler.ir.passes.adjoint import Surrogate
from pdssm_compiler.nn import core
from pdssm_compiler.runtime.backends import Sizes as LaunchSizes
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.templates.base import Config, Template
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunks, CudaChunksConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows, CudaRowsConfig
from pdssm_compiler.schedules.templates.cuda_step import CudaStep, CudaStepConfig
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunksConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokensConfig
from tests.expressions import CASES, COMPLEX, PER_HEAD, Expressions, programs
from tests.kernels import LAYOUTS, assert_runs, under_stress
from tests.schedules.cuda import H100
from tests.schedules.cuda_on_cpu import run
from tests.strategies import Sizes, arrays_for

CUDA: tuple[tuple[Template[Any], Config], ...] = (
    (CudaRows(), CudaRowsConfig(4, 3)),
    (CudaRows(), CudaRowsConfig(4, 3, rows=4, helpers=3)),
    (CudaChunks(), CudaChunksConfig(2, 2, 3)),
    (CudaStep(), CudaStepConfig(2)),
    (CudaChunks(), CudaChunksConfig(2, 2, 3, early=1)),
)
TORCH = (
    TorchTokensConfig(),
    TorchTokensConfig(split=True),
    TorchChunksConfig(3),
    TorchChunksConfig(2, split=True),
)


# The core of nn.FlashPDSSM.
MIXER = Expressions(
    "mixer",
    core.diagonal,
    core.readout,
    dict.fromkeys(("bias", "rate", "skip"), PER_HEAD) | {"c": COMPLEX},
    ScanSpec(5, 3),
)


# One each time whose expressions are nobody's but these tests', all under stress.
FIRST = [CASES[2], *under_stress(*(case for case in CASES if case is not CASES[2]))]


@pytest.mark.parametrize("case", FIRST, ids=str)
@pytest.mark.parametrize(
    "number",
    [1, 3, 4, *under_stress(0, 2)],
    ids=["helped", "step", "early", "rows", "chunks"],
)
def test_cuda_on_a_cpu(case: Expressions, number: int) -> None:
    assert_cuda_runs(number, programs(case))


@pytest.mark.parametrize("logits", under_stress((0, "active"), (1, "active"), (0, "dense")))
def test_gradients_of_logits_by_cuda_on_a_cpu(logits: tuple[int, Surrogate]) -> None:
    """The replay and the adjoint of a layer's core."""
    number, surrogate = logits
    assert_cuda_runs(number, programs(MIXER, surrogate)[-2:])


def assert_cuda_runs(number: int, wanted: list[Program]) -> None:
    """All of the programs that the template can run, of which there are some; but for configs by
    which something is computed early, where nothing can be.
    """
    template, config = CUDA[number]

    def outputs(program: Program, tensors: list[torch.Tensor], sizes: Sizes) -> list[torch.Tensor]:
        found, error = run(template, program, tensors, LaunchSizes(*sizes), config=config)
        assert error == 0
        return found

    ran = 0
    for program in wanted:
        if template.feasible(specialise(program), H100, config) is None:
            ran += 1
            sizes = Sizes(2, 13, 2)
            assert_runs(outputs, program, arrays_for(program, sizes, 3), sizes, "dense")
    early = getattr(config, "early", 0) or getattr(config, "helpers", 0)
    assert ran or (early and not any(hoist(specialise(program)) for program in wanted))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_plain_pytorch(case: Expressions) -> None:
    for program in programs(case):
        for config, layout in zip(TORCH, LAYOUTS, strict=True):
            plan = Plan(program, torch.device("cpu"), 0, None, config_text(config))
            sizes = Sizes(2, 8, 2)
            arrays = arrays_for(program, sizes, 3)
            assert_runs(lambda _, t, __, p=plan: p.run(t), program, arrays, sizes, layout)
