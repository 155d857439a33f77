"""Offsets beyond 2³¹ elements, of what is read and of what is written, by Triton's templates."""

import pytest
import torch

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from tests.far import APART, far, far_outputs
from tests.kernels import assert_runs, under_stress
from tests.strategies import Sizes, arrays_for
from tests.triton_interpreter import interpreted
from tests.triton_interpreter.interpreted import CHUNKS, CONFIGS, LOOKBACK, Config, Interpreted

SIZES = Sizes(2, 5, 1)
FORWARD = pd_scan(PdScan(3, 2, initial_state=True, final_state=True))
BACKWARD = adjoint(FORWARD, surrogate="active").program
# The backward each time: it reads and writes most.
PROGRAMS = pytest.mark.parametrize(
    "program", [*under_stress(FORWARD), BACKWARD], ids=["forward", "backward"]
)


@PROGRAMS
@pytest.mark.parametrize("config", [CONFIGS[1], CHUNKS[1], LOOKBACK[1]], ids=str)
def test_inputs_and_outputs(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = far_outputs(interpreted, monkeypatch)
    kernel = Interpreted(program, config)

    def outputs(_: Program, tensors: list[torch.Tensor], sizes: Sizes) -> list[torch.Tensor]:
        return kernel.run([far(tensor) for tensor in tensors], sizes)

    assert_runs(outputs, program, arrays_for(program, SIZES, 3), SIZES, "dense")
    assert {tensor.stride(0) for tensor in written} == {APART}
