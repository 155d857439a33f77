"""The torch operator: what PyTorch asks of one, from every thread and in every mode."""

import builtins
import multiprocessing
import os
import sys
import threading
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from pdssm_compiler import pd_scan, reference
from pdssm_compiler.arguments import read_call, text_of
from pdssm_compiler.runtime import kernels
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.ops import scan
from tests.public.scans import Case, Draw, Tensors, inputs

CASE = Case(7, "dictionary")
PERMUTATION = Case(7, "token", map_class="permutation")


def call(length: int = 5, case: Case = CASE, batch: int = 2, heads: int = 3) -> Tensors:
    maps = "permutation" if case.map_class == "permutation" else "random"
    return inputs(case, Draw(batch, length, heads, maps, "disk", 1))


@pytest.mark.parametrize("case", [CASE, PERMUTATION], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(case: Case, grad: bool) -> None:
    given = call(case=case)
    for tensor in given.values():
        tensor.requires_grad_(grad and tensor.is_complex())
    maps = [given.get(name) for name in ("dictionary", "selection", "destination")]
    request = read_call(
        given["diagonal"], given["drive"], *maps, case.map_class, "column",
        given["initial_state"], True,
    )  # fmt: skip
    found = torch.library.opcheck(scan, (text_of(request.spec), request.tensors, [], "", False))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("source", ["dictionary", "token"])
def test_opcheck_with_entries(source: str) -> None:
    given = call(case=Case(7, source))
    maps = [given.get(name) for name in ("dictionary", "selection", "destination")]
    request = read_call(
        given["diagonal"].requires_grad_(), given["drive"], *maps, "general", "column", None, True
    )  # fmt: skip
    entries = [torch.ones(m.shape, requires_grad=True) for m in maps if m is not None]
    arguments = (text_of(request.spec), request.tensors, entries, "", False)
    assert set(torch.library.opcheck(scan, arguments).values()) == {"SUCCESS"}


def test_entries_stand_for_all_choices() -> None:
    given = call()
    request = read_call(*given_tensors(given), "general", "column", None, False)
    with pytest.raises(
        ArgumentError, match="an entry for each of dictionary, selection, or none, got 1"
    ):
        scan(text_of(request.spec), request.tensors, [torch.ones(())], "", False)


def given_tensors(given: Tensors) -> list[torch.Tensor | None]:
    """The first five arguments of ``read_call``."""
    names = ("diagonal", "drive", "dictionary", "selection", "destination")
    return [given.get(name) for name in names]


def compiled(counter: Any) -> Any:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(diagonal: torch.Tensor, drive: torch.Tensor, **more: torch.Tensor) -> Any:
        return pd_scan(diagonal * 0.5, drive + 1, **more, output_final_state=True)

    return run


def test_torch_compile_once_for_every_length() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    run = compiled(counter)
    for batch, length in ((2, 5), (4, 3), (7, 12), (5, 7), (9, 33)):
        given = call(length, batch=batch)
        states, final = run(**given)
        changed = given | {"diagonal": given["diagonal"] * 0.5, "drive": given["drive"] + 1}
        want, end = pd_scan(**changed, output_final_state=True)
        assert torch.equal(states, want)
        assert torch.equal(final, end)
    assert counter.frame_count == 1


def test_torch_compile_with_gradients() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    run = compiled(counter)
    for batch, length in ((2, 5), (4, 9)):
        given = call(length, batch=batch)
        gradients = []
        for function in (run, run._torchdynamo_orig_callable):
            leaf = given["diagonal"].clone().requires_grad_()
            states, final = function(**given | {"diagonal": leaf})
            (gradient,) = torch.autograd.grad(states.abs().sum() + final.abs().sum(), leaf)
            gradients.append(gradient)
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


def test_fake_tensors_have_the_real_shapes_and_dtypes() -> None:
    real = pd_scan(**call(), output_final_state=True)
    with FakeTensorMode() as mode:
        given = {name: mode.from_tensor(tensor) for name, tensor in call().items()}
        fake = pd_scan(**given, output_final_state=True)
    for mine, theirs in zip(fake, real, strict=True):
        assert (mine.shape, mine.dtype, mine.device) == (theirs.shape, theirs.dtype, theirs.device)
        assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("grad", [False, True])
def test_mixed_devices(grad: bool) -> None:
    given = call()
    given["drive"] = given["drive"].to("meta")
    given["diagonal"].requires_grad_(grad)
    with pytest.raises(ArgumentError, match=r"on one device: .*diagonal on cpu, .*drive on meta"):
        pd_scan(**given)


@pytest.mark.parametrize("name", ["diagonal", "drive", "initial_state"])
def test_forward_mode_is_refused_not_lost(name: str) -> None:
    given = call()
    message = "a scan has no forward-mode derivative .*: use reverse mode"

    def scanned(tensor: torch.Tensor) -> torch.Tensor:
        return pd_scan(**given | {name: tensor})[0]

    with pytest.raises(ArgumentError, match=message):
        torch.func.jvp(scanned, (given[name],), (torch.ones_like(given[name]),))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(given[name], torch.ones_like(given[name]))
        with pytest.raises(ArgumentError, match=message):
            scanned(dual)
        # What carries no tangent is as always.
        assert torch.equal(scanned(given[name].clone()), pd_scan(**given)[0])


NO_VMAP = (
    "a scan cannot be mapped by vmap (nor its gradient by is_grads_batched or vectorize): batch "
    "is an axis of its tensors already; reshape the mapped axis into B"
)


@pytest.mark.parametrize("names", [["drive"], ["dictionary"], ["diagonal", "initial_state"]])
def test_vmap_is_refused_with_the_way_out(names: list[str]) -> None:
    given = call()

    def scanned(*tensors: torch.Tensor) -> torch.Tensor:
        return pd_scan(**given | dict(zip(names, tensors, strict=True)))[0]

    stacked = [torch.stack([given[name], given[name]]) for name in names]
    for mapped in (scanned, lambda *tensors: torch.func.vmap(scanned)(*tensors)):
        with pytest.raises(ArgumentError) as caught:
            torch.func.vmap(mapped)(*[t if mapped is scanned else t[None] for t in stacked])
        assert str(caught.value) == NO_VMAP


def test_a_batch_of_cotangents_is_refused_with_the_way_out() -> None:
    given = call()
    leaf = given["drive"].requires_grad_()
    states, _ = pd_scan(**given)
    cotangents = torch.ones(3, *states.shape, dtype=states.dtype)
    with pytest.raises(ArgumentError) as caught:
        torch.autograd.grad(states, leaf, cotangents, is_grads_batched=True, retain_graph=True)
    assert str(caught.value) == NO_VMAP
    with pytest.raises(ArgumentError) as caught:
        torch.func.vmap(lambda g: torch.autograd.grad(states, leaf, g, retain_graph=True))(
            cotangents
        )
    assert str(caught.value) == NO_VMAP
    # The loss of the batch: what is refused did no harm to the graph.
    (grad,) = torch.autograd.grad(states, leaf, cotangents[0])
    assert grad.isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor")
def test_tracing_by_torch_jit_is_refused_with_the_way_out() -> None:
    given = call()

    def scanned(drive: torch.Tensor) -> torch.Tensor:
        return pd_scan(**given | {"drive": drive})[0]

    with pytest.raises(
        ArgumentError, match=r"a scan cannot be traced by torch.jit, .*: use torch"
    ):
        torch.jit.trace(scanned, given["drive"])


def test_gradients_by_torch_func_are_refused_with_the_way_out() -> None:
    given = call()

    def loss(drive: torch.Tensor, scan: Any = pd_scan) -> torch.Tensor:
        return scan(**given | {"drive": drive})[0].abs().sum()

    message = (
        "a scan cannot be differentiated by torch.func (grad, vjp, jacrev): use "
        "torch.autograd.grad or .backward(), or pdssm_compiler.reference, whose pd_scan, "
        "flash_pd_scan and mixture_pd_scan are plain torch"
    )
    for transform in (torch.func.grad, lambda f: lambda x: torch.func.vjp(f, x)):
        with pytest.raises(ArgumentError) as caught:
            transform(loss)(given["drive"])
        assert str(caught.value) == message
    leaf = given["drive"].clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    got = torch.func.grad(lambda drive: loss(drive, reference.pd_scan))(given["drive"])
    torch.testing.assert_close(got, want)


def test_second_derivatives_are_refused_with_the_way_out() -> None:
    def second(scan: Any) -> torch.Tensor:
        given = call()
        leaf = given["diagonal"].requires_grad_()
        loss = scan(**given)[0].abs().sum()
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(first.abs().sum(), leaf)[0]

    with pytest.raises(ArgumentError, match=r"no gradient of its own here .*reference\.pd_scan"):
        second(pd_scan)
    assert second(reference.pd_scan).isfinite().all()


def test_inference_mode() -> None:
    given = call()
    with torch.inference_mode():
        assert torch.equal(pd_scan(**given)[0], pd_scan(**given)[0].clone())


def test_one_thread_gives_the_same() -> None:
    given = call(length=9, batch=3, heads=5)
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(pd_scan(**given)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_concurrent_threads() -> None:
    given = [call(length) for length in (3, 5, 8, 13)]
    want = [pd_scan(**tensors)[0] for tensors in given]
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                if not torch.equal(pd_scan(**given[number])[0], want[number]):
                    wrong.append(number)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_errors_stay_with_their_thread() -> None:
    good, bad = call(), call()
    bad["selection"][1, 2, 1] = 99
    pd_scan(**good)
    seen: list[str] = []

    def fail() -> None:
        for _ in range(20):
            try:
                pd_scan(**bad)
            except IndexError as error:
                seen.append(str(error))

    thread = threading.Thread(target=fail)
    thread.start()
    for _ in range(20):
        pd_scan(**good)
    thread.join(60)
    assert seen == ["selection[1, 2, 1] = 99: entries must lie in [0, 3)"] * 20


def _in_child(given: Tensors, want: torch.Tensor) -> None:
    os._exit(0 if torch.equal(pd_scan(**given)[0], want) else 1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_does_not_hang() -> None:
    given = call(length=4, batch=3, heads=5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        want = pd_scan(**given)[0]  # TVM's pool is there now
        child = multiprocessing.get_context("fork").Process(target=_in_child, args=(given, want))
        child.start()
        child.join(60)
        hangs = child.is_alive()
        if hangs:
            child.kill()
    finally:
        torch.set_num_threads(threads)
    assert not hangs
    assert child.exitcode == 0


def test_a_length_never_compiles_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(11, "token")
    pd_scan(**call(1, case))
    built: list[Any] = []
    monkeypatch.setattr(kernels, "build_schedule", lambda *arguments: built.append(arguments))
    for length in range(50):
        pd_scan(**call(length, case, batch=1 + length % 3, heads=1 + length % 4))
    assert built == []


_watching: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is not None and (event == "open" or event.startswith(("os.", "shutil."))):
        _watching.append(f"{event} {arguments}")


sys.addaudithook(_audit)


def test_a_warm_call_does_no_file_io(monkeypatch: pytest.MonkeyPatch) -> None:
    global _watching
    given = call(case=PERMUTATION)
    given["drive"].requires_grad_()

    def both_ways() -> None:
        states, _ = pd_scan(**given, **PERMUTATION.options)
        states.abs().sum().backward()
        pd_scan(**{n: t.detach() for n, t in given.items()}, **PERMUTATION.options)

    both_ways()
    touched: list[str] = []
    # What no audit event tells.
    with monkeypatch.context() as patch:
        for module, name in ((os, "stat"), (os, "lstat"), (os, "access"), (builtins, "open")):
            real = getattr(module, name)

            def watched(*arguments: Any, _real: Any = real, _name: str = name, **more: Any) -> Any:
                touched.append(f"{_name} {arguments}")
                return _real(*arguments, **more)

            patch.setattr(module, name, watched)
        _watching = touched
        try:
            both_ways()
        finally:
            _watching = None
    assert touched == []
