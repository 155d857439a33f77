"""Random expressions: what is traced means on every token what the function means on tensors.

Functions are drawn as lists of steps, each an operation of torch on what there is so far. Traced,
they run in the interpreter; on float64 tensors, around the plain loop, by autograd. Nothing rounds
to less than float64, and every step keeps numbers small, so both agree to 1e-11.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch.nn import functional

from pdssm_compiler import InputSpec, ScanSpec
from pdssm_compiler.fusion.functions import FUNCTIONS
from pdssm_compiler.fusion.symbols import Symbol
from pdssm_compiler.ir import interpret
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.types import Vector, is_number
from tests.expressions import Expressions, draw, expected, wide
from tests.kernels import examples
from tests.public.test_fusion import TOLERANCE, assert_agrees, fused, gradients, leaves_of

# Steps on real and on complex numbers, by what they give.
REAL: dict[str, Callable[..., Any]] = {
    "tanh": torch.tanh,
    "sigmoid": lambda x: x.sigmoid(),
    "expit": torch.special.expit,
    "sin": torch.sin,
    "cos": lambda x: x.cos(),
    "exp": lambda x: torch.exp(-functional.softplus(x)),
    "log": lambda x: torch.log(1.5 + x.square()),
    "logsigmoid": lambda x: 0.1 * functional.logsigmoid(x),
    "sqrt": lambda x: torch.sqrt(1 + x * x),
    "rsqrt": lambda x: (2 + x**2).rsqrt(),
    "silu": functional.silu,
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "powers": lambda x: torch.tanh(x) ** 5 - (1.5 + torch.sigmoid(x)) ** -3 + (x**2 + 1) ** 0.5,
    "neg": lambda x: -(+x),
    "scale": lambda x: 0.25 * x - x / 3 + (1 - x) / 2,
    "sum": lambda x: 0.2 * x.sum(-1, keepdim=True) + 0 * x,
    "sum, no axis": lambda x: torch.sum(torch.tanh(x), dim=-1).unsqueeze(-1) * 0.1 * x,
    "like": lambda x: torch.ones_like(x) + torch.zeros_like(x) * x,
    "double": lambda x: x.double(),
}
PAIRS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: (x + y) / 2,
    "sub": lambda x, y: torch.sub(x, y) * 0.5,
    "mul": lambda x, y: torch.tanh(x) * y,
    "div": lambda x, y: x / (1.5 + torch.sigmoid(y)),
    "by number": lambda x, y: 1 / (2 + x * x) + torch.true_divide(y, 2.5),
}
TO_COMPLEX: dict[str, Callable[..., Any]] = {
    "polar": lambda x, y: torch.polar(torch.sigmoid(x), y),
    "complex": lambda x, y: torch.complex(torch.tanh(x), torch.sin(y)),
    "exp": lambda x, y: torch.exp(-functional.softplus(x) + 1j * y),
    "factor": lambda x, y: torch.tanh(x) * (0.5 - 0.25j) + 0.25 * torch.cos(y),
}
COMPLEX: dict[str, Callable[..., Any]] = {
    "mul": lambda z, w: z * w * 0.5,
    "sub": lambda z, w: (z - w) * 0.5,
    "conj": lambda z, w: torch.conj(z) * 0.5 + w.conj() / 2,
    "div": lambda z, w: z / (w * w.conj() + (2 + 1j)),
    "reciprocal": lambda z, w: torch.reciprocal(z * z.conj() + 1.5) * w,
    "square": lambda z, w: z.square() * 0.5 + 0.25 * torch.neg(w),
    "sum": lambda z, w: 0.2 * z.sum(-1, keepdim=True) * w,
}
TO_REAL: dict[str, Callable[..., Any]] = {
    "real": lambda z, w: z.real + torch.real(w) / 2,
    "imag": lambda z, w: z.imag - torch.imag(w) / 2,
}
TABLES = ("real", "pair", "to complex", "complex", "to real")
KINDS = {
    "BTHN": InputSpec(dtype=torch.float64),
    "BTHN complex": InputSpec(dtype=torch.complex128),
    "BTH": InputSpec("BTH", torch.float64),
    "HN": InputSpec("HN", torch.float64),
    "HN complex": InputSpec("HN", torch.complex128),
    "H": InputSpec("H", torch.float64),
}


class Steps:
    """A function of named tensors, drawn step by step when it is first called."""

    def __init__(self, data: st.DataObject, kinds: dict[str, str], count: int) -> None:
        self.kinds = kinds
        tables = st.sampled_from(TABLES)
        names = dict(zip(TABLES, (REAL, PAIRS, TO_COMPLEX, COMPLEX, TO_REAL), strict=True))
        places = st.integers(0, 99)
        self.steps = []
        for _ in range(count):
            table = data.draw(tables)
            name = data.draw(st.sampled_from(sorted(names[table])))
            step = (table, name, names[table][name], data.draw(places), data.draw(places))
            note(f"{table} {name} {step[3:]}")
            self.steps.append(step)

    def run(self, reals: list[Any], complexes: list[Any]) -> tuple[Any, Any]:
        """A real and a complex tensor that depend on everything."""
        for table, name, function, first, second in self.steps:
            if table in ("complex", "to real") and not complexes:
                continue
            source = complexes if table in ("complex", "to real") else reals
            x, y = source[first % len(source)], source[second % len(source)]
            if name.startswith("sum"):
                # A number a token has no states to be added up; the first real one has.
                x = x + 0 * reals[0]
            made = function(x) if table == "real" else function(x, y)
            (complexes if table in ("complex", "to complex") else reals).append(made)
        real = sum((0.3 * torch.tanh(x) for x in reals[1:]), torch.tanh(reals[0]))
        whole = 0.5 * real
        for z in complexes:
            whole = whole + z * 0.25
        return real, whole

    def named(self, names: list[str], given: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        """Parameters as vectors: real ones and complex ones."""
        reals, complexes = [], []
        for name, tensor in zip(names, given, strict=True):
            kind = self.kinds[name]
            vector = tensor[..., None] if kind in ("BTH", "H") else tensor
            (complexes if "complex" in kind else reals).append(vector)
        return reals, complexes


def with_names(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """The function, with parameters of these names."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    return function


