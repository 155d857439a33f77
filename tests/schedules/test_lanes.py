"""The device functions of CUDA kernels, their own text compiled for a CPU: sums over lanes, and
scatter-add in its four ways, whatever the order in which lanes come along.
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schedules.cuda_on_cpu import compiled

SHIM = Path(__file__).parent / "lanes_on_cpu.cpp"
ELEMENTS = (1, 2, 3, 4, 8)


@pytest.fixture(scope="module")
def lanes() -> ctypes.CDLL:
    return compiled(SHIM.read_text())


def given_(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@st.composite
def maps(draw: st.DrawFn, most: int) -> np.ndarray:
    """Where each source goes: anywhere, all to one target, or each to its own."""
    n = draw(st.integers(1, most) | st.sampled_from([s for s in (1, 32, 64, most) if s <= most]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["random", "few", "some", "collide", "permutation", "identity"]))
    found = {
        "random": random.integers(0, n, n),
        "few": random.integers(0, max(1, n // 8), n),
        "some": np.minimum(np.arange(n), n - random.integers(1, min(n, 9) + 1)),
        "collide": np.full(n, random.integers(0, n)),
        "permutation": random.permutation(n),
        "identity": np.arange(n),
    }[kind]
    return found.astype(np.int32)


def numbers(n: int) -> np.ndarray:
    """Whole numbers, whose sums are exact: real parts, then imaginary ones."""
    return np.random.default_rng(n).integers(-999, 999, (2, n)).astype(np.float64)


def scattered(map_: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = np.zeros_like(values)
    for part, into in zip(values, found, strict=True):
        np.add.at(into, map_, part)
    return found


def assert_scattered(
    map_: np.ndarray, values: np.ndarray, results: np.ndarray, parts: int
) -> None:
    """The results are those of twice the values; lanes beyond the last element repeat it."""
    want = scattered(map_, 2 * values)
    n = len(map_)
    at = np.minimum(np.arange(results.shape[1]), n - 1)
    np.testing.assert_array_equal(results[:parts], want[:parts, at])


@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("parts", [1, 2])
@given(data=st.data(), seed=st.integers(0, 99))
def test_collected_by_a_warp(
    elements: int, parts: int, data: st.DataObject, seed: int, lanes: ctypes.CDLL
) -> None:
    map_ = data.draw(maps(32 * elements))
    values, n = numbers(len(map_)), len(map_)
    results = np.full((2, 32 * elements), np.nan)
    # Numbers of the list and of its heads, and the values where they are several a lane.
    bytes_ = 4 * n if elements == 1 else (8 * parts + 8) * n
    assert lanes.collect_elements(
        elements, parts, n, seed, bytes_, given_(map_), given_(values), given_(results)
    )
    assert_scattered(map_, values, results, parts)


@pytest.mark.parametrize(("elements", "warps"), [(1, 2), (1, 3), (1, 8), (2, 2), (3, 4)])
@pytest.mark.parametrize("parts", [1, 2])
@given(data=st.data(), seed=st.integers(0, 99))
def test_collected_by_lists(
    elements: int, warps: int, parts: int, data: st.DataObject, seed: int, lanes: ctypes.CDLL
) -> None:
    map_ = data.draw(maps(32 * warps * elements))
    values, n = numbers(len(map_)), len(map_)
    results = np.full((2, 32 * warps * elements), np.nan)
    assert lanes.collect_listed(
        elements, 32 * warps, parts, n, seed, (8 * parts + 8) * n + 4,
        given_(map_), given_(values), given_(results),
    )  # fmt: skip
    assert_scattered(map_, values, results, parts)


@pytest.mark.parametrize("warps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("parts", [1, 2])
@given(data=st.data(), seed=st.integers(0, 99))
def test_summed_by_a_sorted_map(
    warps: int, parts: int, data: st.DataObject, seed: int, lanes: ctypes.CDLL
) -> None:
    map_ = data.draw(maps(32 * warps))
    values, n = numbers(len(map_)), len(map_)
    results = np.full((2, 32 * warps), np.nan)
    sorting = 4 * (n * (warps + 2) + warps)
    bytes_ = 2 * n * 8 * parts + warps * (8 * parts + 4)
    assert lanes.sum_sorted(
        32 * warps, parts, n, seed, sorting, bytes_, given_(map_), given_(values), given_(results)
    )
    assert_scattered(map_, values, results, parts)


@pytest.mark.parametrize("registers", [True, False])
@given(data=st.data(), seed=st.integers(0, 99))
def test_collected_by_a_prepared_map(
    registers: bool, data: st.DataObject, seed: int, lanes: ctypes.CDLL
) -> None:
    map_ = data.draw(maps(32 if registers else 256))
    values, n = numbers(len(map_)), len(map_)
    # By the function for any map (0), and by those for maps whose targets have few sources.
    most = np.bincount(map_).max()
    limits = {1: 6, 2: 14 if registers else 8}
    for few in (0, *(kind for kind, limit in limits.items() if most <= limit)):
        results = np.full((2, n), np.nan)
        given_all = given_(map_), given_(values), given_(results)
        assert lanes.fan_in(registers, few, n, seed, *given_all)
        np.testing.assert_array_equal(results, scattered(map_, values))


@pytest.mark.parametrize("warps", [1, 2, 3, 8])
@pytest.mark.parametrize("tokens", [2, 4, 8, 16, 32])
def test_sums_over_lanes(warps: int, tokens: int, lanes: ctypes.CDLL) -> None:
    """Each token's, the same in every lane; those of all tokens together, of each warp."""
    random = np.random.default_rng(tokens)
    values = random.integers(-999, 999, (tokens, 32 * warps)).astype(np.float64)
    for seed in range(5):
        alone = np.full((tokens, 32 * warps), np.nan)
        together = np.full((2, tokens, warps), np.nan)
        assert lanes.sums(
            32 * warps, tokens, seed, given_(values), given_(alone), given_(together)
        )
        want = values.sum(1, keepdims=True)
        np.testing.assert_array_equal(alone, np.broadcast_to(want, alone.shape))
        both = np.stack([want, 2 * want])
        np.testing.assert_array_equal(together, np.broadcast_to(both, together.shape))


