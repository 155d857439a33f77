"""``triton-lookback``: a program reads what others left only after it was told, and all of it."""

import pytest

from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from tests.kernels import tensors_of
from tests.strategies import Sizes, arrays_for
from tests.triton_interpreter.interpreted import LOOKBACK, Config, Interpreted
from tests.triton_interpreter.order import Watch

SIZES = Sizes(2, 17, 1)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("config", LOOKBACK, ids=str)
def test_nothing_is_read_too_early(
    config: Config, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = pd_scan(PdScan(3, 2, initial_state=True, final_state=True))
    if backward:
        program = adjoint(program, surrogate="active").program
    kernel = Interpreted(program, config)
    watch = Watch(kernel.module, monkeypatch)
    kernel.run(tensors_of(program, arrays_for(program, SIZES, 5), "dense"), SIZES)
    assert watch.told > 0


@pytest.mark.parametrize("forgotten", ["bit - 1)", "word - blocks"])
def test_a_wait_that_is_left_out_is_noticed(
    forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = pd_scan(PdScan(3, 2, initial_state=True))
    kernel = Interpreted(program, LOOKBACK[1], without=forgotten)
    Watch(kernel.module, monkeypatch)
    with pytest.raises(Exception, match="reads too early"):
        kernel.run(tensors_of(program, arrays_for(program, SIZES, 5), "dense"), SIZES)
