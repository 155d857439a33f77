"""Fused scans that take logits: values, and gradients of both logits by either surrogate.

Held to ``reference.flash_pd_scan`` with the expressions around it, in double precision, by the
bound of :mod:`tests.public.test_fusion`.
"""

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from pdssm_compiler import (
    ArgumentError,
    InputSpec,
    NanLogitError,
    PromiseError,
    ScanSpec,
    TraceError,
    compile,
    reference,
)
from pdssm_compiler.runtime.choices import hard_choice
from tests.expressions import CASES, Expressions, Tensors, draw, wide
from tests.kernels import examples
from tests.public.packed import offsets
from tests.public.test_fusion import (
    LOW,
    assert_near,
    cotangents_like,
    double,
    epsilon_of,
    fused,
    gradients,
    leaves_of,
)

LOGITS = ("dictionary_logits", "selector_logits")
TOKENS = "torch-tokens"
SURROGATE = st.sampled_from(("active", "dense"))


def variant(number: int, name: str, **changed: Any) -> Expressions:
    """A case whose maps are of a dictionary."""
    case = CASES[number]
    options = {"dictionary_size": 3, "map_source": "dictionary", "map_class": "general"}
    return replace(case, name=name, spec=replace(case.spec, **options | changed))


READ_OUT = CASES[0]
ROW = variant(0, "row", orientation="row")
STATES = variant(1, "states, row", orientation="row")
ODD = variant(2, "odd, one map", dictionary_size=1)
ONE_STATE = variant(5, "one state", state_size=1)
EVERY = (double(READ_OUT), double(ROW), STATES, ODD, ONE_STATE)


def logits_for(case: Expressions, *sizes: int, seed: int = 0) -> Tensors:
    """Every tensor of a call, logits in the place of maps and selection."""
    tensors = draw(case, *sizes, seed)
    del tensors["dictionary"], tensors["selection"]
    random = torch.Generator().manual_seed(seed + 1)
    batch, length, heads = sizes
    n, size, real = case.spec.state_size, case.spec.dictionary_size, case.spec.dtype.to_real()
    shapes = (heads, size, n, n), (batch, length, heads, size)
    for name, shape in zip(LOGITS, shapes, strict=True):
        tensors[name] = torch.randn(shape, dtype=real, generator=random)
    return tensors


def defined(case: Expressions, tensors: Tensors, **options: Any) -> tuple[torch.Tensor, ...]:
    """Output and final state, by the case's functions on tensors and the reference."""
    names = {each.name for each in case.traced.inputs}
    rest = {name: tensor for name, tensor in tensors.items() if name not in names}
    if case.diagonal is not None:
        parameters = inspect.signature(case.diagonal).parameters
        found = case.diagonal(*(tensors[name] for name in parameters))
        rest["diagonal"] = found.to(rest["drive"].dtype).expand(rest["drive"].shape)
    states, final = reference.flash_pd_scan(
        **rest, **options, orientation=case.spec.orientation, output_final_state=True
    )
    if case.readout is None:
        return states, final
    parameters = list(inspect.signature(case.readout).parameters)[1:]
    return case.readout(states, *(tensors[name] for name in parameters)), final


def assert_as_defined(case: Expressions, scan: Any, tensors: Tensors, **options: Any) -> None:
    """Values without and with gradients, and the gradients of everything."""
    right = leaves_of({name: wide(tensor) for name, tensor in tensors.items()})
    want = defined(case, right, **options)
    cotangents = cotangents_like(want)
    want_gradients = gradients(want, right, cotangents)
    leaves = leaves_of(tensors)
    plain = scan(**tensors, **options, output_final_state=True)
    outputs = scan(**leaves, **options, output_final_state=True)
    for found in (plain, outputs):
        for got, value in zip(found, want, strict=True):
            assert_near(got, value, "value", epsilon_of(case))
    found = gradients(outputs, leaves, cotangents)
    assert set(LOGITS) < set(found)
    for name, gradient in found.items():
        assert gradient.dtype == tensors[name].dtype
        assert_near(gradient, want_gradients[name], f"gradient of {name}", epsilon_of(case))


