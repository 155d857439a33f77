"""Random inputs: the state of a long sequence stays finite and does not forget how it began."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

import pdssm_compiler
from pdssm_compiler import ScanSpec, nn
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.plan import Plan, caller_inputs, program_of
from pdssm_compiler.runtime.tuning import memory
from pdssm_compiler.runtime.tuning.inputs import random_tensors
from pdssm_compiler.runtime.tuning.memory import factors
from pdssm_compiler.runtime.tuning.oracle import probes

CPU = torch.device("cpu")
SIZES = Sizes(1, 3000, 2)

# As users write them; the first is FlashPDSSM's.
DIAGONALS: dict[str, Callable[..., Any]] = {
    "decay": lambda delta, bias, rate, phase: torch.polar(
        torch.exp(-functional.softplus(delta + bias) * rate), phase
    ),
    "softplus": lambda delta, phase: torch.polar(torch.exp(-functional.softplus(delta)), phase),
    "exp": lambda log, phase: torch.polar(torch.exp(log), phase),
    "rational": lambda a: 1 / (1 + functional.softplus(a) ** 2),
    "sigmoid": lambda a: torch.sigmoid(a),
    "tanh": lambda a: torch.tanh(a),
    "larger than one": lambda a, b: 1 + a * b,
    "product": lambda a, b: a * b,
}


def _fused(name: str) -> Program:
    spec = ScanSpec(4, 3, map_class="permutation")
    # Where plain PyTorch is generated, so that nothing has to be compiled.
    return pdssm_compiler.compile(spec, "mps", diagonal=DIAGONALS[name]).program


def _final_states(program: Program, first: float) -> torch.Tensor:
    tensors = random_tensors(program, SIZES, CPU, seed=3)
    names = [input_.name for input_ in caller_inputs(program)]
    tensors[names.index("drive")][:, 0] += first
    outputs = Plan(program, CPU, config="torch-chunks").run(tensors, trusted=True)
    return outputs[0][:, -1]


@pytest.mark.parametrize("name", [*DIAGONALS, "plain", "row", "none"])
def test_what_is_given_first_shows_last(name: str) -> None:
    """By more than a gate allows: see :mod:`pdssm_compiler.runtime.tuning.oracle`."""
    plain = {
        "plain": PdScan(4, 3, map_class="permutation"),
        "row": PdScan(4, None, map_source="token", orientation="row", map_class="permutation"),
        "none": PdScan(4, None, map_source="none"),
    }
    program = pd_scan(plain[name]) if name in plain else _fused(name)
    assert factors(program)
    states = _final_states(program, 0.0)
    assert bool(states.isfinite().all())
    assert float(states.abs().max()) < 3e3
    far = _final_states(program, 1e5) - states
    assert float(far.abs().max()) > 1e-2


def test_other_numbers_are_drawn_as_ever() -> None:
    """The drive, a read-out's, and all of a sequence that is too short to be forgotten."""
    program = pd_scan(PdScan(5, 3))
    drawn = dict(
        zip(
            [i.name for i in caller_inputs(program)],
            random_tensors(program, SIZES, CPU, seed=3),
            strict=True,
        )
    )
    assert 0.4 < float(drawn["drive"].abs().mean()) < 0.6
    decay = -drawn["diagonal"].abs().double().log()
    assert float(decay.min()) >= -1e-6
    assert 4 / SIZES.length < float(decay.mean()) < 16 / SIZES.length
    short = random_tensors(program, Sizes(64, 1, 3), CPU, seed=3)
    assert 0.4 < float(short[0].abs().mean()) < 0.6


def test_a_layer_of_the_package_is_held_to_a_reference_that_is_finite() -> None:
    """Rates and steps that are drawn evenly would have its state grow without an end."""
    layer = nn.FlashPDSSM(8, state_size=4, heads=2, dictionary_size=3)
    before = set(map(str, pdssm_compiler.called()))
    # Of a length that no other test calls with.
    layer(torch.randn(1, 4097, 8))[0].sum().backward()
    found = [each for each in pdssm_compiler.called() if str(each) not in before]
    assert len(found) >= 2
    for each in found:
        program = program_of(each.program)
        sizes = Sizes(1, 4096, 2)
        _, timed = probes(program, random_tensors(program, sizes, CPU, seed=0), sizes)
        assert timed.fault(Plan(program, CPU, config="torch-chunks")) is None


def test_parts_of_a_tensor_are_drawn_like_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    program = pd_scan(PdScan(5, 3, map_class="permutation"))
    whole = random_tensors(program, SIZES, CPU, seed=3)
    monkeypatch.setattr(memory, "_TOGETHER", 1234)
    for one, other in zip(whole, random_tensors(program, SIZES, CPU, seed=3), strict=True):
        # The ends of parts may be rounded otherwise.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("storage", ["cb32", "c32"])
def test_pairs_in_few_bits_do_not_grow(storage: str) -> None:
    program = pd_scan(PdScan(4, 3, map_class="permutation")).stored("diagonal", storage)
    diagonal = random_tensors(program, SIZES, CPU, seed=3)[0]
    assert diagonal.shape == (*SIZES, 4, 2)
    size = diagonal.double().norm(dim=-1)
    assert float(size.log().mean()) < 0
    assert float(size.log().mean()) > -0.05
