"""A new op needs no template changed: one that the package does not have, by Triton's."""

import pytest

from tests import new_op
from tests.kernels import assert_runs
from tests.strategies import Sizes, arrays_for
from tests.triton_interpreter.interpreted import CHUNKS, CONFIGS, LOOKBACK, Config, Interpreted

SIZES = Sizes(2, 5, 1)


@pytest.mark.parametrize("config", [CONFIGS[1], CHUNKS[1], LOOKBACK[1]], ids=str)
def test_values_and_gradients(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    new_op.plant(monkeypatch.setitem)
    for program in new_op.programs():
        kernel = Interpreted(program, config)
        arrays = arrays_for(program, SIZES, 3)
        assert_runs(lambda _, t, s, k=kernel: k.run(t, s), program, arrays, SIZES, "dense")
