"""Packed programs for any template's runner: random resets, and a sequence that is no number."""

from collections.abc import Callable

import torch

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from tests.kernels import tensors_of
from tests.strategies import Sizes, arrays_for

# State size, dictionary, map source, orientation, and the way of time.
SCANS = [
    (5, 3, "dictionary", "column", False),
    (3, None, "token", "row", True),
    (33, 2, "dictionary", "row", False),
    (4, None, "none", "column", True),
]

Run = Callable[[Program, list[torch.Tensor], Sizes], list[torch.Tensor]]


def packed_programs(scan: tuple) -> list[Program]:
    """The scan and its adjoint."""
    n, k, source, orientation, reverse = scan
    spec = PdScan(
        n, k, "c64", source, orientation=orientation, reverse=reverse, packed=True
    )  # fmt: skip
    program = pd_scan(spec)
    return [program, adjoint(program, surrogate="active").program]


def assert_stays(run: Run, program: Program, tokens: int) -> None:
    """Of three sequences the middle one is no number: the others are as before, bit by bit."""
    sizes, first, last = Sizes(1, tokens, 2), tokens // 4, 2 * tokens // 3
    arrays = arrays_for(program, sizes, 3)
    is_adjoint = "grad_states" in arrays
    # An adjoint reads the flags of its program, which runs the other way.
    begin = 0 if (program.direction == "forward") != is_adjoint else -1
    arrays["follows"][:] = 1
    for sequence in (slice(0, first), slice(first, last), slice(last, tokens)):
        arrays["follows"][:, sequence][:, begin] = 0
    tensors = tensors_of(program, arrays, "dense")
    want = run(program, tensors, sizes)
    names = [input_.name for input_ in program.inputs if input_.inverse_of is None]
    poisoned = names.index("grad_states" if is_adjoint else "drive")
    tensors[poisoned][:, first:last] = float("nan")
    got = run(program, tensors, sizes)
    others = [*range(first), *range(last, tokens)]
    by_token = [pair for pair in zip(got, want, strict=True) if pair[0].shape[1] == tokens]
    assert by_token
    for mine, clean in by_token:
        assert torch.equal(mine[:, others], clean[:, others])
        assert mine[:, first:last].isnan().any()
