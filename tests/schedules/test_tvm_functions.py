"""Elementary functions of TVM's text, against NumPy's in a wider precision."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.runtime.backends.tvm_script import import_tvm, parsed
from pdssm_compiler.schedules.emit.tvm_functions import Functions
from pdssm_compiler.schedules.source import Writer

DTYPES = {32: np.float32, 64: np.float64}


@cache
def compiled(function: str, bits: int):  # type: ignore[no-untyped-def]
    """A kernel that computes it of each number of a vector."""
    writer = Writer()
    functions = Functions(writer, bits)
    writer.line("@I.ir_module")
    with writer.block("class Kernel:"):
        writer.line("@T.prim_func")
        with writer.block("def every(x_: T.handle, y_: T.handle):"):
            writer.line('T.func_attr({"global_symbol": "every", "tirx.noalias": True})')
            writer.line("L = T.int64()")
            for name in "xy":
                writer.line(f'{name} = T.match_buffer({name}_, (L,), "{functions.dtype}")')
            with writer.block("for i in T.serial(L):"):
                getattr(functions, function)("found", "x[i]")
                writer.line("y[i] = found")
    return import_tvm().compile(parsed(writer.text, {}), target="llvm")["every"]


def computed(function: str, given: np.ndarray) -> np.ndarray:
    found = torch.full(given.shape, float("nan"), dtype=torch.from_numpy(given).dtype)
    compiled(function, 8 * given.itemsize)(torch.from_numpy(given.copy()), found)
    return found.numpy()


def roundings(function: str, given: np.ndarray) -> float:
    """How far results are off, in spacings of what is right."""
    wide = given.astype(np.longdouble)
    right = np.exp(wide) if function == "exponential" else np.log(wide)
    off = np.abs(computed(function, given).astype(np.longdouble) - right)
    return float((off / np.spacing(np.abs(right).astype(given.dtype))).max())


@pytest.mark.parametrize("bits", [32, 64])
@given(st.integers(0, 2**32 - 1))
def test_logarithms(bits: int, seed: int) -> None:
    """Of numbers of any size, and of all that noise takes them of: next to 1, and small ones."""
    draws = np.random.default_rng(seed)
    info = np.finfo(DTYPES[bits])
    sizes = 2.0 ** draws.uniform(info.minexp + 1, info.maxexp - 1, 200)
    near = 1 + draws.choice((-1, 1), 100) * 2.0 ** draws.uniform(-23, -1, 100)
    uniform = (draws.integers(2**23, size=200) + 0.5) * 2.0**-23
    ends = np.array([info.tiny, info.max, 1.0, 2.0, 0.5, np.sqrt(0.5), 2.0**-24, 1 - 2.0**-24])
    given = np.concatenate([sizes, near, uniform, ends]).astype(DTYPES[bits])
    assert roundings("logarithm", given) <= 1
    assert computed("logarithm", np.ones(1, DTYPES[bits])) == 0


@pytest.mark.parametrize("bits", [32, 64])
@given(st.integers(0, 2**32 - 1))
def test_exponentials(bits: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    least = {32: -87.0, 64: -708.0}[bits]
    given = np.concatenate(
        [draws.uniform(least, 0, 200), -(2.0 ** draws.uniform(-60, 3, 200)), [0.0, -0.0, least]]
    ).astype(DTYPES[bits])
    assert roundings("exponential", given) <= 2
    # What is smaller stays as small as it can be, and a NaN a NaN.
    special = np.array([-np.inf, 2 * least, np.nan], DTYPES[bits])
    low, lower, nan = computed("exponential", special)
    assert low == lower == computed("exponential", np.array([least], DTYPES[bits]))
    assert np.isnan(nan)
