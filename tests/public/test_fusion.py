"""Fused scans: values and gradients of expressions that nothing in the package mentions.

``|out - ref| <= c·ε·s``, ``ε`` of the scan's precision, ``s`` the largest entry of the reference
tensor, or 1. An expression of a dozen functions adds some ``ε``, and gradients of heads are sums
over all tokens: ``c`` = 512. The same ``c`` holds in float64, so it hides no error of structure.
"""

import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler import FusedScan, InputSpec, ScanSpec, compile, reference
from tests.expressions import CASES, Expressions, Tensors, discretised, draw, expected, wide
from tests.kernels import examples, under_stress

TOLERANCE = 512
SEGMENT = 4


def double(case: Expressions) -> Expressions:
    """The same in complex128."""
    inputs = {
        name: replace(spec, dtype=torch.complex128) if spec.dtype == torch.complex64 else spec
        for name, spec in case.inputs.items()
    }
    spec = replace(case.spec, dtype=torch.complex128)
    return replace(case, name=f"{case.name} c128", inputs=inputs, spec=spec)


EVERY = (*CASES[:4], *CASES[5:], *under_stress(CASES[4], double(CASES[0]), double(CASES[3])))


def fused(case: Expressions, device: str = "cpu", **options: object) -> FusedScan:
    """The case compiled for a device, in short segments, as most of these tests call it."""
    states = {"initial_state": True, "output_final_state": True}
    length = None if case.readout is None else SEGMENT
    return compile(
        case.spec,
        device,
        diagonal=case.diagonal,
        readout=case.readout,
        inputs=case.inputs,
        segment_length=options.pop("segment_length", length),
        **states | options,
    )


def assert_near(got: torch.Tensor, want: torch.Tensor, name: str, epsilon: float) -> None:
    assert got.shape == want.shape, name
    scale = max(1.0, want.abs().max().item() if want.numel() else 0.0)
    error = (wide(got) - wide(want)).abs().max().item() if want.numel() else 0.0
    assert error <= TOLERANCE * epsilon * scale, f"{name} is off by {error}"


def epsilon_of(case: Expressions) -> float:
    return torch.finfo(case.spec.dtype).eps


def leaves_of(tensors: Tensors) -> Tensors:
    """Numbers as leaves that want a gradient."""
    return {
        name: tensor.detach().clone().requires_grad_()
        if tensor.is_complex() or tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }


def gradients(
    outputs: tuple[torch.Tensor, ...], leaves: Tensors, cotangents: list[torch.Tensor]
) -> Tensors:
    names = [name for name, leaf in leaves.items() if leaf.requires_grad]
    reached = [
        (out, cotangent.to(out.dtype))
        for out, cotangent in zip(outputs, cotangents, strict=True)
        if out.requires_grad
    ]
    found = torch.autograd.grad(
        [out for out, _ in reached],
        [leaves[name] for name in names],
        [cotangent for _, cotangent in reached],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(names, found, strict=True))