@pytest.mark.parametrize("case", EVERY, ids=str)
@settings(max_examples=examples(4))
@given(
    sizes=st.tuples(st.integers(1, 2), st.sampled_from((0, 1, 3, 4, 5, 9)), st.integers(1, 3)),
    surrogate=SURROGATE,
    temperature=st.sampled_from((1.0, 0.5, torch.tensor(3.0))),
    seed=st.integers(0, 999),
)
def test_as_defined(
    case: Expressions,
    sizes: tuple[int, int, int],
    surrogate: str,
    temperature: Any,
    seed: int,
) -> None:
    """No token, one, less than a segment, whole segments and a rest."""
    scan = fused(case, config=TOKENS)
    tensors = logits_for(case, *sizes, seed=seed)
    assert_as_defined(case, scan, tensors, surrogate=surrogate, temperature=temperature)


@pytest.mark.parametrize("surrogate", ["active", "dense"])
@pytest.mark.parametrize("length", [1, 7, 1000, None])
def test_segments_of_any_length(length: int | None, surrogate: str) -> None:
    case = double(READ_OUT)
    scan = fused(case, config=TOKENS, segment_length=length)
    assert_as_defined(case, scan, logits_for(case, 2, 15, 2), surrogate=surrogate)


@pytest.mark.parametrize("surrogate", ["active", pytest.param("dense", marks=pytest.mark.stress)])
def test_by_the_kernels_that_users_get(surrogate: str) -> None:
    """And the same bit by bit every time, sums over segments included."""
    case, scan = READ_OUT, fused(READ_OUT)
    tensors = logits_for(case, 2, 61, 3)
    assert_as_defined(case, scan, tensors, surrogate=surrogate)
    runs = []
    for _ in range(3):
        leaves = leaves_of(tensors)
        outputs = scan(**leaves, surrogate=surrogate, output_final_state=True)
        runs.append([*outputs, *gradients(outputs, leaves, cotangents_like(outputs)).values()])
    for run in runs[1:]:
        for mine, first in zip(run, runs[0], strict=True):
            assert torch.equal(mine, first)


