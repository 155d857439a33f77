"""cpu-matrices against the interpreter, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, parse_program
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import LEARNED, mixture
from pdssm_compiler.runtime.compile_service import choose, config_text
from pdssm_compiler.runtime.plan import Plan, caller_inputs
from pdssm_compiler.schedules.target import cpu_target
from pdssm_compiler.schedules.templates.cpu_matrices import CpuMatrices, CpuMatricesConfig
from tests.kernels import LAYOUTS, assert_runs, few
from tests.strategies import Sizes, arrays_for, seeds


@few(
    8,
    n=st.sampled_from((1, 5, 16, 17)),
    entries=st.sampled_from((1, 3, 20)),
    element=st.sampled_from(("f32", "f64")),
    orientation=st.sampled_from(("column", "row")),
    noisy=st.booleans(),
    config=st.builds(CpuMatricesConfig, st.sampled_from((1, 4)), st.sampled_from((1, 8, 16))),
    layout=st.sampled_from(LAYOUTS),
    seed=seeds(),
)
def test_agrees_with_the_interpreter(
    n: int,
    entries: int,
    element: str,
    orientation: str,
    noisy: bool,
    config: CpuMatricesConfig,
    layout: str,
    seed: int,
) -> None:
    program = mixture(n, entries, element, orientation, noisy)
    plan = Plan(program, torch.device("cpu"), config=config_text(config))
    for sizes in (Sizes(2, 3, 2), Sizes(1, 9, 1), Sizes(1, 0, 2)):
        arrays = arrays_for(program, sizes, seed)
        assert_runs(lambda _, given, of: plan.run(given), program, arrays, sizes, layout)


@few(
    4,
    n=st.sampled_from((1, 5, 16, 17)),
    entries=st.sampled_from((1, 3, 20)),
    element=st.sampled_from(("f32", "f64")),
    orientation=st.sampled_from(("column", "row")),
    noisy=st.booleans(),
    vector=st.sampled_from((1, 8, 16)),
    layout=st.sampled_from(LAYOUTS),
    seed=seeds(),
)
def test_gradients_agree_with_the_interpreter(
    n: int,
    entries: int,
    element: str,
    orientation: str,
    noisy: bool,
    vector: int,
    layout: str,
    seed: int,
) -> None:
    program = gradients(n, entries, element, orientation, noisy)
    plan = Plan(program, torch.device("cpu"), config=config_text(CpuMatricesConfig(1, vector)))
    for sizes in (Sizes(2, 3, 2), Sizes(1, 9, 1), Sizes(1, 0, 2)):
        arrays = with_temperatures(program, sizes, seed)
        assert_runs(lambda _, given, of: plan.run(given), program, arrays, sizes, layout)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_hundreds_of_matrices(backward: bool, noisy: bool) -> None:
    """More than a text may have as products within products: Python's parser ends at 200."""
    program = mixture(5, 300, "f32", "column", noisy)
    config = CpuMatricesConfig(1, 8)
    if backward:
        program = gradients(5, 300, "f32", "column", noisy)
    plan = Plan(program, torch.device("cpu"), config=config_text(config))
    sizes = Sizes(1, 3, 2)
    arrays = with_temperatures(program, sizes, 1)
    assert_runs(lambda _, given, of: plan.run(given), program, arrays, sizes, "dense")


@pytest.mark.parametrize("element", ["f32", "f64"])
def test_softmaxes_far_apart(element: str) -> None:
    """Entries that are thousands apart leave a finite gradient; a NaN stays."""
    program = gradients(4, 1, element, "column")
    plan = Plan(program, torch.device("cpu"), config=config_text(CpuMatricesConfig(1, 8)))
    dtype = {"f32": torch.float32, "f64": torch.float64}[element]
    table = torch.tensor([[3e4, -3e4, 0, 1]], dtype=dtype).mT.expand(1, 1, 4, 4).contiguous()
    table[..., 3] = float("nan")
    sides = torch.ones(1, 1, 1, 4, dtype=dtype.to_complex())
    sides[..., 1] = 2
    maps = torch.zeros(1, 1, 1, 4, dtype=torch.int32)
    named = {
        "dictionary_logits": table,
        "left_mixed_map": sides,
        "mixture_weights": torch.ones(1, 1, 1, 1, dtype=dtype),
        "right_mixed_map": sides,
        "saved_mixed_map": maps,
        "temperature": torch.full((1,), 0.01, dtype=dtype),
    }
    (_, of_table) = plan.run([named[input_.name] for input_ in caller_inputs(program)])
    assert (of_table[..., :3].abs() < 1e-30).all()
    assert of_table[..., 3].isnan().all()


