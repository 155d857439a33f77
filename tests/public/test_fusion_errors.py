"""What cannot be traced or called, and how it is told."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pdssm_compiler import ArgumentError, FusedScan, InputSpec, ScanSpec, TraceError, compile
from tests.expressions import CASES, draw

SPEC = ScanSpec(4, map_source="none")
OUTSIDE = torch.ones(3)
SCALARS = {"s": InputSpec("BTH")}


def branching(a):  # type: ignore[no-untyped-def]
    return a if a else -a


def looping(a):  # type: ignore[no-untyped-def]
    return sum(a)


def without_gradients(a):  # type: ignore[no-untyped-def]
    with torch.no_grad():
        rate = torch.exp(a)
    return rate * a


def under_two_names(a):  # type: ignore[no-untyped-def]
    b = a
    b *= 2
    return a * b


def into_an_element(a):  # type: ignore[no-untyped-def]
    a[..., 0] = 1
    return a


DIAGONALS: list[tuple[Callable[..., Any], str]] = [
    (branching, "diagonal: the expression branches on a traced tensor"),
    (lambda a: a.exp() if a > 0 else a, "diagonal: a traced tensor is compared"),
    (lambda a: a if a == 1 else 2 * a, "a traced tensor is compared"),
    (looping, "converted to a number or an array .* use torch's functions"),
    (lambda a: a * math.exp(a), "converted to a number or an array"),
    (lambda a: torch.erf(a), r"erf cannot be traced; there are add, sub, .*polar"),
    (lambda a: a.cumsum(-1), r"a traced tensor has no .cumsum; it has add, "),
    (lambda a: a.shape[0] * a, r"a traced tensor has no .shape; it has"),
    (lambda a: a * OUTSIDE, "mul meets a tensor that is not a parameter of the function"),
    (lambda a: OUTSIDE * a, "mul meets a tensor that is not a parameter"),
    (lambda a: a * "b", "mul is made of tensors of the expression and numbers, not of 'b'"),
    (lambda a: a * np.ones(3), "mul is made of tensors of the expression and numbers"),
    (lambda a: a * True, "mul is made of tensors of the expression and numbers, not of True"),
    (lambda a: a / 0, "div by the number 0"),
    (lambda a: a**1.5, r"pow with the exponent 1.5: whole numbers but 0, 0.5 and -0.5"),
    (lambda a: a**a, r"pow with the exponent <a traced tensor \[..., N\] of vec<f32>>"),
    (lambda a: a[0], r"a traced tensor is indexed by \[..., None\] alone, not by \[0\]"),
    (lambda a: torch.tanh(1j * a), "tanh of a complex tensor cannot be traced, of a real one"),
    (lambda a: torch.polar(1j * a, a), "polar of a complex tensor"),
    (lambda a: a.imag, "imag of a real tensor; torch has none either"),
    (lambda a: torch.add(a, a, alpha=2), r"add\(input: Any, other: Any\) .* is traced; the call "),
    (lambda a: torch.nn.functional.softplus(a, 2), "softplus with beta=2"),
    (lambda a: torch.nn.functional.gelu(a), "gelu is traced with approximate='tanh' alone"),
    (lambda a: a.sum(), r"sum over dim=None of a tensor \[..., N\]"),
    (lambda a: a.sum(0), r"sum over dim=0 of a tensor \[..., N\]: the sum over the last axis"),
    (lambda a: a.unsqueeze(-1), r"a new axis is traced as the last one of \[...\]"),
    (lambda a: a.squeeze(-1), r"squeeze is traced for the last axis of \[..., 1\]"),
    (lambda a: a * a.sum(-1), r"mul of tensors \[..., N\] and \[...\]: .* write \[..., None\]"),
    (lambda a: a.sum(-1), r"diagonal gives one number a token, \[...\]"),
    (lambda a: a.double(), r"double\(\) changes the precision"),
    (lambda a: None, "diagonal: it returns None; return one tensor, made of its parameters"),
    (lambda a: (a, a), "diagonal: it returns .*; return one tensor, made of its parameters"),
    (lambda a: torch.ones(3), "diagonal: it returns .*; return one tensor"),
    (lambda a: "b", "diagonal: the result is made of tensors .* and numbers, not of 'b'"),
    (lambda a: 0.5, "diagonal does not use its parameter a; leave it out"),
    (lambda a, b: a, "diagonal does not use its parameter b; leave it out"),
    (lambda a=1.0: a, "diagonal has the default a=1.0: every parameter is an input"),
    (lambda *a: a[0], r"diagonal has the parameter \*a: every parameter is one named input"),
    (lambda **a: a, r"diagonal has the parameter \*\*a"),
    (lambda *, a: a, r"diagonal has the parameter a: every parameter is one named input, given"),
    (lambda drive: drive, "diagonal has a parameter drive, which is the scan's own; rename it"),
    (lambda selection: selection, "has a parameter selection, which is the scan's own"),
    (lambda _a: _a, "diagonal has a parameter _a: a name is made of ASCII letters"),
    (lambda a__b: a__b, "has a parameter a__b: .* single underscores"),
    (lambda φ: φ, "has a parameter φ: a name is made of ASCII letters"),
    (0.5, "diagonal must be a function, got 0.5"),
    (without_gradients, r"diagonal: exp is computed without gradients \(under no_grad\)"),
    (under_two_names, r"a traced tensor is changed in place \(by \+=, .* make a new one"),
    (into_an_element, "diagonal: a traced tensor is changed in place"),
    (lambda a: a * torch.nn.functional.silu(a, inplace=True), "silu in place: it is traced with"),
    (lambda a: torch.nn.functional.softplus(a, threshold=0), "softplus with threshold=0: .* 20"),
    (lambda a: abs(a), r"diagonal: an operator that cannot be traced .* \+ - \* / and whole"),
    (lambda a: 2**a, r"an operator that cannot be traced .* p \*\* x is written exp\(log"),
    (lambda a: a @ a, "an operator that cannot be traced"),
    (lambda a: a % 2, "an operator that cannot be traced"),
    (lambda a: a * 1e300, "mul with a number beyond float32, whose largest is 3.4e.38; write"),
    (lambda a: a + 1e300j, "add with a number beyond float32"),
    (lambda a: a * 10**400, "mul with a number beyond float32"),
    (lambda a: a ** (10**400), "pow with the exponent 1000.*: whole numbers but 0"),
    (lambda a: a**1e300, "pow with the exponent 1e.300: whole numbers but 0"),
]


@pytest.mark.parametrize(("function", "message"), DIAGONALS, ids=[m for _, m in DIAGONALS])
def test_diagonals(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        compile(SPEC, "cpu", diagonal=function)


READOUTS: list[tuple[Callable[..., Any], Any, str]] = [
    (lambda: 1.0, None, r"readout needs a parameter, the state; write readout\(x, ...\)"),
    (lambda x: 1.0, None, "readout does not use its parameter x, the first one, which is the st"),
    (lambda x, c: c, None, r"which is the state; write readout\(x, ...\) of it, or compute what"),
    (lambda x, c: x, None, "readout does not use its parameter c; leave it out"),
    (lambda x, c: x * c, [1], r"inputs must be a mapping of the parameters' names, .* got \[1\]"),
    (lambda x: x.sum(-1, keepdim=True), None, r"readout gives one number a token as \[..., 1\]"),
    (lambda x, s: x * s, SCALARS, r"mul of tensors \[..., N\] and \[...\]"),
    (lambda x, s: s + s[..., None] * x, SCALARS, r"add of tensors \[..., N\] and \[...\]"),
    (lambda x, c: x * c, {"d": InputSpec()}, "inputs has 'd', which is no parameter; there are c"),
    (lambda x, c: x * c, {"x": InputSpec()}, "inputs has 'x', which is no parameter"),
    (lambda x, c: x * c, {"c": "HN"}, r"inputs\['c'\] must be an InputSpec, got 'HN'"),
    (
        lambda x, c: torch.complex(x.real, c * x.imag).real,
        None,
        "c cancels out of the expressions, so it has no effect",
    ),
]


@pytest.mark.parametrize(
    ("function", "inputs", "message"), READOUTS, ids=[message for *_, message in READOUTS]
)
def test_readouts(function: Callable[..., Any], inputs: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        compile(SPEC, "cpu", readout=function, inputs=inputs)


@pytest.mark.parametrize("grad", [False, True])
def test_a_scan_may_be_compiled_without_gradients(grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        scan = compile(SPEC, "cpu", diagonal=lambda a: torch.exp(-a * a), config="torch-tokens")
        assert torch.is_grad_enabled() is grad
    leaf = torch.ones(1, 2, 1, 4, requires_grad=True)
    scan(a=leaf, drive=torch.ones(1, 2, 1, 4, dtype=torch.complex64))[0].real.sum().backward()
    # x_2 = exp(-a_2²) b_1 + b_2, so the first token's diagonal multiplies nothing.
    want = torch.tensor([0.0, -2 / math.e]).view(1, 2, 1, 1).expand_as(leaf)
    torch.testing.assert_close(leaf.grad, want)


def test_numbers_are_those_of_the_scans_precision() -> None:
    spec = ScanSpec(4, map_source="none", dtype=torch.complex128)

    def diagonal(a):  # type: ignore[no-untyped-def]
        return a * 1e300 / 2e300

    scan = compile(spec, "cpu", diagonal=diagonal, config="torch-tokens")
    drive = torch.ones(1, 2, 1, 4, dtype=torch.complex128)
    states, _ = scan(a=torch.ones(1, 2, 1, 4, dtype=torch.float64), drive=drive)
    torch.testing.assert_close(states[:, 1], torch.full_like(states[:, 1], 1.5))


def test_one_name_for_the_state_and_an_input() -> None:
    with pytest.raises(TraceError, match="x is the state in readout and an input in diagonal"):
        compile(SPEC, "cpu", diagonal=lambda x: x, readout=lambda x: x.real)


def test_an_error_of_the_functions_own_is_not_hidden() -> None:
    def wrong(a):  # type: ignore[no-untyped-def]
        return {}["key"] * a

    with pytest.raises(KeyError, match="key"):
        compile(SPEC, "cpu", diagonal=wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": "TBHN"}, "axes must be one of 'BTHN', 'BTH', 'HN', 'H'; got 'TBHN'"),
        ({"dtype": torch.int32}, "dtype must be one of torch.bfloat16, "),
        ({"pairs": True}, "pairs=True needs dtype bfloat16 or float16, got None"),
        ({"dtype": torch.bfloat16, "pairs": "no"}, "pairs must be True or False, got 'no'"),
        ({"dtype": torch.complex64, "pairs": True}, "pairs=True needs dtype bfloat16 or float16"),
    ],
)
def test_input_specs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        InputSpec(**options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_precisions_do_not_mix(dtype: torch.dtype) -> None:
    with pytest.raises(ArgumentError, match=f"has dtype {dtype}, and the scan is complex64; give"):
        compile(SPEC, "cpu", readout=lambda x, c: x * c, inputs={"c": InputSpec(dtype=dtype)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_length": 0}, "segment_length must be a whole number of at least 1, got 0"),
        ({"segment_length": True}, "segment_length must be a whole number of at least 1"),
        ({"segment_length": 8}, "segment_length is for expressions; pass diagonal or readout"),
        ({"inputs": {}}, "inputs is for expressions; pass diagonal or readout as well"),
        (
            {"diagonal": lambda a: a, "segment_length": 8},
            "segment_length is for a scan with a readout",
        ),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        compile(SPEC, "cpu", **options)


CASE = CASES[0]


@pytest.fixture(scope="module")
def scan() -> FusedScan:
    return compile(
        CASE.spec, "cpu", diagonal=CASE.diagonal, readout=CASE.readout, inputs=CASE.inputs,
        config="torch-tokens",
    )  # fmt: skip


WITHOUT = object()
CALLS: list[tuple[dict[str, Any], str]] = [
    ({"c": WITHOUT}, "c is missing; pass it by name, the expressions read it"),
    ({"d": torch.ones(1)}, "d is no input of the expressions; they have delta, phase, a_log, c"),
    ({"diagonal": torch.ones(1)}, "diagonal is computed by the scan's expression; leave it out"),
    ({"delta": 1.0}, "delta must be a torch.Tensor, got float"),
    ({"delta": torch.ones(2, 5, 3, 8, dtype=torch.float64)}, "delta must be torch.float32, got"),
    (
        {"delta": torch.ones(2, 5, 3, 7)},
        r"delta must have the shape \[B, T, H, N\] = \[2, 5, 3, 8",
    ),
    ({"a_log": torch.ones(2, 5, 3, 8)}, r"a_log must have the shape \[H, N\] = \[3, 8\], got"),
    ({"c": torch.ones(2, 5, 3, 8)}, "c must be torch.complex64, got torch.float32"),
    ({"c": torch.ones(2, 5, 3, 7, 2)}, r"c must have the shape \[B, T, H, N\] = \[2, 5, 3, 8\]"),
    ({"delta": torch.ones(2, 5, 3, 8).to_sparse()}, "delta must be a dense tensor, got a"),
    ({"drive": torch.ones(2, 5, 3, 8)}, "drive must have the shape"),
    ({"drive": torch.ones(2, 5, 3, 8, dtype=torch.complex128)}, "drive must be torch.complex64"),
    (
        {"initial_state": torch.ones(2, 3, 8, dtype=torch.complex128)},
        "initial_state must be torch",
    ),
    ({"selection": WITHOUT}, "dictionary is given without selection"),
    (
        {"dictionary": torch.zeros(3, 4, 8, dtype=torch.int32)},
        "the tensors have dictionary_size 4, but the scan was compiled for 3",
    ),
    (
        {"dictionary": WITHOUT, "selection": WITHOUT},
        "the tensors have map_source 'none', but the scan was compiled for 'dictionary'",
    ),
    ({"drive": torch.ones(2, 5, 3, 9, dtype=torch.complex64)}, r"drive must have the shape"),
]


@pytest.mark.parametrize(("changes", "message"), CALLS, ids=[message for _, message in CALLS])
@pytest.mark.parametrize("grad", [False, True])
def test_calls(scan: FusedScan, changes: dict[str, Any], message: str, grad: bool) -> None:
    tensors: dict[str, Any] = draw(CASE, 2, 5, 3)
    tensors["phase"].requires_grad_(grad)
    given = {name: value for name, value in (tensors | changes).items() if value is not WITHOUT}
    with pytest.raises(ArgumentError, match=message):
        scan(**given)


def test_a_diagonal_that_is_no_expression_is_an_input() -> None:
    case = CASES[-1]
    scan = compile(
        case.spec, "cpu", readout=case.readout, inputs=case.inputs, config="torch-tokens"
    )
    tensors = draw(case, 1, 2, 1)
    del tensors["diagonal"]
    with pytest.raises(ArgumentError, match="diagonal is missing; pass it, or compile the scan"):
        scan(**tensors)


def test_another_target() -> None:
    scan = compile(SPEC, "sm_90", readout=lambda x: x.real, config="triton-rows")
    ones = torch.ones(1, 2, 1, 4, dtype=torch.complex64)
    with pytest.raises(ArgumentError, match="compiled for cuda:sm_90; move them, or compile for"):
        scan(drive=ones, diagonal=ones)


def test_forward_mode_and_transforms_are_refused(scan: FusedScan) -> None:
    tensors = draw(CASE, 1, 2, 1)

    def of_phase(phase: torch.Tensor) -> torch.Tensor:
        return scan(**tensors | {"phase": phase})[0].sum()

    with pytest.raises(ArgumentError, match="cannot be differentiated by torch"):
        torch.func.grad(of_phase)(tensors["phase"])
    with pytest.raises(ArgumentError, match="cannot be mapped by vmap"):
        torch.vmap(of_phase)(torch.stack([tensors["phase"]] * 2))
    with pytest.raises(ArgumentError, match="no forward-mode derivative"):
        torch.func.jvp(of_phase, (tensors["phase"],), (tensors["phase"],))
