"""Expressions that nothing in the package mentions, and what they mean on tensors.

A case's functions are ordinary Python. Called with float64 tensors around the plain loop they are
what fused scans are held to.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from pdssm_compiler import InputSpec, ScanSpec, reference
from pdssm_compiler.fusion.trace import Traced, trace
from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import in_segments, segment_adjoint
from pdssm_compiler.ir.passes.adjoint import Surrogate
from pdssm_compiler.ir.programs import pd_scan
from pdssm_compiler.ir.types import is_number

Tensors = dict[str, torch.Tensor]
C64 = torch.complex64
PER_HEAD = InputSpec("HN")
COMPLEX = InputSpec(dtype=C64)


@dataclass(frozen=True)
class Expressions:
    """A fused scan: its functions and what their parameters are."""

    name: str
    diagonal: Callable[..., Any] | None = None
    readout: Callable[..., Any] | None = None
    inputs: dict[str, InputSpec] = field(default_factory=dict)
    spec: ScanSpec = field(default_factory=lambda: ScanSpec(5, 3))

    def __str__(self) -> str:
        return self.name

    @property
    def traced(self) -> Traced:
        """Its expressions, traced."""
        return trace(self.spec, self.diagonal, self.readout, self.inputs)

    def program(self, *, initial: bool = True, final: bool = True) -> Program:
        """The program of its scan."""
        spec = self.spec.program_spec(initial_state=initial, final_state=final)
        return pd_scan(spec, self.traced.fusion)


def discretised(delta, phase, a_log):  # type: ignore[no-untyped-def]
    """Flash PD-SSM's: the magnitude from a step size, a head's rates, and a phase."""
    return torch.polar(torch.exp(-functional.softplus(delta) * torch.exp(a_log)), phase)


def squashed(magnitude, phase):  # type: ignore[no-untyped-def]
    """PD-SSM's: magnitude and turn from logits."""
    return torch.polar(torch.sigmoid(magnitude), 2 * math.pi * torch.sigmoid(phase))


def real_product(x, c):  # type: ignore[no-untyped-def]
    """``Re(C ⊙ x)``."""
    return (c * x).real


def odd_diagonal(a, b, c):  # type: ignore[no-untyped-def]
    """A magnitude of two factors and a turn that grows with a square."""
    return torch.tanh(a) * torch.polar(torch.sigmoid(b), c * c)


def odd_readout(x, w, gate):  # type: ignore[no-untyped-def]
    """Both parts mixed by a head's vector, gated by a number a token."""
    mixed = x.real * w - torch.sin(x.imag) / (1.5 + torch.square(w))
    return mixed * functional.silu(gate)[..., None]


def real_diagonal(a, step):  # type: ignore[no-untyped-def]
    """Real, from a number a token and a head's."""
    return 1 / (1 + functional.softplus(a * step[..., None]) ** 2)


def one_number(x, a, scale):  # type: ignore[no-untyped-def]
    """One number a token, of an input that the diagonal reads as well."""
    return scale * (x.conj() * torch.complex(a, 1 - a)).real.sum(-1)


def of_heads(nu, theta):  # type: ignore[no-untyped-def]
    """The same at every token: no tensor of tokens at all."""
    return torch.exp(-torch.exp(nu) + 1j * theta)


def whole_state(x, gate):  # type: ignore[no-untyped-def]
    """A complex read-out."""
    return (x + 0.5 * x**3) * functional.gelu(gate, approximate="tanh") / (2 + x.imag**2).sqrt()


