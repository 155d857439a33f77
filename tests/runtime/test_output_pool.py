"""The pool of large CPU outputs: its tensors are ordinary, and its memory comes back."""

import copy
import gc
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler import pd_scan
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.output_pool import LARGE, OutputPool, new_output, output_pool, rounded

CPU = torch.device("cpu")
BLOCK = rounded(LARGE)
NUMBERS = LARGE // 4


@pytest.fixture(autouse=True)
def _empty_pool() -> Iterator[None]:
    output_pool.forget()
    yield
    output_pool.forget()


def large(value: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    shape = (LARGE // dtype.itemsize // 64, 8, 8)
    return new_output(shape, dtype=dtype, device=CPU).fill_(value)


@given(st.integers(1, 1 << 40))
def test_rounded(size: int) -> None:
    found = rounded(size)
    assert size <= found <= size + size // 4 + 1
    assert rounded(found) == found
    assert rounded(size + 1) >= found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_of_the_cpu_whatever_the_default_device(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        found = large(dtype=dtype)
    assert found.device == CPU
    assert (found == 1).all()


def test_a_block_is_used_again_when_its_tensor_is_gone() -> None:
    first = large()
    second = large()
    address = first.data_ptr()
    assert second.data_ptr() != address
    assert output_pool.kept_bytes == 0
    del first
    assert output_pool.kept_bytes == BLOCK
    third = large()
    assert third.data_ptr() == address
    assert output_pool.kept_bytes == 0
    # A little shorter than a block: one of that size.
    del third
    longest = new_output((rounded(LARGE + 1) // 4,), dtype=torch.float32, device=CPU)
    address = longest.data_ptr()
    del longest
    assert new_output((NUMBERS + 9,), dtype=torch.float32, device=CPU).data_ptr() == address


def test_small_outputs_are_torch_s_own() -> None:
    tensor = new_output((LARGE - 1,), dtype=torch.uint8, device=CPU)
    assert tensor.untyped_storage().resizable()
    del tensor
    assert output_pool.kept_bytes == 0


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.complex64, torch.complex128, torch.float64, torch.bfloat16, torch.float16),
        *(torch.int32, torch.int64),
    ],
)
def test_an_ordinary_tensor(dtype: torch.dtype) -> None:
    tensor = large(2.0, dtype)
    assert (tensor.dtype, tensor.device, tensor.layout) == (dtype, CPU, torch.strided)
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % 64 == 0
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert tensor.is_leaf
    assert not tensor._is_view()
    assert not tensor.requires_grad
    tensor.add_(1)
    assert torch.equal(tensor, torch.full_like(tensor, 3.0))


def test_copies_and_views() -> None:
    tensor = large(2.0)
    want = tensor.clone()
    assert torch.equal(copy.deepcopy(tensor), want)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)), want)
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    assert torch.equal(torch.load(file), want)
    array = tensor.numpy()
    view = tensor[3:, 1]
    capsule = torch.from_dlpack(tensor)
    address = tensor.data_ptr()
    del tensor
    for left in (array, view, capsule):
        # Any of them keeps the memory from the next output.
        assert large(5.0).data_ptr() != address
        assert (torch.as_tensor(left) == 2).all()
    del array, left
    del capsule
    assert large(5.0).data_ptr() != address
    del view
    assert large(5.0).data_ptr() == address


def test_shared_memory() -> None:
    tensor = large(2.0)
    tensor.share_memory_()
    assert tensor.is_shared()
    # The contents moved, so the block is free again.
    assert output_pool.kept_bytes == BLOCK
    assert (tensor == 2).all()


def test_saved_for_a_backward() -> None:
    tensor = large(3.0)
    leaf = torch.ones_like(tensor).requires_grad_()
    result = (leaf * tensor).sum()
    address = tensor.data_ptr()
    del tensor
    assert large(7.0).data_ptr() != address
    result.backward()
    assert leaf.grad is not None
    assert (leaf.grad == 3).all()
    # In-place changes are noticed, as of any tensor.
    saved = large(3.0)
    result = (leaf * saved).sum()
    saved.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_as_a_parameter() -> None:
    parameter = torch.nn.Parameter(large(2.0))
    parameter.sum().backward()
    with torch.no_grad():
        parameter.sub_(parameter.grad)
    assert (parameter == 1).all()