@given(map_=maps(128), seed=st.integers(0, 99), other=st.integers(0, 99))
def test_the_order_of_lanes_changes_no_bit(
    map_: np.ndarray, seed: int, other: int, lanes: ctypes.CDLL
) -> None:
    """Sums of any numbers, by a team: the order they are added in is not that of time."""
    n = len(map_)
    values = np.random.default_rng(n).standard_normal((2, n))
    found = []
    for order in (seed, other):
        results = np.full((3, 2, 128), np.nan)
        of_map = given_(map_), given_(values)
        for at, elements in enumerate((1, 2)):
            assert lanes.collect_listed(
                elements, 128 // elements, 2, n, order, 24 * n + 4, *of_map, given_(results[at])
            )
        assert lanes.sum_sorted(
            128, 2, n, order, 4 * (n * 6 + 4), 40 * n + 80, *of_map, given_(results[2])
        )
        found.append(results)
    np.testing.assert_array_equal(*found)


def test_functions_of_numbers(lanes: ctypes.CDLL) -> None:
    """Of small, usual and huge arguments, near multiples of a quarter turn, and of no numbers."""
    random = np.random.default_rng(7)
    limits = (1e-30, 1e-3, 1.0, 7.0, 100.0, 47999.0, 48001.0, 1e30)
    near = np.arange(-200, 200) * (np.pi / 2)
    x = np.concatenate(
        [*(random.uniform(-limit, limit, 2000) for limit in limits), near, [0.0, -0.0]]
    ).astype(np.float32)
    single = np.full((3, len(x)), np.nan, np.float32)
    twice = np.full((3, len(x)), np.nan)
    lanes.functions(len(x), given_(x), given_(single), given_(twice))
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        want = np.stack([np.sin(wide), np.cos(wide), 1 / (1 + np.exp(-wide))])
    np.testing.assert_allclose(twice, want, rtol=1e-15, atol=1e-300)
    normal = np.abs(want) > 1e-37
    units = np.abs(single - want) / np.spacing(np.abs(want).astype(np.float32))
    assert (units[normal] < 2).all()
    assert (np.abs(single)[~normal] < 1e-37).all()
    odd = np.array([np.nan, np.inf, -np.inf], np.float32)
    single, twice = np.zeros((3, 3), np.float32), np.zeros((3, 3))
    lanes.functions(3, given_(odd), given_(single), given_(twice))
    np.testing.assert_array_equal(single, [[np.nan] * 3] * 2 + [[np.nan, 1, 0]])