CASES = (
    Expressions(
        "discretised",
        discretised,
        real_product,
        {"a_log": PER_HEAD, "c": COMPLEX},
        ScanSpec(8, 3),
    ),
    Expressions(
        "squashed", squashed, None, spec=ScanSpec(5, map_source="token", orientation="row")
    ),
    Expressions(
        "odd",
        odd_diagonal,
        odd_readout,
        {"w": PER_HEAD, "gate": InputSpec("BTH")},
        ScanSpec(5, 3, map_class="permutation"),
    ),
    Expressions(
        "real",
        real_diagonal,
        one_number,
        {"step": InputSpec("BTH"), "scale": InputSpec("H")},
        ScanSpec(7, map_source="token"),
    ),
    Expressions(
        "heads",
        of_heads,
        whole_state,
        {"nu": PER_HEAD, "theta": PER_HEAD},
        ScanSpec(3, map_source="none"),
    ),
    Expressions("readout alone", None, real_product, {"c": COMPLEX}, ScanSpec(4, 2)),
)


def draw(case: Expressions, batch: int, length: int, heads: int, seed: int = 0) -> Tensors:
    """Every tensor of a call, the initial state among them."""
    random = torch.Generator().manual_seed(seed)
    spec = case.spec
    sizes = {"B": batch, "T": length, "H": heads, "N": spec.state_size}
    tokens = (batch, length, heads, spec.state_size)

    def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, generator=random)

    found = {
        "drive": numbers(tokens, spec.dtype),
        "initial_state": numbers((batch, heads, spec.state_size), spec.dtype),
    }
    if case.diagonal is None:
        found["diagonal"] = torch.sgn(numbers(tokens, spec.dtype)) * 0.9
    for each in case.traced.inputs:
        shape = tuple(sizes[axis] for axis in each.spec.axes) + (2,) * each.spec.pairs
        found[each.name] = numbers(shape, each.dtype)
    if spec.map_source == "dictionary":
        size = spec.dictionary_size
        found["dictionary"] = _maps(spec, (heads, size, spec.state_size), random)
        found["selection"] = torch.randint(size, tokens[:3], generator=random, dtype=torch.int32)
    elif spec.map_source == "token":
        found["destination"] = _maps(spec, tokens, random)
    return found


def _maps(spec: ScanSpec, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    if spec.map_class == "permutation":
        return torch.rand(shape, generator=random).argsort(dim=-1).to(torch.int32)
    return torch.randint(spec.state_size, shape, generator=random, dtype=torch.int32)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision, integers as they are."""
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128)
    return tensor.detach().double() if tensor.is_floating_point() else tensor


def expected(case: Expressions, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and final state, by the case's functions on tensors and the plain loop."""
    names = [each.name for each in case.traced.inputs]
    read = {
        each.name: torch.view_as_complex(tensors[each.name])
        if each.spec.pairs
        else tensors[each.name]
        for each in case.traced.inputs
    }
    rest = {name: tensor for name, tensor in tensors.items() if name not in names}
    drive = rest["drive"]
    if case.diagonal is not None:
        parameters = inspect.signature(case.diagonal).parameters
        found = case.diagonal(*(read[name] for name in parameters))
        rest["diagonal"] = found.to(drive.dtype).expand(drive.shape)
    states, final = reference.pd_scan(
        **rest,
        map_class=case.spec.map_class,
        orientation=case.spec.orientation,
        output_final_state=True,
    )
    assert final is not None
    if case.readout is None:
        return states, final
    parameters = list(inspect.signature(case.readout).parameters)[1:]
    return case.readout(states, *(read[name] for name in parameters)), final


def programs(case: Expressions, surrogate: Surrogate | None = None) -> list[Program]:
    """What a fused scan runs, without gradients and with; by a surrogate, with those of logits."""
    program = case.program()
    segments = in_segments(program)
    starts = {boundary.start for boundary in segments.boundaries if not boundary.given}
    wanted = [i.name for i in program.inputs if surrogate or is_number(i.type)]
    wrt = [name for name in wanted if name not in starts]
    reached = [out.name for out in program.token_outputs]
    derived = segment_adjoint(segments, wrt, reached, surrogate)
    found = [program, segments.forward, derived.replay, derived.adjoint.program]
    return list(dict.fromkeys(each for each in found if each is not None))