def cotangents_like(outputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    return [
        torch.randn(out.shape, dtype=out.dtype, generator=random).to(out.device) for out in outputs
    ]


def assert_agrees(case: Expressions, scan: FusedScan, tensors: Tensors) -> None:
    """Values without and with gradients, and the gradients of every number."""
    reference_leaves = leaves_of({name: wide(tensor) for name, tensor in tensors.items()})
    want = expected(case, reference_leaves)
    cotangents = cotangents_like(want)
    want_gradients = gradients(want, reference_leaves, cotangents)
    epsilon = epsilon_of(case)
    leaves = leaves_of(tensors)
    plain = scan(**tensors, output_final_state=True)
    outputs = scan(**leaves, output_final_state=True)
    for found in (plain, outputs):
        assert_near(found[0], want[0], "output", epsilon)
        assert_near(found[1], want[1], "final state", epsilon)
    for name, gradient in gradients(outputs, leaves, cotangents).items():
        assert gradient.dtype == tensors[name].dtype
        assert_near(gradient, want_gradients[name], f"gradient of {name}", epsilon)


@pytest.mark.parametrize("case", EVERY, ids=str)
@settings(max_examples=examples(2))
@given(
    sizes=st.tuples(st.integers(1, 2), st.sampled_from((0, 1, 3, 4, 5, 9)), st.integers(1, 3)),
    seed=st.integers(0, 999),
)
def test_values_and_gradients(case: Expressions, sizes: tuple[int, int, int], seed: int) -> None:
    """No token, one, less than a segment, whole segments and a rest."""
    assert_agrees(case, fused(case), draw(case, *sizes, seed))


@pytest.mark.parametrize("length", [1, 7, 1000, None])
def test_segments_of_any_length(length: int | None) -> None:
    case = CASES[0]
    assert_agrees(case, fused(case, segment_length=length), draw(case, 1, 300, 2))


def test_the_length_of_segments_changes_no_value() -> None:
    case = CASES[2]
    tensors = draw(case, 2, 20, 2)
    found = []
    for length in (3, 20):
        leaves = leaves_of(tensors)
        outputs = fused(case, segment_length=length)(**leaves, output_final_state=True)
        found.append([*outputs, *gradients(outputs, leaves, cotangents_like(outputs)).values()])
    for short, long in zip(*found, strict=True):
        torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)


def test_without_an_initial_state_and_a_final_one() -> None:
    case = CASES[0]
    tensors = draw(case, 2, 9, 2)
    del tensors["initial_state"]
    leaves, wide_leaves = leaves_of(tensors), leaves_of({n: wide(t) for n, t in tensors.items()})
    output, final = fused(case)(**leaves)
    assert final is None
    want = expected(case, wide_leaves)[:1]
    cotangents = cotangents_like(want)
    found = gradients((output,), leaves, cotangents)
    for name, gradient in gradients(want, wide_leaves, cotangents).items():
        assert_near(found[name], gradient, name, epsilon_of(case))


@pytest.mark.parametrize("reached", [0, 1], ids=["output", "final state"])
def test_one_output_alone(reached: int) -> None:
    case = CASES[0]
    tensors = draw(case, 2, 9, 2)
    leaves, wide_leaves = leaves_of(tensors), leaves_of({n: wide(t) for n, t in tensors.items()})
    want = expected(case, wide_leaves)[reached : reached + 1]
    got = fused(case)(**leaves, output_final_state=True)[reached : reached + 1]
    cotangents = cotangents_like(want)
    found = gradients(got, leaves, cotangents)
    for name, gradient in gradients(want, wide_leaves, cotangents).items():
        assert_near(found[name], gradient, name, epsilon_of(case))


@pytest.mark.parametrize("wanted", [("c",), ("a_log",), ("drive", "phase"), ("initial_state",)])
def test_only_some_inputs(wanted: tuple[str, ...]) -> None:
    case = CASES[0]
    tensors = draw(case, 2, 9, 2)
    want_leaves = {n: wide(t).requires_grad_(n in wanted) for n, t in tensors.items()}
    leaves = {n: t.clone().requires_grad_(n in wanted) for n, t in tensors.items()}
    want = expected(case, want_leaves)
    cotangents = cotangents_like(want)
    outputs = fused(case)(**leaves, output_final_state=True)
    found = gradients(outputs, leaves, cotangents)
    assert set(found) == set(wanted)
    for name, gradient in gradients(want, want_leaves, cotangents).items():
        assert_near(found[name], gradient, name, epsilon_of(case))


LOW = {
    "a_log": InputSpec("HN", torch.float32),
    "delta": InputSpec(dtype=torch.bfloat16),
    "phase": InputSpec(dtype=torch.float16),
    "c": InputSpec(dtype=torch.bfloat16, pairs=True),
}


