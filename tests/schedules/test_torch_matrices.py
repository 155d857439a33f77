"""torch-matrices against the interpreter."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, parse_program
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import LEARNED, PdScan, mixture, pd_scan
from pdssm_compiler.runtime.compile_service import config_text, lower
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import cpu_target
from pdssm_compiler.schedules.templates.torch_matrices import TorchMatricesConfig
from tests.kernels import LAYOUTS, assert_runs
from tests.strategies import Sizes, arrays_for


def programs(
    n: int, entries: int, element: str, orientation: str, noisy: bool = False
) -> tuple[Program, Program]:
    """The choice and its adjoint."""
    program = mixture(n, entries, element, orientation, noisy)
    return program, adjoint(program, LEARNED, surrogate="dense").program


@settings(max_examples=25)
@given(
    st.sampled_from((1, 2, 5)),
    st.sampled_from((1, 3)),
    st.sampled_from(("f32", "f64")),
    st.sampled_from(("column", "row")),
    st.booleans(),
    st.sampled_from((1, 60)),
    st.sampled_from(LAYOUTS),
    st.sampled_from((Sizes(2, 3, 2), Sizes(1, 0, 1), Sizes(1, 7, 1))),
)
def test_agrees_with_the_interpreter(
    n: int,
    entries: int,
    element: str,
    orientation: str,
    noisy: bool,
    numbers: int,
    layout: str,
    sizes: Sizes,
) -> None:
    config = f'torch-matrices {{"numbers": {numbers}}}'

    def run(program: Program, tensors: list[torch.Tensor], _: Sizes) -> list[torch.Tensor]:
        return Plan(program, torch.device("cpu"), config=config).run(tensors)

    for program in programs(n, entries, element, orientation, noisy):
        arrays = arrays_for(program, sizes, 5)
        if "temperature" in arrays:
            arrays["temperature"] = abs(arrays["temperature"]) + 0.5
        assert_runs(run, program, arrays, sizes, layout)


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("element", ["f32", "f64"])
def test_ties_go_to_the_lowest_and_nan_to_none(orientation: str, element: str) -> None:
    dtype = {"f32": torch.float32, "f64": torch.float64}[element]
    table = torch.zeros(1, 1, 5, 5, dtype=dtype)
    table[0, 0, 1:, 1] = 2.0
    table[0, 0, 4, 2] = float("nan")
    table[0, 0, :, 3] = -float("inf")
    table[0, 0, 2:, 4] = float("inf")
    table = table if orientation == "column" else table.mT.contiguous()
    program, _ = programs(5, 1, element, orientation)
    config = config_text(TorchMatricesConfig(60))
    plan = Plan(program, torch.device("cpu"), config=config)
    (found,) = plan.run([table, torch.ones(1, 1, 1, 1, dtype=dtype)])
    assert found.tolist() == [[[[0, 1, -1, 0, 2]]]]


def test_the_header_is_the_program() -> None:
    for program in programs(4, 3, "f32", "row"):
        source, _ = lower(program, cpu_target(), TorchMatricesConfig(100))
        lines = [line for line in source.text.splitlines() if line.startswith("# ")]
        text = "\n".join(line.removeprefix("# ") for line in lines[1:])
        assert parse_program(text[: text.index("}") + 1]) == source.program


@pytest.mark.parametrize(
    ("program", "name", "message"),
    [
        (mixture(4, 2, "f32", "row"), "torch-tokens", "is for scans, not for programs over matr"),
        (pd_scan(PdScan(4, 2)), "torch-matrices", "is for programs over matrices, not for scans"),
    ],
)
def test_the_wrong_kind_of_program_is_refused(program: Program, name: str, message: Any) -> None:
    assert name in TEMPLATES
    with pytest.raises(NoTemplateError, match=message):
        lower(program, cpu_target(), name)