def draw_case(data: st.DataObject) -> Expressions:
    """A fused scan: random kinds of inputs, some shared, and random expressions of them."""
    kinds = data.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4))
    named = {f"p{number}": kind for number, kind in enumerate(["BTHN", *kinds])}
    names = list(named)
    of_diagonal = ["p0", *data.draw(st.lists(st.sampled_from(names[1:]), unique=True))]
    of_readout = [name for name in names if name not in of_diagonal or data.draw(st.booleans())]
    steps = [Steps(data, named, data.draw(st.integers(1, 6))) for _ in range(2)]

    def diagonal(*given: Any) -> Any:
        real, whole = steps[0].run(*steps[0].named(of_diagonal, given))
        return torch.polar(torch.sigmoid(real), whole.real)

    def readout(x: Any, *given: Any) -> Any:
        reals, complexes = steps[1].named(of_readout, given)
        real, whole = steps[1].run([x.real, *reals], [x, *complexes])
        return whole if as_complex else whole.real * 0.5 + real

    as_complex = data.draw(st.booleans())
    source = data.draw(st.sampled_from(("dictionary", "token", "none")))
    spec = ScanSpec(
        data.draw(st.integers(1, 4)),
        2 if source == "dictionary" else None,
        dtype=torch.complex128,
        map_source=source,
        orientation=data.draw(st.sampled_from(("column", "row"))),
    )
    return Expressions(
        "random",
        with_names(diagonal, of_diagonal),
        with_names(readout, ["x", *of_readout]),
        {name: KINDS[kind] for name, kind in named.items()},
        spec,
    )


