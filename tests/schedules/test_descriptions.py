"""Descriptions of GPUs: what a file may say, what is told of one that says something else, and
that what is chosen for any GPU that can be described fits it.
"""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.schedules.descriptions import DescriptionError
from pdssm_compiler.schedules.target import Target, describe, described_target, named_targets
from pdssm_compiler.schedules.templates.base import Problem

GOOD = {
    "name": '"NVIDIA H100 80GB HBM3"',
    "kind": '"cuda"',
    "arch": '"sm_90"',
    "processors": "132",
    "warp_size": "32",
    "registers": "255",
    "shared_memory": '"227 KiB"',
    "bandwidth": '"3350 GB/s"',
}
KEYS = ", ".join(GOOD)


def described(folder: Path, **changes: str | None) -> Path:
    """A file that describes an H100, but for some keys; None leaves one out."""
    path = folder / "gpu.toml"
    lines = [f"{key} = {value}" for key, value in (GOOD | changes).items() if value is not None]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@st.composite
def gpus(draw: st.DrawFn) -> Target:
    """Any GPU that can be described."""
    kind = draw(st.sampled_from(["cuda", "hip"]))
    arch = draw(
        st.from_regex(r"sm_[1-9][0-9]{1,2}" if kind == "cuda" else r"gfx(9|1[0-2])[0-9][0-9a-f]",
                      fullmatch=True)
    )  # fmt: skip
    return Target(
        kind,
        arch,
        warp_size=64 if len(arch) == 6 and arch.startswith("gfx9") else 32,
        processors=draw(st.integers(1, 4096)),
        registers=draw(st.integers(32, 255 if kind == "cuda" else 512)),
        shared_memory=draw(st.integers(16 << 10, 1 << 20)),
        name=draw(st.text(st.characters(codec="utf-8"), max_size=100).filter(str.isprintable)),
        bandwidth=draw(st.integers(10**9, 10**14)),
    )


@given(gpus())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, gpu: Target) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text(describe(gpu, "two\nlines"), encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith("# two\n# lines\n")
    assert described_target(path) == gpu


@pytest.mark.parametrize(
    ("key", "value", "size"),
    [
        ("shared_memory", "99 KiB", 99 << 10),
        ("shared_memory", "232448B", 232448),
        ("shared_memory", "0.5 MiB", 512 << 10),
        ("bandwidth", "3.35 TB/s", 3_350_000_000_000),
        ("bandwidth", "0864.0 GB/s", 864_000_000_000),
    ],
)
def test_units(tmp_path: Path, key: str, value: str, size: int) -> None:
    assert getattr(described_target(described(tmp_path, **{key: f'"{value}"'})), key) == size


SHARED = (
    'shared_memory must be a number and a unit (B, KiB, MiB) from 16 KiB to 1024 KiB{}, got "{}"'
)
RATE = 'bandwidth must be a number and a unit (GB/s, TB/s) from 1 GB/s to 100000 GB/s{}, got "{}"'
KIND = 'kind must be "cuda" for an NVIDIA GPU or "hip" for one of AMD (a CPU needs no description'
ARCH = "arch must be an architecture of the kind 'cuda' such as \"sm_90\" (NVIDIA's), got "
SUCH = (', such as "1024 KiB"', ', such as "100000 GB/s"')


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"procesors": "3"}, f"unknown key 'procesors'; write processors; the keys are {KEYS}"),
        ({"colour": '"red"'}, f"unknown key 'colour'; the keys are {KEYS}"),
        ({"arch": None}, 'the key arch is missing; write, such as, arch = "sm_90"'),
        ({"bandwidth": None}, 'the key bandwidth is missing; write, such as, bandwidth = "3350'),
        ({"kind": '"cpu"'}, KIND),
        ({"kind": "[1]"}, KIND),
        ({"arch": '"sm_90a"'}, ARCH),
        ({"arch": '"gfx942"'}, ARCH),
        ({"arch": '"sm_9٠"'}, ARCH),
        ({"arch": "90"}, ARCH),
        ({"warp_size": "64"}, "warp_size must be 32, which it is on sm_90, got 64"),
        ({"warp_size": "32.0"}, "warp_size must be 32, which it is on sm_90, got 32.0"),
        ({"processors": "0"}, "processors must be a whole number from 1 to 4096, got 0"),
        ({"processors": "true"}, "processors must be a whole number from 1 to 4096, got True"),
        ({"processors": '"132"'}, "processors must be a whole number from 1 to 4096, got '132'"),
        ({"registers": "256"}, "registers must be a whole number from 32 to 255, got 256"),
        ({"registers": "8"}, "registers must be a whole number from 32 to 255, got 8"),
        ({"name": '""'}, "name must be the device's name, printable text of up to 100 characters"),
        ({"name": '"a\\nb"'}, "name must be the device's name, printable text of up to 100"),
        ({"shared_memory": '"227 KB"'}, SHARED.format(SUCH[0], "227 KB")),
        ({"shared_memory": '"227"'}, SHARED.format(SUCH[0], "227")),
        ({"shared_memory": '"2 MiB"'}, SHARED.format("", "2 MiB")),
        ({"shared_memory": '"20000.5 B"'}, SHARED.format("", "20000.5 B")),
        ({"bandwidth": '"3350 GiB/s"'}, RATE.format(SUCH[1], "3350 GiB/s")),
        ({"bandwidth": '"-1 GB/s"'}, RATE.format(SUCH[1], "-1 GB/s")),
        ({"bandwidth": '"0 GB/s"'}, RATE.format("", "0 GB/s")),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_allowed(tmp_path: Path, changes: dict[str, str | None], told: str) -> None:
    path = described(tmp_path, **changes)
    with pytest.raises(DescriptionError) as caught:
        described_target(path)
    message = str(caught.value)
    assert message.replace("'", '"').startswith(f"{path}: {told}".replace("'", '"'))