def test_low_precision_is_read_and_written() -> None:
    """Computed in float32 from what the tensors hold, and rounded once where it is stored."""
    spec = ScanSpec(8, 3, payload_dtype=torch.bfloat16)
    case = replace(CASES[0], inputs=LOW, spec=spec)
    tensors = draw(case, 2, 9, 2)
    tensors["drive"] = torch.view_as_real(tensors["drive"]).to(torch.bfloat16)
    leaves = leaves_of(tensors)
    output, final = fused(case)(**leaves, output_final_state=True)
    assert (output.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    wide_leaves = leaves_of({name: wide(tensor) for name, tensor in tensors.items()})
    complex_ = wide_leaves | {"drive": torch.view_as_complex(wide_leaves["drive"])}
    want, want_final = expected(case, complex_)
    rounding = torch.finfo(torch.bfloat16).eps
    error = (output.double() - want).abs()
    assert (error <= rounding * want.abs() + TOLERANCE * epsilon_of(case)).all()
    assert_near(torch.view_as_complex(final), want_final, "final", epsilon_of(case))
    cotangent = cotangents_like((output,))
    found = gradients((output,), leaves, cotangent)
    for name, gradient in gradients((want,), wide_leaves, cotangent).items():
        stored = torch.finfo(tensors[name].dtype).eps
        assert found[name].dtype == tensors[name].dtype
        scale = gradient.abs().max()
        error = (wide(found[name]) - gradient).abs()
        bound = stored * gradient.abs() + TOLERANCE * epsilon_of(case) * scale
        assert (error <= bound).all(), name


def test_nothing_complex_is_kept_but_inputs() -> None:
    case = CASES[0]
    tensors = leaves_of(draw(case, 2, 40, 3))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output, _ = fused(case)(**tensors)
    given = {tensor.data_ptr() for tensor in tensors.values()}
    others = [tensor for tensor in kept if tensor.data_ptr() not in given]
    assert kept
    # Ten segments of four tokens: a state before each of them, and two places of zeros.
    assert [list(tensor.shape) for tensor in others] == [[2, 12, 3, 8]]
    assert sum(tensor.numel() for tensor in others) == 12 * output[:, 0].numel()


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
def test_nothing_complex_is_alive_but_inputs(case: Expressions) -> None:
    """Whoever holds it: also what an operator keeps beside what autograd knows of."""
    tensors = leaves_of(draw(case, 2, 40, 3))
    scan = fused(case)

    def complex_memories() -> set[int]:
        gc.collect()
        # Of this type alone: other tests leave tensors without memory, which are of others.
        found = (each for each in gc.get_objects() if type(each) is torch.Tensor)
        here = (each for each in found if each.device.type == "cpu" and each.is_complex())
        large = (each for each in here if each.numel() >= tensors["drive"].numel())
        return {each.untyped_storage().data_ptr() for each in large}

    before = complex_memories()
    output, _ = scan(**tensors)
    assert output.requires_grad
    results = {output.untyped_storage().data_ptr()}
    assert complex_memories() - before - results == set()
    # States are what a call without a read-out is for.
    assert output.is_complex() is (case.readout is None)


def test_expanded_and_strided_inputs_are_read_as_they_are() -> None:
    case = CASES[2]
    dense = draw(case, 2, 9, 3)
    views = dict(dense)
    views["drive"] = dense["drive"].transpose(1, 2).contiguous().transpose(1, 2)
    dense["a"] = dense["a"][:1, :1].expand(dense["a"].shape).contiguous()
    views["a"] = dense["a"][:1, :1].expand(dense["a"].shape)
    scan = fused(case)
    for mine, theirs in zip(scan(**views), scan(**dense), strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)
    leaf = views["a"][:1, :1].clone().requires_grad_()
    found = [leaf.expand(dense["a"].shape), dense["a"].clone().requires_grad_()]
    sums = []
    for a, wrt in zip(found, (leaf, found[1]), strict=True):
        (gradient,) = torch.autograd.grad(scan(**views | {"a": a})[0].sum(), wrt)
        sums.append(gradient.sum((0, 1)))
    torch.testing.assert_close(*sums)


def test_complex_numbers_as_pairs() -> None:
    case = CASES[0]
    tensors = draw(case, 2, 9, 2)
    want = fused(case)(**tensors, output_final_state=True)
    pairs = {n: torch.view_as_real(t) if t.is_complex() else t for n, t in tensors.items()}
    got = fused(case)(**pairs, output_final_state=True)
    assert torch.equal(got[0], want[0])
    assert torch.equal(torch.view_as_complex(got[1]), want[1])
    leaves = leaves_of(pairs)
    fused(case)(**leaves)[0].sum().backward()
    assert all(leaf.grad is not None for n, leaf in leaves.items() if leaf.requires_grad)


@pytest.mark.parametrize(
    ("case", "dynamic", "segment_length"),
    [
        (CASES[0], False, SEGMENT),
        (CASES[1], True, None),
        pytest.param(CASES[0], True, None, marks=pytest.mark.stress),
        pytest.param(CASES[1], False, SEGMENT, marks=pytest.mark.stress),
    ],
    ids=str,
)
def test_under_torch_compile(case: Expressions, dynamic: bool, segment_length: int | None) -> None:
    torch._dynamo.reset()
    scan = fused(case, segment_length=segment_length if case.readout else None)
    wrapped = torch.compile(
        lambda **tensors: scan(**tensors, output_final_state=True),
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    for length in (9, 6):
        tensors = draw(case, 2, length, 2)
        with torch.no_grad():
            for mine, theirs in zip(wrapped(**tensors), scan(**tensors), strict=False):
                assert theirs is None or torch.equal(mine, theirs)
        found = []
        for function in (wrapped, lambda **t: scan(**t, output_final_state=True)):
            leaves = leaves_of(tensors)
            outputs = function(**leaves)
            found.append(gradients(outputs, leaves, cotangents_like(outputs)))
        for name, gradient in found[0].items():
            assert torch.equal(gradient, found[1][name]), name


def test_what_it_shows() -> None:
    scan = fused(CASES[0], initial_state=False)
    assert isinstance(scan, FusedScan)
    assert "softplus %in_delta_" in str(scan.program)
    assert [out.name for out in scan.program.token_outputs] == ["readout"]
    assert set(scan.kernels) == {"forward", "segment", "replay", "backward"}
    assert scan.kernels["replay"].program == scan.segment_adjoint.replay
    assert scan.kernels["segment"].program == scan.segments.forward
    assert scan.adjoint == scan.segment_adjoint.adjoint
    assert "T.exp" in scan.source.text
    assert [line.partition(":")[0] for line in scan.explain().splitlines()] == list(scan.kernels)
    assert "inputs=(delta, phase, a_log, c)" in repr(scan)
    assert scan.inputs["a_log"] == InputSpec("HN")
    states = fused(CASES[1])
    assert set(states.kernels) == {"forward", "backward"}
    assert states.adjoint.forward == states.program


def test_a_method_and_a_lambda_are_functions_too() -> None:
    class Model:
        rate = 0.5

        def diagonal(self, phase):  # type: ignore[no-untyped-def]
            return self.rate * torch.polar(torch.ones_like(phase), phase)

    model, spec = Model(), ScanSpec(3, map_source="none")
    scan = compile(spec, "cpu", diagonal=model.diagonal, readout=lambda x: x.imag)
    phase, drive = torch.randn(1, 4, 2, 3), torch.randn(1, 4, 2, 3, dtype=torch.complex64)
    want, _ = reference.pd_scan(model.diagonal(phase), drive)
    torch.testing.assert_close(scan(drive=drive, phase=phase)[0], want.imag)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_template_of_ones_own(case: Expressions) -> None:
    scan = fused(case, config="torch-chunks")
    assert {k.schedule.template.name for k in scan.kernels.values()} == {"torch-chunks"}
    assert_agrees(case, scan, draw(case, 2, 11, 2))


def test_the_functions_run_on_tensors_as_they_are() -> None:
    """The oracle is no second text of the expression."""
    assert CASES[0].diagonal is discretised
    delta = torch.tensor([0.3])
    found = discretised(delta, torch.zeros(1), torch.zeros(1))
    torch.testing.assert_close(found.real, torch.sigmoid(-delta))
