"""``pd_scan`` on a GPU: values and gradients against the plain loop in complex128."""

import pytest
import torch

import pdssm_compiler
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunksConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from pdssm_compiler.verification import default_specs, verify_spec
from tests.gpu.agreement import assert_agrees
from tests.kernels import tensors_of
from tests.public.scans import CASES, KINDS, Case, Draw, inputs
from tests.strategies import Sizes, arrays_for

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DRAWS = (
    Draw(3, 13, 2, "random", "disk", 1),
    Draw(1, 1, 1, "permutation", "one", 2),
    Draw(2, 0, 3, "identity", "zero", 3),
    Draw(5, 200, 3, "random", "nearly one", 4),
    Draw(2, 64, 1, "permutation", "rotation", 5),
)
WORST = Draw(4, 100, 2, "collide", "disk", 6)
# Few rows of many tokens: run in chunks, the last one shorter than the others.
LONG = Draw(1, 3001, 2, "random", "disk", 7)

# Rows over a whole block: by a team of warps, and by cuda-step where they fit no ring.
WIDE = (
    Case(257, "dictionary"),
    Case(1000, "token", "row"),
    Case(1024, "dictionary", map_class="permutation"),
    Case(4096, "dictionary"),
)
# Dictionaries of one map and of as many as eight bits number.
SIZES = (Case(32, "dictionary", dictionary_size=1), Case(40, "dictionary", dictionary_size=256))


def _draws(case: Case) -> list[Draw]:
    found = []
    for draw in (*DRAWS, WORST, LONG):
        legal = {
            "general": draw.maps,
            "permutation": "identity" if draw.maps == "identity" else "permutation",
            "identity": "identity",
        }[case.map_class]
        found.append(draw._replace(maps=legal))
    return found


@pytest.mark.parametrize("case", [*CASES, *KINDS], ids=str)
def test_values_and_gradients(case: Case, device: torch.device) -> None:
    for draw in _draws(case):
        assert_agrees(pdssm_compiler.pd_scan, case, draw, device)


@pytest.mark.parametrize("case", [*WIDE, *SIZES], ids=lambda c: f"{c}-K{c.dictionary_size}")
def test_wide_rows_and_dictionaries_of_any_size(case: Case, device: torch.device) -> None:
    maps = "permutation" if case.map_class == "permutation" else "random"
    for draw in (Draw(2, 1, 2, maps, "disk", 10), Draw(2, 21, 2, maps, "disk", 11)):
        assert_agrees(pdssm_compiler.pd_scan, case, draw, device)


@pytest.mark.parametrize(("state_size", "map_class"), [(24, "general"), (25, "permutation")])
def test_the_sizes_of_a_call_pick_the_template(
    state_size: int, map_class: str, device: torch.device
) -> None:
    """State sizes of this test alone, so that the kernels told are its own."""
    case = Case(state_size, "dictionary", map_class=map_class)
    maps = "random" if map_class == "general" else "permutation"
    told = []
    for sizes in ((1, 4099, 2), (1, 4098, 3), (4096, 5, 2), (4095, 6, 2)):
        tensors = inputs(case, Draw(*sizes, maps, "disk", 8))
        here = {name: tensor.to(device) for name, tensor in tensors.items()}
        here["drive"].requires_grad_()
        states, _ = pdssm_compiler.pd_scan(**here, **case.options)
        states.abs().sum().backward()
        kernels = [e for e in pdssm_compiler.explain() if f"N={state_size} " in e.program]
        told.append(sorted(kernel.template for kernel in kernels))
    few = ["cuda-chunks"] * 2
    many = ["cuda-rows"] * 2
    assert told == [few, few, few + many, few + many]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 1000])
@pytest.mark.parametrize("backward", [False, True])
def test_rows_and_chunks_agree(length: int, backward: bool, device: torch.device) -> None:
    """Both templates on the same tensors, chunks of 32 tokens."""
    program = pd_scan(PdScan(32, 4, initial_state=True, final_state=True))
    if backward:
        program = adjoint(program).program
    arrays = arrays_for(program, Sizes(2, length, 3), 9)
    tensors = [tensor.to(device) for tensor in tensors_of(program, arrays, "dense")]
    configs = (TritonRowsConfig(1, 1, 2), TritonChunksConfig(1, 1, 2, 10**6))
    rows, chunks = (
        Plan(program, device, 16, config=config_text(config)).run(tensors) for config in configs
    )
    for mine, theirs in zip(chunks, rows, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


HALF = pdssm_compiler.ScanSpec(16, 4, payload_dtype=torch.float16)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("spec", [*default_specs(), HALF], ids=str)
def test_specifications(spec: pdssm_compiler.ScanSpec, seed: int, device: torch.device) -> None:
    found = verify_spec(spec, device, seed, sizes=(3, 301, 5))
    assert found.worst <= 1, found


def test_strided_and_expanded_inputs(device: torch.device) -> None:
    case = Case(16, "dictionary")
    here = {n: t.to(device) for n, t in inputs(case, DRAWS[3]).items()}
    want, _ = pdssm_compiler.pd_scan(**here)
    turned = dict(here)
    turned["drive"] = here["drive"].permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    wide = torch.zeros(*here["diagonal"].shape[:3], 17, dtype=torch.complex64, device=device)
    wide[..., 1:] = here["diagonal"]
    # An odd offset of complex numbers: 8-byte and no 16-byte alignment.
    turned["diagonal"] = wide[..., 1:]
    got, _ = pdssm_compiler.pd_scan(**turned)
    assert torch.equal(got, want)
    one = torch.full((), 0.5j, dtype=torch.complex64, device=device)
    expanded = dict(here, diagonal=one.expand(here["diagonal"].shape))
    written = dict(here, diagonal=expanded["diagonal"].contiguous())
    assert torch.equal(pdssm_compiler.pd_scan(**expanded)[0], pdssm_compiler.pd_scan(**written)[0])


def test_offsets_beyond_two_to_the_31(device: torch.device) -> None:
    """Rows whose elements lie past 2^31: what the row alone gives, whose chunks are other ones."""
    batch, length, n = 64, 1_100_000, 32
    assert batch * length * n > 2**31
    random = torch.Generator(device).manual_seed(0)
    diagonal = torch.polar(
        torch.full((n,), 0.9, device=device), torch.rand(n, generator=random, device=device)
    ).expand(batch, length, 1, n)
    drive = torch.randn(
        batch, 1, 1, n, generator=random, device=device, dtype=torch.complex64
    ).expand(batch, length, 1, n)
    dictionary = torch.rand(1, 3, n, generator=random, device=device).argsort(-1).int()
    selection = torch.randint(
        3, (batch, length, 1), generator=random, device=device, dtype=torch.uint8
    )
    states, _ = pdssm_compiler.pd_scan(diagonal, drive, dictionary=dictionary, selection=selection)
    last = [tensor[-1:] for tensor in (diagonal, drive, selection)]
    alone, _ = pdssm_compiler.pd_scan(last[0], last[1], dictionary=dictionary, selection=last[2])
    # States of about 10 whose every term decays by 0.9 a token; a wrong address is off by as much.
    torch.testing.assert_close(states[-1:], alone, rtol=1e-5, atol=1e-4)