@settings(max_examples=examples(30))
@given(data=st.data(), seed=st.integers(0, 999))
def test_in_the_interpreter(data: st.DataObject, seed: int) -> None:
    case = draw_case(data)
    tensors = draw(case, 2, 3, 2, seed)
    leaves = leaves_of({name: wide(tensor) for name, tensor in tensors.items()})
    want = expected(case, leaves)
    program = case.program()
    names = {f"in_{each.name}_": each.name for each in case.traced.inputs}
    arrays = {i.name: tensors[names.get(i.name, i.name)].numpy() for i in program.inputs}
    derived = adjoint(program)
    results = interpret(derived.forward, arrays)
    cotangents = [torch.randn_like(out) for out in want]
    found = gradients(want, leaves, cotangents)
    reads = arrays | {name: results[output] for name, output in derived.saved.items()}
    reads |= {
        f"grad_{name}": cotangent.numpy()
        for name, cotangent in zip(("readout", "final_state"), cotangents, strict=True)
    }
    got = interpret(derived.program, reads)
    assert_close(results["readout"], want[0], "readout")
    for input_ in program.inputs:
        if is_number(input_.type):
            gradient = got[f"grad_{input_.name}"]
            if f"grad_{input_.name}" in derived.summed:
                gradient = gradient.sum(0)
            name = names.get(input_.name, input_.name)
            assert_close(gradient, found[name], f"gradient of {name}")


def assert_close(got: np.ndarray, want: torch.Tensor, name: str) -> None:
    array = want.detach().resolve_conj().numpy()
    scale = max(1.0, np.abs(array).max(initial=0.0))
    np.testing.assert_allclose(got, array, rtol=0, atol=1e-11 * scale, err_msg=name)


@settings(max_examples=examples(1), derandomize=True)
@given(data=st.data(), seed=st.integers(0, 999))
def test_compiled(data: st.DataObject, seed: int) -> None:
    """A few of them by the CPU's kernels."""
    assert TOLERANCE * torch.finfo(torch.float64).eps < 1e-12
    case = draw_case(data)
    assert_agrees(case, fused(case), draw(case, 2, 6, 2, seed))


def test_every_function_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps call every rule there is, by one of its names; two have tests of their own."""
    called = set()
    rules = dict(FUNCTIONS)

    def recorded(rule: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(rule)
        def call(*args: Any, **kwargs: Any) -> Any:
            called.add(rule)
            return rule(*args, **kwargs)

        return call

    for name, rule in rules.items():
        monkeypatch.setitem(FUNCTIONS, name, recorded(rule))
    real, whole = (Symbol(Input(e, Vector(e)).value) for e in ("f64", "c128"))
    for function in REAL.values():
        function(real)
    for function in (*PAIRS.values(), *TO_COMPLEX.values()):
        function(real, real)
    for function in (*COMPLEX.values(), *TO_REAL.values()):
        function(whole, whole)
    assert {name for name, rule in rules.items() if rule not in called} == {"squeeze", "float"}


def test_float_is_what_is_computed_in() -> None:
    """``float`` widens a narrow tensor, which a traced one is from the start."""
    case = Expressions(
        "widened",
        None,
        lambda x, gate: x.real * gate.float(),
        {"gate": InputSpec(dtype=torch.bfloat16)},
        ScanSpec(4, map_source="none"),
    )
    tensors = draw(case, 2, 5, 2)
    output, _ = fused(case, config="torch-tokens")(**tensors)
    want = expected(case, {name: wide(tensor) for name, tensor in tensors.items()} | {
        "gate": tensors["gate"]
    })  # fmt: skip
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), want[0], rtol=1e-5, atol=1e-5)


def test_a_columns_axis_comes_and_goes() -> None:
    """``squeeze`` is the way back from ``[..., 1]``."""
    case = Expressions(
        "column",
        None,
        lambda x, s: (x.real.sum(-1, keepdim=True) * s[..., None]).squeeze(-1) + s,
        {"s": InputSpec("BTH")},
        ScanSpec(4, map_source="none"),
    )
    assert_agrees(case, fused(case, config="torch-tokens"), draw(case, 2, 6, 2))
