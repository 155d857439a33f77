"""``cuda-step`` on a GPU: one token at a time gives what the whole scan gives."""

import pytest
import torch

import pdssm_compiler
from pdssm_compiler import IndexRangeError, ScanSpec, check
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.reference import pd_scan as reference
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.kernels import Kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

LENGTH = 20


def test_one_token_takes_it(device: torch.device) -> None:
    program = pd_scan(PdScan(32, 4, initial_state=True, final_state=True))
    kernels = Kernels(program, target_of(device), 16, None)
    assert kernels.of(Sizes(64, 1, 32)).source.template == "cuda-step"


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("source", ["dictionary", "token", "none"])
@pytest.mark.parametrize("state_size", [1, 5, 32, 33, 128])
def test_steps_give_the_scan(
    state_size: int, source: str, orientation: str, device: torch.device
) -> None:
    random = torch.Generator(device).manual_seed(state_size)
    sizes = (3, LENGTH, 2, state_size)

    def number() -> torch.Tensor:
        return torch.randn(sizes, dtype=torch.complex64, device=device, generator=random)

    def integer(bound: int, *shape: int) -> torch.Tensor:
        return torch.randint(bound, shape, device=device, generator=random)

    diagonal, drive = number() / 2, number()
    state = number()[:, 0].contiguous()
    maps = {
        "dictionary": {"selection": integer(4, *sizes[:3])},
        "token": {"destination": integer(state_size, *sizes)},
        "none": {},
    }[source]
    fixed = {"dictionary": integer(state_size, 2, 4, state_size)} if source == "dictionary" else {}
    options = {**fixed, "orientation": orientation}
    wide = torch.complex128
    want, _ = reference(
        diagonal.to(wide), drive.to(wide), initial_state=state.to(wide), **maps, **options
    )
    for t in range(LENGTH):
        here = {name: tensor[:, t : t + 1] for name, tensor in maps.items()}
        now = (diagonal[:, t : t + 1], drive[:, t : t + 1])
        states, final = pdssm_compiler.pd_scan(
            *now, **here, **options, initial_state=state, output_final_state=True
        )
        assert torch.equal(states[:, 0], final)
        assert (final - want[:, t]).abs().max() <= 3e-5 * want.abs().max()
        state = final


@pytest.mark.parametrize("wrong", ["dictionary", "selection"])
def test_what_is_out_of_range_is_reported(wrong: str, device: torch.device) -> None:
    scan = pdssm_compiler.compile(ScanSpec(8, 3), target=device, config="cuda-step")
    numbers = torch.ones(2, 1, 2, 8, dtype=torch.complex64, device=device)
    maps = {
        "dictionary": torch.zeros(2, 3, 8, dtype=torch.int32, device=device),
        "selection": torch.zeros(2, 1, 2, dtype=torch.int32, device=device),
    }
    maps[wrong].view(-1)[0] = 8
    scan(numbers, numbers, **maps)
    torch.cuda.synchronize()
    with pytest.raises(IndexRangeError, match=wrong):
        check()