def test_inference_mode() -> None:
    with torch.inference_mode():
        tensor = large()
        assert tensor.is_inference()
    del tensor
    assert not large().is_inference()


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.POOL_LIMIT, str(2 * BLOCK))
    tensors = [large(number) for number in range(5)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    for kept in (1, 2, 2, 2, 2):
        tensors.pop(0)
        assert output_pool.kept_bytes == kept * BLOCK
    # The ones freed last are used first.
    again = [large(), large()]
    assert [tensor.data_ptr() for tensor in again] == addresses[:2:-1]
    monkeypatch.setenv(settings.POOL_LIMIT, "0")
    del again
    assert output_pool.kept_bytes == 0
    assert large().untyped_storage().resizable()


def test_garbage_cycles_come_back() -> None:
    holder: list[object] = [large()]
    holder.append(holder)
    del holder
    assert output_pool.kept_bytes == 0
    gc.collect()
    assert output_pool.kept_bytes == BLOCK


def test_what_comes_back_while_the_lock_is_held() -> None:
    pool = OutputPool()
    tensor = pool.empty((NUMBERS,), torch.float32)
    with pool._lock:
        # As a collection in the middle of the pool's own work would.
        del tensor
        assert pool.kept_bytes == 0
    other = pool.empty((2 * NUMBERS,), torch.float32)
    assert pool.kept_bytes == BLOCK
    del other


def test_threads() -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                mine = large(100 * number + turn)
                other = large(-1.0)
                if not (mine == 100 * number + turn).all() or mine.data_ptr() == other.data_ptr():
                    wrong.append((number, turn))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    # Two of each thread at a time, and one that is being replaced.
    assert 0 < output_pool.kept_bytes <= 4 * 3 * BLOCK


def _in_child(tensor: torch.Tensor) -> None:
    fresh = large(9.0)
    own = fresh.data_ptr() != tensor.data_ptr()
    good = own and bool((tensor == 4).all()) and output_pool.kept_bytes == 0
    tensor.fill_(5)
    os._exit(0 if good else 1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tensor, spare = large(4.0), large(4.0)
    del spare
    try:
        # A lock held by another thread at the fork is not waited for.
        with output_pool._lock:
            child = multiprocessing.get_context("fork").Process(target=_in_child, args=(tensor,))
            child.start()
        child.join(60)
        hangs = child.is_alive()
        if hangs:
            child.kill()
    finally:
        torch.set_num_threads(threads)
    assert not hangs
    assert child.exitcode == 0
    # The child wrote a copy of its own.
    assert (tensor == 4).all()


def test_a_tensor_that_outlives_the_pool() -> None:
    code = (
        "import torch, pdssm_compiler\n"
        "numbers = torch.ones(2, 2000, 8, 32, dtype=torch.complex64)\n"
        "torch.kept, _ = pdssm_compiler.pd_scan(numbers, numbers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_deterministic_mode_is_torch_s_own() -> None:
    large(2.0)
    torch.use_deterministic_algorithms(True)
    try:
        tensor = new_output((NUMBERS,), dtype=torch.float32, device=CPU)
    finally:
        torch.use_deterministic_algorithms(False)
    assert tensor.isnan().all()


@pytest.mark.parametrize("grad", [False, True])
def test_scans_do_not_read_what_was_there(grad: bool) -> None:
    """Every element of a large output is written, whatever the block held before."""
    shape = (2, 700, 12, 40)
    assert torch.empty(shape, dtype=torch.complex64).nbytes > LARGE
    diagonal = torch.rand(shape).to(torch.complex64).requires_grad_(grad)
    drive = torch.randn(shape, dtype=torch.complex64).requires_grad_(grad)

    def both() -> list[torch.Tensor]:
        states, _ = pd_scan(diagonal, drive)
        if not grad:
            return [states]
        return [states, *torch.autograd.grad(states.abs().sum(), (diagonal, drive))]

    want = [tensor.detach().clone() for tensor in both()]
    assert output_pool.kept_bytes > 0
    poisoned = [new_output(shape, dtype=torch.complex64, device=CPU) for _ in range(4)]
    for tensor in poisoned:
        tensor.fill_(float("nan"))
    addresses = {tensor.data_ptr() for tensor in poisoned}
    poisoned.clear()
    del tensor
    found = both()
    assert {tensor.data_ptr() for tensor in found} <= addresses
    for mine, theirs in zip(found, want, strict=True):
        assert torch.equal(mine, theirs)


def test_torch_compile() -> None:
    shape = (2, 700, 12, 40)
    diagonal = torch.rand(shape).to(torch.complex64)
    drive = torch.randn(shape, dtype=torch.complex64).requires_grad_()
    torch._dynamo.reset()
    run = torch.compile(lambda d, b: pd_scan(d, b)[0].abs().sum(), backend="aot_eager")
    want = torch.autograd.grad(pd_scan(diagonal, drive)[0].abs().sum(), drive)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(run(diagonal, drive), drive)[0], want[0])
