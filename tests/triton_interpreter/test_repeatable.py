"""Results do not depend on which program runs first: no two add to one element."""

from typing import Any

import pytest
import torch
from triton.runtime import interpreter

from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from tests.kernels import tensors_of
from tests.strategies import Sizes, arrays_for
from tests.triton_interpreter.interpreted import CHUNKS, CONFIGS, LOOKBACK, Config, Interpreted

SIZES = Sizes(2, 9, 2)


def from_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the first axis run from the last to the first."""
    builder: Any = interpreter.interpreter_builder
    real = builder.set_grid_idx

    def turned(x: int, y: int, z: int) -> None:
        real(builder.grid_dim[0] - 1 - x, y, z)

    monkeypatch.setattr(builder, "set_grid_idx", turned)


@pytest.mark.parametrize("config", [CONFIGS[1], CHUNKS[1], LOOKBACK[1]], ids=str)
def test_sums_are_the_same_bits_in_any_order_of_programs(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = adjoint(pd_scan(PdScan(5, 3)), surrogate="active").program
    assert program.sum_outputs
    tensors = tensors_of(program, arrays_for(program, SIZES, 7), "dense")
    kernel = Interpreted(program, config)
    want = kernel.run(tensors, SIZES)
    from_the_last(monkeypatch)
    for mine, theirs in zip(kernel.run(tensors, SIZES), want, strict=True):
        assert not mine.isnan().any()
        assert torch.equal(mine, theirs)
