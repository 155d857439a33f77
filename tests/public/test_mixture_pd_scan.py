"""``mixture_pd_scan``: states by the maps that mixtures choose, and the gradients of both."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from pdssm_compiler import ArgumentError, NanLogitError, mixture_pd_scan, pd_scan, reference
from pdssm_compiler.runtime.mixture import mixed_map, mixed_scan, mixture_gradient
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.public.packed import offsets
from tests.torch_only import torch_only

NAMES = ("dictionary_logits", "mixture_weights", "diagonal", "drive", "initial_state")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def templates(request: pytest.FixtureRequest) -> Iterator[None]:
    """Generated PyTorch, whose many small programs need no compiler; a test that asks for
    ``kernels`` runs those that users get on a CPU.
    """
    if "kernels" in request.fixturenames:
        yield
    else:
        with torch_only(TorchTokens()):
            yield


@pytest.fixture
def kernels() -> None:
    """See above."""


def tensors(
    batch: int = 2,
    length: int = 5,
    heads: int = 3,
    n: int = 6,
    entries: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    states: int | None = None,
) -> Tensors:
    """A call's tensors; as many initial states as there are sequences."""
    random = torch.Generator().manual_seed(seed)
    numbers = {"dtype": dtype, "generator": random}
    complex_ = {"dtype": dtype.to_complex(), "generator": random}
    return {
        "dictionary_logits": torch.randn(heads, entries, n, n, **numbers),
        "mixture_weights": torch.randn(batch, length, heads, entries, **numbers).softmax(-1),
        "diagonal": torch.randn(batch, length, heads, n, **complex_) * 0.6,
        "drive": torch.randn(batch, length, heads, n, **complex_),
        "initial_state": torch.randn(states or batch, heads, n, **complex_),
    }


def results(function: Any, given_: Tensors, **options: Any) -> Tensors:
    """States, final state and every gradient for some that arrive."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in given_.items()}
    states, final = function(**leaves, **options, output_final_state=True)
    random = torch.Generator().manual_seed(1)
    arriving = [
        torch.randn(
            each.shape, dtype=torch.promote_types(each.dtype, torch.float64), generator=random
        ).to(each.device, each.dtype)
        for each in (states, final)
    ]
    found = torch.autograd.grad(
        [states, final], list(leaves.values()), arriving, allow_unused=True, materialize_grads=True
    )
    return {"states": states, "final": final, **dict(zip(leaves, found, strict=True))}


def assert_as_the_reference(given_: Tensors, **options: Any) -> None:
    got = results(mixture_pd_scan, given_, **options)
    want = results(reference.mixture_pd_scan, given_, **options)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=name)


@settings(max_examples=10)
@given(
    st.sampled_from((1, 5)),
    st.integers(1, 3),
    st.sampled_from((1, 2, 6)),
    st.sampled_from((1, 3)),
    st.sampled_from(("column", "row")),
    st.booleans(),
    st.sampled_from((0.3, 1.0, 4)),
)
def test_values_and_gradients(
    length: int, heads: int, n: int, entries: int, orientation: str, reverse: bool, tau: float
) -> None:
    given_ = tensors(2, length, heads, n, entries)
    assert_as_the_reference(given_, orientation=orientation, reverse=reverse, temperature=tau)


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed(orientation: str, reverse: bool) -> None:
    given_ = tensors(1, 7, states=4)
    options = {"orientation": orientation, "reverse": reverse, "cu_seqlens": offsets([3, 0, 1, 3])}
    assert_as_the_reference(given_, **options)


def test_one_dictionary_and_one_mixture_for_all_heads() -> None:
    given_ = tensors()
    shared = {
        "dictionary_logits": given_["dictionary_logits"][0],
        "mixture_weights": given_["mixture_weights"][:, :, 0],
    }
    assert_as_the_reference({**given_, **shared})
    one = results(mixture_pd_scan, {**given_, **shared})
    assert one["dictionary_logits"].shape == (4, 6, 6)
    assert one["mixture_weights"].shape == (2, 5, 4)


@pytest.mark.parametrize("shared", ["dictionary_logits", "mixture_weights"])
def test_one_of_both_for_all_heads(shared: str) -> None:
    """Its gradient is the sum over the heads'."""
    given_ = tensors()
    axis = 0 if shared == "dictionary_logits" else 2
    one = given_[shared].select(axis, 0)
    got = results(mixture_pd_scan, {**given_, shared: one})
    of_each = one.unsqueeze(axis).repeat_interleave(3, axis)
    want = results(mixture_pd_scan, {**given_, shared: of_each})
    want[shared] = want[shared].sum(axis)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_draws_the_same_noise(use_reentrant: bool) -> None:
    def noisy(**given_: Any) -> Any:
        torch.manual_seed(4)
        return mixture_pd_scan(**given_, noise=0.5)

    def again(output_final_state: bool, **given_: torch.Tensor) -> Any:
        def run(*each: torch.Tensor) -> Any:
            named = dict(zip(given_, each, strict=True))
            return mixture_pd_scan(**named, noise=0.5, output_final_state=output_final_state)

        torch.manual_seed(4)
        return checkpoint(run, *given_.values(), use_reentrant=use_reentrant)

    given_ = tensors()
    leaves = [{k: v.clone().requires_grad_() for k, v in given_.items()} for _ in range(2)]
    for function, each in zip((noisy, again), leaves, strict=True):
        states, final = function(**each, output_final_state=True)
        (states.abs().sum() + final.abs().sum()).backward()
    for name in given_:
        assert torch.equal(leaves[0][name].grad, leaves[1][name].grad), name