def test_it_chooses_as_integers_say() -> None:
    """Ties go to the lowest index; a call of integers in their place gives the same bits."""
    scan, tensors = fused(READ_OUT, config=TOKENS), logits_for(READ_OUT, 2, 9, 2)
    tensors["selector_logits"][0] = 0
    tensors["dictionary_logits"][0] = 0
    integers = {name: tensor for name, tensor in tensors.items() if name not in LOGITS}
    tau = torch.ones(())
    for name, logits, dim in zip(("dictionary", "selection"), LOGITS, (-2, -1), strict=True):
        integers[name] = hard_choice(tensors[logits], dim, tau, logits)[1]
    assert not integers["selection"][0].any()
    want = scan(**integers, output_final_state=True)
    for mine, theirs in zip(scan(**tensors, output_final_state=True), want, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("names", [LOGITS[:1], LOGITS[1:], ("c",), (LOGITS[1], "drive")])
@pytest.mark.parametrize("surrogate", ["active", "dense"])
def test_only_some_gradients(names: tuple[str, ...], surrogate: str) -> None:
    case = double(READ_OUT)
    tensors = logits_for(case, 2, 6, 2)
    right = {n: wide(t).clone().requires_grad_(n in names) for n, t in tensors.items()}
    leaves = {n: t.clone().requires_grad_(n in names) for n, t in tensors.items()}
    want = defined(case, right, surrogate=surrogate)
    cotangents = cotangents_like(want)
    outputs = fused(case, config=TOKENS)(**leaves, surrogate=surrogate, output_final_state=True)
    found = gradients(outputs, leaves, cotangents)
    assert set(found) == set(names)
    for name, gradient in gradients(want, right, cotangents).items():
        assert_near(found[name], gradient, name, epsilon_of(case))


@pytest.mark.parametrize("surrogate", ["active", "dense"])
def test_nothing_complex_is_kept_but_inputs(surrogate: str) -> None:
    case = READ_OUT
    tensors = leaves_of(logits_for(case, 2, 40, 3))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fused(case, config=TOKENS)(**tensors, surrogate=surrogate)
    given = {tensor.data_ptr() for tensor in tensors.values()}
    others = [tensor for tensor in kept if tensor.data_ptr() not in given]
    numbers = [t for t in others if t.is_complex() or t.is_floating_point()]
    # A state before each of ten segments, and the temperature; the rest are places.
    shapes = sorted(list(tensor.shape) for tensor in numbers)
    assert [shape for shape in shapes if shape] == [[2, 12, 3, 8]]
    assert {t.dtype for t in others} == {torch.complex64, torch.float32, torch.int32}


@pytest.mark.parametrize("surrogate", ["active", "dense"])
@pytest.mark.parametrize("case", [READ_OUT, STATES], ids=str)
def test_packed_is_separate(case: Expressions, surrogate: str) -> None:
    """With initial states, and segments that cut sequences."""
    lengths, case = (3, 0, 1, 7), double(case)
    scan = fused(case, config=TOKENS)
    tensors = logits_for(case, 1, sum(lengths), 2)
    start = draw(case, len(lengths), 1, 2, 5)["initial_state"]
    tensors["initial_state"] = start
    heads = {name for name, spec in case.inputs.items() if spec.axes in ("HN", "H")}
    heads |= {LOGITS[0], "initial_state"}
    at, found = offsets(lengths).tolist(), []
    for packed in (True, False):
        leaves = leaves_of(tensors)
        if packed:
            output, _ = scan(**leaves, surrogate=surrogate, cu_seqlens=offsets(lengths))
        else:
            parts = []
            for number in range(len(lengths)):
                cut = slice(at[number], at[number + 1])
                given = {n: x if n in heads else x[:, cut] for n, x in leaves.items()}
                given["initial_state"] = leaves["initial_state"][number : number + 1]
                parts.append(scan(**given, surrogate=surrogate)[0])
            output = torch.cat(parts, 1)
        grads = gradients((output,), leaves, cotangents_like((output,)))
        found.append([output.detach(), *(grads[name] for name in sorted(grads))])
    for mine, theirs in zip(*found, strict=True):
        assert_near(mine, theirs, "packed", epsilon_of(case))


@pytest.mark.parametrize("surrogate", ["active", "dense"])
def test_low_precision(surrogate: str) -> None:
    """Logits, payload and inputs; gradients of what is stored in them are rounded once."""
    case = replace(READ_OUT, inputs=LOW, spec=ScanSpec(8, 3, payload_dtype=torch.bfloat16))
    tensors = logits_for(case, 2, 9, 2)
    tensors["drive"] = torch.view_as_real(tensors["drive"]).bfloat16()
    tensors |= {name: tensors[name].bfloat16() for name in LOGITS}
    leaves = leaves_of(tensors)
    output, _ = fused(case, config=TOKENS)(**leaves, surrogate=surrogate)
    right = leaves_of({name: wide(tensor) for name, tensor in tensors.items()})
    pairs = {name: torch.view_as_complex(right[name]) for name in ("drive", "c")}
    want = defined(case, right | pairs, surrogate=surrogate)[:1]
    cotangent = cotangents_like((output,))
    found = gradients((output,), leaves, cotangent)
    for name, gradient in gradients(want, right, cotangent).items():
        stored = torch.finfo(tensors[name].dtype).eps
        assert found[name].dtype == tensors[name].dtype
        bound = stored * gradient.abs() + 512 * epsilon_of(case) * gradient.abs().max()
        assert ((wide(found[name]) - gradient).abs() <= bound).all(), name


@pytest.mark.parametrize(
    "case", [READ_OUT, pytest.param(STATES, marks=pytest.mark.stress)], ids=str
)
def test_torch_compile_once_for_every_length(case: Expressions) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    scan = fused(case, config=TOKENS)

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(selector_logits: torch.Tensor, **more: torch.Tensor) -> Any:
        return scan(
            selector_logits=selector_logits * 2, **more, temperature=0.5, output_final_state=True
        )

    for length in (9, 6):
        tensors = logits_for(case, 3, length, 2)
        found = []
        for function in (run, run._torchdynamo_orig_callable):
            leaves = leaves_of(tensors)
            outputs = function(**leaves)
            found.append(gradients(outputs, leaves, cotangents_like(outputs)))
        torch.testing.assert_close(*found)
    assert counter.frame_count == 1


def test_maps_keep_the_promise() -> None:
    """Of permutations; logits that choose others are refused as integers are."""
    case = variant(2, "permutations", map_class="permutation")
    scan, tensors = fused(case, config=TOKENS), logits_for(case, 2, 9, 2)
    with pytest.raises(PromiseError, match=r"dictionary\[.* is not the permutation"):
        scan(**tensors)
    n = case.spec.state_size
    places = torch.rand(2, 3, n).argsort(-1)
    tensors[LOGITS[0]].scatter_(2, places[:, :, None], 9.0)
    assert_as_defined(case, scan, tensors)


@pytest.mark.parametrize("name", LOGITS)
def test_a_nan_is_an_error_at_once(name: str) -> None:
    tensors = logits_for(READ_OUT, 2, 9, 2)
    tensors[name][1, 2, 1, 2] = float("nan")
    place = {"dictionary_logits": "[1, 2, :, 2]", "selector_logits": "[1, 2, 1, :]"}[name]
    with pytest.raises(NanLogitError) as caught:
        fused(READ_OUT, config=TOKENS)(**leaves_of(tensors))
    assert str(caught.value).startswith(f"{name}{place} has a NaN, so nothing can be chosen")


N, K = READ_OUT.spec.state_size, READ_OUT.spec.dictionary_size
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "half": ({LOGITS[0]: None}, "dictionary_logits is missing: maps are chosen by dictionary_lo"),
    "other half": (
        {LOGITS[1]: None},
        "selector_logits is missing: .* or dictionary and selection",
    ),
    "both": (
        {"selection": torch.zeros(2, 9, 2, dtype=torch.int32)},
        "choose dictionary and selection; pass the logits or the integers",
    ),
    "surrogate": ({"surrogate": "soft"}, "surrogate must be one of 'active', 'dense'; got 'soft'"),
    "temperature": ({"temperature": -1}, "temperature must be a positive number, got -1"),
    "no tensor": ({LOGITS[1]: 3}, "selector_logits must be a torch.Tensor, got int"),
    "tokens": (
        {LOGITS[1]: torch.zeros(2, 8, 2, K)},
        r"selector_logits must have the shape \[B, T, H, K\] = \[2, 9, 2, 3\], got",
    ),
    "states": (
        {LOGITS[0]: torch.zeros(2, K, N + 1, N + 1)},
        r"dictionary_logits must have the shape \[H, K, N, N\] = \[2, 3, 8, 8\], got",
    ),
    "K": (
        {LOGITS[0]: torch.zeros(2, 4, N, N), LOGITS[1]: torch.zeros(2, 9, 2, 4)},
        "the tensors have dictionary_size 4, but the scan was compiled for 3",
    ),
    "no logits": (
        {LOGITS[0]: None, LOGITS[1]: None, "temperature": 0.5},
        "temperature and surrogate are of logits; pass dictionary_logits and selector_logits",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_is_refused(case: tuple[dict[str, Any], str]) -> None:
    changed, message = case
    with pytest.raises(ArgumentError, match=message):
        fused(READ_OUT, config=TOKENS)(**logits_for(READ_OUT, 2, 9, 2) | changed)


def test_maps_of_tokens_have_no_logits() -> None:
    case = CASES[1]
    tensors = draw(case, 2, 9, 2) | logits_for(STATES, 2, 9, 2)
    del tensors["destination"]
    with pytest.raises(ArgumentError, match="map_source 'dictionary', but the scan was compiled"):
        fused(case, config=TOKENS)(**tensors)


@pytest.mark.parametrize("name", [*LOGITS, "temperature", "surrogate", "reverse", "cu_seqlens"])
def test_names_that_are_the_scans_own(name: str) -> None:
    function = eval(f"lambda {name}: {name}")
    with pytest.raises(TraceError, match=f"parameter {name}, which is the scan's own; rename"):
        compile(ScanSpec(3, 2), "cpu", diagonal=function, inputs={name: InputSpec()})