def test_a_number_without_a_unit(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"shared_memory must be .* unit .*, got 232448$"):
        described_target(described(tmp_path, shared_memory="232448"))


def test_warps_of_amd(tmp_path: Path) -> None:
    amd = {"kind": '"hip"', "registers": "512"}
    for arch, size in (("gfx90a", 64), ("gfx942", 64), ("gfx1100", 32)):
        path = described(tmp_path, arch=f'"{arch}"', warp_size=str(size), **amd)
        assert described_target(path).warp_size == size
        with pytest.raises(DescriptionError, match=f"warp_size must be {size}, which it is on"):
            described_target(
                described(tmp_path, arch=f'"{arch}"', warp_size=str(96 - size), **amd)
            )


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"none\.toml: the description cannot be read: No "):
        described_target(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(
        DescriptionError, match=r"cannot be read: Is a directory; name a file that"
    ):
        described_target(tmp_path / "folder.toml")
    path = described(tmp_path, kind='"cuda"\nkind = "hip"')
    with pytest.raises(
        DescriptionError, match=r"gpu\.toml: not TOML: .*line 3.*; write a key and"
    ):
        described_target(path)
    path.write_bytes(b'kind = "\xff"')
    with pytest.raises(DescriptionError, match=r"gpu\.toml: not TOML: "):
        described_target(path)


VALUES = st.one_of(
    st.text(max_size=30).map(lambda text: "'" + text + "'"),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "[]", "{}", '"1e3 KiB"', '"nan GB/s"', "1979-05-27", "0x20", "-0"]),
)


@given(st.sampled_from(list(GOOD)), VALUES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_is_taken_or_told(tmp_path: Path, key: str, value: str) -> None:
    try:
        found: Any = described_target(described(tmp_path, **{key: value}))
    except DescriptionError as error:
        told = str(error)
        assert told.startswith(f"{tmp_path / 'gpu.toml'}: ")
        assert key in told or "not TOML" in told
        assert "\n" not in told or "not TOML" in told
    else:
        # What is taken is what is written, in some spelling.
        rewritten = tmp_path / "again.toml"
        rewritten.write_text(describe(found), encoding="utf-8")
        assert described_target(rewritten) == found


def test_the_known_gpus() -> None:
    known = named_targets()
    assert {"sm_80", "sm_90", "gfx942", "h100", "h200"} <= set(known)
    for name, target in known.items():
        # A name says which device it is, an architecture's does not.
        assert bool(target.name) == (name != target.arch)
        like = known[target.arch]
        for field in ("kind", "warp_size", "registers", "shared_memory"):
            assert getattr(target, field) == getattr(like, field)
    named = [target.name for target in known.values() if target.name]
    assert len(named) == len(set(named))


def test_the_package_has_the_known_gpus() -> None:
    root = Path(__file__).resolve().parents[2]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["package-data"]["pdssm_compiler.schedules"]
    listed = {path.stem for each in patterns for path in (root / "schedules").glob(each)}
    assert listed == set(named_targets())


PROGRAMS = [
    specialise(each)
    for spec in (PdScan(1, map_source="none"), PdScan(32, 8), PdScan(160, 4))
    for each in (pd_scan(spec), adjoint(pd_scan(spec)).program)
]


@given(gpus(), st.sampled_from(PROGRAMS), st.integers(0, 24), st.integers(0, 18))
@settings(max_examples=30)
def test_what_is_chosen_fits_any_gpu(gpu: Target, program: Any, rows: int, length: int) -> None:
    problem = Problem.bucket(1 << rows, 1 << length)
    schedule = choose(program, gpu, None, problem)
    assert schedule.template.feasible(program, gpu, schedule.config) is None
    # What is saved for calls of all sizes is what a call of any size asks for.
    assert problem.nearest_bucket in Problem.buckets()
    saved = choose(program, gpu, None, problem.nearest_bucket)
    assert (saved.template, saved.config) == (schedule.template, schedule.config)