def in_float64(given_: Tensors, orientation: str) -> Tensors:
    """The same tensors in float64, where they choose the same maps."""
    wide = {
        name: each.to(torch.promote_types(each.dtype, torch.float64))
        for name, each in given_.items()
    }
    maps = [
        mixed_map(each["mixture_weights"], each["dictionary_logits"], [], orientation)
        for each in (given_, wide)
    ]
    assert torch.equal(*maps)
    return wide


@pytest.mark.parametrize(
    ("n", "entries", "orientation"),
    [(128, 8, "column"), (128, 8, "row"), (64, 6, "column"), (64, 6, "row")],
)
def test_float32(n: int, entries: int, orientation: str, kernels: None) -> None:
    """Given its maps, which are float32's own; of the published sizes."""
    given_ = tensors(n=n, entries=entries, dtype=torch.float32)
    got = results(mixture_pd_scan, given_, orientation=orientation)
    wide = in_float64(given_, orientation)
    want = results(reference.mixture_pd_scan, wide, orientation=orientation)
    for name, value in want.items():
        torch.testing.assert_close(got[name].to(value.dtype), value, rtol=1e-4, atol=1e-4)


@pytest.mark.stress
@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("plain", [False, True])
def test_the_states_of_a_large_layer(orientation: str, plain: bool, kernels: None) -> None:
    """By TVM and by plain PyTorch: the layer of 5632 has 2816."""
    given_ = tensors(1, 3, 1, 2816, 2, torch.float32)
    with torch_only(TorchTokens()) if plain else nullcontext():
        got = results(mixture_pd_scan, given_, orientation=orientation)
    wide = {
        name: each.to(torch.promote_types(each.dtype, torch.float64))
        for name, each in given_.items()
    }
    want = results(reference.mixture_pd_scan, wide, orientation=orientation)
    for name, value in want.items():
        off = (got[name].to(value.dtype) - value).abs().max()
        # A weight's gradient is a sum of N² numbers, whose roundings come to N of them.
        assert off <= 2816 * torch.finfo(torch.float32).eps * value.abs().max(), name


def test_low_precision_payload_and_logits() -> None:
    given_ = tensors(dtype=torch.float32)
    given_["drive"] = torch.view_as_real(given_["drive"]).bfloat16()
    given_["dictionary_logits"] = given_["dictionary_logits"].bfloat16()
    got = results(mixture_pd_scan, {k: v for k, v in given_.items() if k != "initial_state"})
    wide = {**given_, "dictionary_logits": given_["dictionary_logits"].float()}
    del wide["initial_state"]
    want = results(reference.mixture_pd_scan, wide)
    assert got["states"].dtype == torch.bfloat16
    assert got["dictionary_logits"].dtype == torch.bfloat16
    for name in ("states", "mixture_weights"):
        torch.testing.assert_close(got[name].float(), want[name].float(), rtol=0.05, atol=0.05)


def test_without_gradients_it_is_pd_scan_by_the_maps() -> None:
    given_ = tensors()
    maps = mixed_map(given_["mixture_weights"], given_["dictionary_logits"], [], "column")
    scan = {name: given_[name] for name in ("diagonal", "drive", "initial_state")}
    want, _ = pd_scan(**scan, destination=maps)
    assert torch.equal(mixture_pd_scan(**given_)[0], want)


