"""Offsets beyond 2³¹ elements, of what is read and of what is written, by every template but
Triton's, which ``tests/triton_interpreter`` runs. ``tests/gpu`` has a scan of as many elements.
"""

from typing import Any

import pytest
import torch

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
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
from tests.far import APART, far, far_outputs
from tests.kernels import assert_runs, under_stress
from tests.schedules import cuda_on_cpu
from tests.strategies import Sizes, arrays_for

SIZES = Sizes(2, 9, 2)
FORWARD = pd_scan(PdScan(6, 3, initial_state=True, final_state=True))
BACKWARD = adjoint(FORWARD, surrogate="active").program
# The backward each time: it reads and writes most.
PROGRAMS = pytest.mark.parametrize(
    "program", [*under_stress(FORWARD), BACKWARD], ids=["forward", "backward"]
)
CUDA: tuple[tuple[Template[Any], Config], ...] = (
    (CudaRows(), CudaRowsConfig(4, 3)),
    (CudaChunks(), CudaChunksConfig(2, 2, 2)),
    (CudaStep(), CudaStepConfig(2)),
)


@PROGRAMS
@pytest.mark.parametrize(
    "config", [CpuRowsConfig(4), TorchTokensConfig(), TorchChunksConfig(3)], ids=str
)
def test_inputs_on_a_cpu(config: Config, program: Program) -> None:
    plan = Plan(program, torch.device("cpu"), 0, None, config_text(config))

    def outputs(_: Program, tensors: list[torch.Tensor], __: Sizes) -> list[torch.Tensor]:
        return plan.run([far(tensor) for tensor in tensors])

    assert_runs(outputs, program, arrays_for(program, SIZES, 3), SIZES, "dense")


@PROGRAMS
@pytest.mark.parametrize(
    ("template", "config"), CUDA, ids=lambda value: getattr(value, "name", "")
)
def test_inputs_and_outputs_of_cuda(
    template: Template[Any], config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = far_outputs(cuda_on_cpu, monkeypatch)

    def outputs(program: Program, tensors: list[torch.Tensor], sizes: Sizes) -> list[torch.Tensor]:
        given, here = [far(tensor) for tensor in tensors], LaunchSizes(*sizes)
        found, error = cuda_on_cpu.run(template, program, given, here, config=config)
        assert error == 0
        return found

    assert_runs(outputs, program, arrays_for(program, SIZES, 3), SIZES, "dense")
    assert {tensor.stride(0) for tensor in written} == {APART}