def gradients(
    n: int, entries: int, element: str, orientation: str, noisy: bool = False
) -> Program:
    """What derives of a choice: gradients of weights and matrices."""
    program = mixture(n, entries, element, orientation, noisy)
    return adjoint(program, LEARNED, surrogate="dense").program


def with_temperatures(program: Program, sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
    """Random arrays, and temperatures that a softmax has."""
    arrays = arrays_for(program, sizes, seed)
    if "temperature" in arrays:
        arrays["temperature"] = abs(arrays["temperature"]) + 0.5
    return arrays


@pytest.mark.parametrize("backward", [False, True])
def test_threads_share_the_work(backward: bool) -> None:
    """Tokens where a map is chosen, lanes where its gradients are computed."""
    program = gradients(9, 2, "f32", "column") if backward else mixture(9, 2, "f32", "column")
    config = CpuMatricesConfig(1, 4) if backward else CpuMatricesConfig(2, 8)
    plan = Plan(program, torch.device("cpu"), config=config_text(config))
    sizes = Sizes(3, 7, 2)
    arrays = with_temperatures(program, sizes, 1)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert_runs(lambda _, given, of: plan.run(given), program, arrays, sizes, "dense")
    finally:
        torch.set_num_threads(before)


def test_ties_and_nan() -> None:
    program = mixture(3, 1, "f32", "column")
    plan = Plan(program, torch.device("cpu"), config=config_text(CpuMatricesConfig(1, 4)))
    table = torch.zeros(1, 1, 3, 3)
    table[0, 0, 1] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    (found,) = plan.run([table, torch.ones(1, 1, 1, 1)])
    assert found.tolist() == [[[[-1, 1, 0]]]]


def refused(program: Program, config: CpuMatricesConfig, features: str = "fma") -> str | None:
    target = replace(cpu_target(), arch="x86_64", features=features)
    return CpuMatrices().feasible(program, target, config)


def test_what_is_refused() -> None:
    program, config = mixture(8, 2, "f32", "row"), CpuMatricesConfig(4, 8)
    assert refused(program, config) is None
    assert "has no fused multiply-add" in refused(program, config, "sse4_2")
    assert refused(program, replace(config, vector=3)) == (
        "vector is a power of two up to 64, not 3"
    )
    assert "4 tokens of 257 matrices take too much of a stack" in refused(
        mixture(8, 257, "f32", "row"), config
    )
    backward = gradients(8, 2, "f32", "row")
    assert refused(backward, replace(config, tokens=1)) is None
    assert "one token after the other, not 4 together" in refused(backward, config)
    assert "8 lanes of 20000 rows take too much of a stack" in refused(
        gradients(20_000, 2, "f32", "row"), replace(config, tokens=1)
    )


@pytest.mark.parametrize("backward", [False, True])
def test_noise_by_another_orientation_is_plain_pytorch(backward: bool) -> None:
    """Four entries of a call of Philox are then no four of the axis that is chosen along."""
    text = mixture(8, 2, "f32", "row", noisy=True).text
    by_row = "%noise_draw, orientation='row'"
    assert by_row in text
    program = parse_program(text.replace(by_row, "%noise_draw, orientation='column'"))
    said = "does not take noise that is not of inputs, or by another orientation"
    if backward:
        program = adjoint(program, LEARNED, surrogate="dense").program
        said = "does not take a program that does more than choose"
    assert said in refused(program, CpuMatricesConfig(1, 8))
    assert choose(program, cpu_target()).template.name == "torch-matrices"


@pytest.mark.parametrize("noisy", [False, True])
def test_it_is_what_cpus_take(noisy: bool) -> None:
    for program in (mixture(8, 2, "f32", "row", noisy), gradients(8, 2, "f32", "row", noisy)):
        assert choose(program, cpu_target()).template.name == "cpu-matrices"