@pytest.mark.parametrize("batch", [0, 1])
def test_nothing_to_scan(batch: int) -> None:
    given_ = tensors(batch, 0)
    got = results(mixture_pd_scan, given_)
    assert got["states"].shape == (batch, 0, 3, 6)
    assert (got["dictionary_logits"] == 0).all()
    drive = given_["drive"].requires_grad_()
    for choice in ("hard", "soft"):
        states, _ = mixture_pd_scan(**given_ | {"drive": drive}, choice=choice)
        (gradient,) = torch.autograd.grad(states.abs().sum(), drive)
        assert gradient.shape == (batch, 0, 3, 6)


def test_what_the_messages_say_instead_is_there() -> None:
    """Forward mode and second derivatives of the reference's."""
    given_ = tensors()
    dictionary = given_.pop("dictionary_logits")

    def loss(each: torch.Tensor) -> torch.Tensor:
        return reference.mixture_pd_scan(each, **given_)[0].abs().square().sum()

    along = torch.randn_like(dictionary)
    gradient = torch.func.grad(loss)
    _, by_forward = torch.func.jvp(loss, (dictionary,), (along,))
    torch.testing.assert_close(by_forward, (gradient(dictionary) * along).sum())
    _, second = torch.func.jvp(gradient, (dictionary,), (along,))
    assert second.isfinite().all()
    assert (second != 0).any()


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_opcheck(orientation: str) -> None:
    given_ = tensors(1, 3, 2, 4, 2)
    weights, dictionary = given_["mixture_weights"], given_["dictionary_logits"]
    tau = torch.tensor(0.7, dtype=torch.float64)
    maps = mixed_map(weights, dictionary, [], orientation)
    noise = [tau, torch.tensor([3]), torch.arange(6).view(1, 3, 2)]
    sides = (torch.randn(1, 3, 2, 4, dtype=torch.complex128) for _ in range(2))
    checked = [
        (mixed_map, (weights, dictionary, noise, orientation)),
        (mixture_gradient, (weights, dictionary, tau, noise, maps, *sides, orientation)),
    ]
    from pdssm_compiler.arguments import read_call

    for grad in (False, True):
        leaves = [each.clone().requires_grad_(grad) for each in (weights, dictionary)]
        call = read_call(
            given_["diagonal"],
            given_["drive"].requires_grad_(grad),
            None,
            None,
            maps,
            "general",
            orientation,
            None,
            False,
        )
        checked.append(
            (mixed_scan, (call.text, call.tensors, *leaves, tau, noise, orientation, ""))
        )
    for op, arguments in checked:
        assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}


def test_torch_compile_once_for_every_length() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixture_pd_scan, fullgraph=True, dynamic=True, backend=counter)
    frames = set()
    for batch, length in ((2, 5), (5, 9), (7, 11)):
        given_ = tensors(batch, length)
        got, want = results(compiled, given_), results(mixture_pd_scan, given_)
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, msg=name)
        # The first call may be traced twice.
        frames.add(counter.frame_count)
    assert len(frames) == 1


def test_autocast_changes_nothing() -> None:
    given_ = tensors(dtype=torch.float32)
    want = results(mixture_pd_scan, given_)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(mixture_pd_scan, given_)
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_repeatable() -> None:
    given_ = tensors(dtype=torch.float32)
    first, second = (results(mixture_pd_scan, given_) for _ in range(2))
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_nothing_quadratic_is_kept() -> None:
    """Between forward and backward: nothing of ``T × N × N`` numbers."""
    kept: list[int] = []
    given_ = {name: each.requires_grad_() for name, each in tensors(2, 50, 1, 8, 2).items()}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        mixture_pd_scan(**given_)
    assert kept
    assert max(kept) <= 2 * 50 * 8


def test_a_nan_is_reported() -> None:
    given_ = tensors()
    given_["mixture_weights"][1, 2, 0, 0] = float("nan")
    with pytest.raises(NanLogitError, match=r"at token \[1, 2\] of head 0 has a NaN"):
        mixture_pd_scan(**given_)


