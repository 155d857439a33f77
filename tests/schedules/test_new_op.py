"""A new op needs no template changed: one that the package does not have, by every template but
Triton's, which ``tests/triton_interpreter`` runs.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.ops import OPS
from pdssm_compiler.runtime.backends import Sizes as LaunchSizes
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.templates.base import Config, Template
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunks, CudaChunksConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows, CudaRowsConfig
from pdssm_compiler.schedules.templates.cuda_step import CudaStep, CudaStepConfig
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunksConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokensConfig
from tests import new_op
from tests.kernels import assert_runs
from tests.schedules.cuda_on_cpu import run
from tests.strategies import Sizes, arrays_for

SIZES = Sizes(2, 7, 2)
HERE = (
    CpuRowsConfig(4),
    TorchTokensConfig(),
    TorchTokensConfig(split=True),
    TorchChunksConfig(3),
    TorchChunksConfig(2, split=True),
)
CUDA: tuple[tuple[Template[Any], Config], ...] = (
    (CudaRows(), CudaRowsConfig(4, 3)),
    (CudaChunks(), CudaChunksConfig(2, 2, 2)),
    (CudaStep(), CudaStepConfig(2)),
)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Program]]:
    """A forward and a backward program with the op, while it is there."""
    with monkeypatch.context() as patch:
        new_op.plant(patch.setitem)
        yield new_op.programs()
    assert new_op.NAME not in OPS


def test_both_programs_use_it(planted: list[Program]) -> None:
    assert all(f"{new_op.NAME} %" in program.text for program in planted)


@pytest.mark.parametrize("config", HERE, ids=str)
def test_on_a_cpu(config: Config, planted: list[Program]) -> None:
    for program in planted:
        plan = Plan(program, torch.device("cpu"), 0, None, config_text(config))
        arrays = arrays_for(program, SIZES, 3)
        assert_runs(lambda _, t, __, p=plan: p.run(t), program, arrays, SIZES, "dense")


@pytest.mark.parametrize(
    ("template", "config"), CUDA, ids=lambda value: getattr(value, "name", "")
)
def test_cuda_on_a_cpu(template: Template[Any], config: Config, planted: list[Program]) -> None:
    def outputs(program: Program, tensors: list[torch.Tensor], sizes: Sizes) -> list[torch.Tensor]:
        found, error = run(template, program, tensors, LaunchSizes(*sizes), config=config)
        assert error == 0
        return found

    for program in planted:
        assert_runs(outputs, program, arrays_for(program, SIZES, 3), SIZES, "dense")