def test_without_tvm_it_is_plain_torch(kernels: None) -> None:
    given_ = tensors()
    want = results(mixture_pd_scan, given_)
    with torch_only(TorchTokens()):
        got = results(mixture_pd_scan, given_)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_transforms_are_refused() -> None:
    given_ = tensors()
    weights, dictionary = given_["mixture_weights"], given_["dictionary_logits"]
    with pytest.raises(ArgumentError, match="cannot be mapped by vmap"):
        torch.vmap(lambda w: mixed_map(w, dictionary, [], "column"))(weights[None])
    with pytest.raises(ArgumentError, match=r"cannot be differentiated by torch\.func"):
        torch.func.grad(
            lambda w: mixture_pd_scan(**{**given_, "mixture_weights": w})[0].abs().sum()
        )(weights)


def test_a_second_derivative_is_refused() -> None:
    leaves = {name: each.requires_grad_() for name, each in tensors().items()}
    states, _ = mixture_pd_scan(**leaves)
    weights = leaves["mixture_weights"]
    (first,) = torch.autograd.grad(states.abs().sum(), weights, create_graph=True)
    with pytest.raises(ArgumentError, match=r"has no gradient .*reference\.mixture_pd_scan"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dictionary_logits": torch.zeros(3, 4, 6, 5)}, "with K and N of at least 1"),
        ({"dictionary_logits": torch.zeros(2, 4, 6, 6)}, r"\[H, K, N, N\] = \[3, 4, 6, 6\]"),
        (
            {"mixture_weights": torch.zeros(2, 5, 3, 3)},
            "are of 3 maps and dictionary_logits hold 4",
        ),
        ({"mixture_weights": torch.zeros(2, 4, 3, 4)}, r"\[B, T, H, K\] = \[2, 5, 3, 4\]"),
        ({"mixture_weights": torch.zeros(2, 5, 3, 4).int()}, "unsupported dtype torch.int32"),
        ({"mixture_weights": [1.0]}, "mixture_weights must be a torch.Tensor, got list"),
        ({"drive": 3}, r"drive must be a torch.Tensor \[B, T, H, N\]"),
        (
            {"diagonal": torch.zeros(2, 5, 3, 5, dtype=torch.complex128)},
            r"diagonal must have the shape \[B, T, H, N\] = \[2, 5, 3, 6\], .* agree with drive",
        ),
        (
            {"initial_state": torch.zeros(1, 3, 6, dtype=torch.complex128)},
            r"initial_state must have the shape \[B, H, N\] = \[2, 3, 6\], .* agree with drive",
        ),
        (
            {"drive": torch.zeros(2, 5, 3, 6, dtype=torch.complex128, device="meta")},
            "mixture_weights is on cpu and drive on meta",
        ),
        (
            {"drive": torch.zeros(1, 2, 5, 3, 6, dtype=torch.complex128)},
            r"drive must have the shape .* got \[1, 2, 5, 3, 6\] of torch.complex128",
        ),
        (
            {"diagonal": torch.zeros(1, 2, 5, 3, 6, dtype=torch.complex128)},
            r"diagonal must have the shape \[B, T, H, N\] for .* got \[1, 2, 5, 3, 6\]",
        ),
        (
            {"diagonal": torch.zeros(2, 5, 3, 6, dtype=torch.complex128, device="meta")},
            "diagonal is on meta and drive on cpu",
        ),
        (
            {"initial_state": torch.zeros(2, 3, 6, dtype=torch.complex128, device="meta")},
            "initial_state is on meta and drive on cpu",
        ),
        ({"temperature": torch.ones((), device="meta")}, "temperature is on meta"),
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"temperature": torch.ones(2)}, "temperature must be one real number"),
        ({"orientation": "up"}, "orientation"),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, Any], message: str) -> None:
    for choice in ("hard", "soft"):
        with pytest.raises(ArgumentError, match=message):
            mixture_pd_scan(**{**tensors(), **changed}, choice=choice)


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (0.0, "temperature must be a positive number"),
        (1e-50, r"temperature is 0 or infinite in torch\.float32"),
        (float("inf"), r"temperature is 0 or infinite in torch\.float32"),
    ],
)
def test_a_tensor_that_is_no_temperature_is_met_by_the_backward(
    temperature: float, message: str
) -> None:
    leaves = {name: each.requires_grad_() for name, each in tensors(dtype=torch.float32).items()}
    tau = torch.tensor(temperature, dtype=torch.float64)
    states, _ = mixture_pd_scan(**leaves, temperature=tau)
    with pytest.raises(ArgumentError, match=message):
        states.abs().sum().backward()
    with pytest.raises(ArgumentError, match=message):
        mixture_pd_scan(**leaves, temperature=tau, choice="soft")


def test_the_soft_scan_multiplies_by_softmaxes() -> None:
    """``choice="soft"``: near the hard one where the temperature is low."""
    given_ = tensors()
    hard, _ = mixture_pd_scan(**given_)
    soft, _ = reference.mixture_pd_scan(**given_, choice="soft", temperature=1e-8)
    torch.testing.assert_close(soft, hard, rtol=1e-6, atol=1e-6)
    warm, _ = reference.mixture_pd_scan(**given_, choice="soft", temperature=1.0)
    assert (warm - hard).abs().max() > 0.1


def test_noise_is_drawn_alike_in_choice_and_gradient() -> None:
    """The reference of the same noise, added to the mixture as one more entry of a token's own."""
    from pdssm_compiler.ir.ops.noise import gumbel_noise

    for orientation in ("column", "row"):
        given_ = tensors(2, 3, 2, 5, 3)
        draw = torch.arange(12).view(2, 3, 2)
        noise = torch.tensor(gumbel_noise(5, orientation, 7, draw.numpy()))
        options: dict[str, Any] = {"orientation": orientation, "temperature": 0.8}
        got = results(mixture_pd_scan, given_, **options, noise=0.8, seed=7)
        # As many entries more as there are tokens, each token's with weight one.
        own = torch.eye(12, dtype=torch.float64).view(2, 3, 2, 12)
        more = {
            **given_,
            "dictionary_logits": torch.cat(
                (given_["dictionary_logits"], 0.8 * noise.flatten(0, 2).expand(2, 12, 5, 5)), 1
            ),
            "mixture_weights": torch.cat((given_["mixture_weights"], own), -1),
        }
        want = results(mixture_pd_scan, more, **options)
        want["dictionary_logits"] = want["dictionary_logits"][:, :3]
        want["mixture_weights"] = want["mixture_weights"][..., :3]
        also = results(reference.mixture_pd_scan, given_, **options, noise=0.8, seed=7)
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-8, msg=name)
            torch.testing.assert_close(also[name], value, rtol=1e-8, atol=1e-8, msg=name)


def test_noise_that_is_no_number_is_told() -> None:
    wrong = torch.tensor(float("nan"), dtype=torch.float64)
    with pytest.raises(NanLogitError, match="look for what made it, noise, which is NaN itself"):
        mixture_pd_scan(**tensors(), noise=wrong)


def test_seeds() -> None:
    given_ = tensors()

    def states(**options: Any) -> torch.Tensor:
        return mixture_pd_scan(**given_, noise=1.0, **options)[0]

    assert torch.equal(states(seed=3), states(seed=torch.tensor(3)))
    assert not torch.equal(states(seed=3), states(seed=4))
    torch.manual_seed(5)
    first, second = states(), states()
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(states(), first)


def test_noise_draws_from_the_softmax() -> None:
    random = torch.Generator().manual_seed(0)
    table = torch.randn(1, 1, 4, 4, generator=random, dtype=torch.float64)
    weights = torch.ones(1, 20000, 1, 1, dtype=torch.float64)
    scale, seed = torch.tensor(0.5, dtype=torch.float64), torch.tensor([1])
    draw = torch.arange(20000).view(1, -1, 1)
    maps = mixed_map(weights, table, [scale, seed, draw], "column")
    found = torch.nn.functional.one_hot(maps[0, :, 0].long(), 4).double().mean(0).T
    want = torch.softmax(table[0, 0] / 0.5, 0)
    # Four standard deviations of a mean of 20000.
    assert ((found - want).abs() < 4 * (want * (1 - want) / 20000).sqrt() + 1e-9).all()


def test_packed_noise_is_each_token_s_own() -> None:
    given_ = tensors(1, 7, states=4)
    options: dict[str, Any] = {"noise": 1.0, "seed": 2}
    got = results(mixture_pd_scan, given_, **options, cu_seqlens=offsets([3, 0, 1, 3]))
    draws = torch.arange(21).view(1, 7, 3)
    sources = (given_["mixture_weights"], given_["dictionary_logits"])
    noise = [torch.tensor(1.0), torch.tensor([2]), draws]
    maps = mixed_map(*sources, noise, "column")
    scan = {name: given_[name] for name in ("diagonal", "drive", "initial_state")}
    want, _ = pd_scan(**scan, destination=maps, cu_seqlens=offsets([3, 0, 1, 3]))
    torch.testing.assert_close(got["states"], want)
    assert got["dictionary_logits"].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1.0}, "noise must be a number of at least 0 .* got -1.0"),
        ({"noise": torch.ones(2)}, "noise must be one real number"),
        ({"noise": 10**400}, "noise must be a number of at least 0 that torch.float64 has"),
        ({"noise": torch.tensor(-1.0)}, "noise must be a number of at least 0 .* got -1.0"),
        ({"noise": torch.tensor(float("inf"))}, "noise must be a number of at least 0 .* got inf"),
        ({"noise": torch.ones((), device="meta")}, "noise is on meta and the weights on cpu"),
        (
            {"noise": 1.0, "seed": torch.ones(1, dtype=torch.int64, device="meta")},
            "seed is on meta and the weights on cpu",
        ),
        ({"noise": 1.0, "seed": 2**31}, r"seed must be an integer in \[0, 2\*\*31\)"),
        ({"noise": 1.0, "seed": torch.ones(1)}, "seed must be one int64 number"),
        ({"noise": 1.0, "seed": torch.tensor(-1)}, r"seed must lie in \[0, 2\*\*31\), got -1"),
        (
            {"noise": 1.0, "seed": torch.tensor(2**31)},
            r"seed must lie in \[0, 2\*\*31\), got 2147",
        ),
        ({"noise": 1.0, "choice": "soft"}, "noise is of choices"),
        ({"choice": "any"}, "choice"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        mixture_pd_scan(**tensors(), **options)


def test_noise_beyond_float32_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"that torch\.float32 has, got 1e\+39"):
        mixture_pd_scan(**tensors(dtype=torch.float32), noise=1e39)


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_soft_scan_is_its_formula(orientation: str, reverse: bool) -> None:
    """Written out here, token by token; values and every gradient."""

    def written_out(
        dictionary_logits: torch.Tensor,
        mixture_weights: torch.Tensor,
        diagonal: torch.Tensor,
        drive: torch.Tensor,
        initial_state: torch.Tensor,
        output_final_state: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = torch.einsum("bthk,hkij->bthij", mixture_weights, dictionary_logits)
        soft = (mixed / 0.6).softmax(-2 if orientation == "column" else -1).to(drive.dtype)
        state, states = initial_state, {}
        steps = range(drive.shape[1])
        for t in reversed(steps) if reverse else steps:
            if orientation == "column":
                state = (soft[:, t] @ (diagonal[:, t] * state)[..., None])[..., 0] + drive[:, t]
            else:
                state = diagonal[:, t] * (soft[:, t] @ state[..., None])[..., 0] + drive[:, t]
            states[t] = state
        return torch.stack([states[t] for t in steps], 1), state

    given_ = tensors()
    options = {"orientation": orientation, "reverse": reverse, "temperature": 0.6}
    got = results(mixture_pd_scan, given_, choice="soft", **options)
    want = results(written_out, given_)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_the_soft_scan_is_the_reference_s() -> None:
    given_ = tensors()
    got = results(mixture_pd_scan, given_, choice="soft", temperature=0.6)
    want = results(reference.mixture_pd_scan, given_, choice="soft", temperature=0.6)
    assert all(torch.equal(got[name], value) for name, value in want.items())


@pytest.mark.parametrize("of", [mixture_pd_scan, reference.mixture_pd_scan])
def test_the_soft_scan_is_exact_under_autocast(of: Callable[..., Any]) -> None:
    given_ = tensors()
    want, _ = of(**given_, choice="soft")
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = of(**given_, choice="soft")
    assert torch.equal(got, want)


def test_the_soft_scan_looks_at_its_temperature() -> None:
    with pytest.raises(ArgumentError, match=r"temperature must be a positive number, got -1\.0"):
        mixture_pd_scan(**tensors(), choice="soft", temperature=torch.tensor(-1.0))


def test_the_soft_scan_is_traced_whole() -> None:
    given_ = tensors()
    traced = torch.compile(mixture_pd_scan, fullgraph=True, backend="aot_eager")
    got = results(traced, given_, choice="soft", temperature=torch.tensor(0.6))
    want = results(mixture_pd_scan, given_, choice="soft", temperature=torch.tensor(0.6))
    for name, value in want.items():
        torch.testing.assert_close(got[name], value)
