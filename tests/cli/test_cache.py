"""``pdssm-compiler cache``: what it holds, why a kernel is not in it, clearing it."""

import io
import os
import time
from pathlib import Path

import pytest

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.cache import KernelCache
from tests.cli.conftest import Command, error_line
from tests.cli.test_compile import rows

SPEC = ("-N", 4, "--map-source", "none")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiled(pdssm: Command, root: Path) -> list[Path]:
    """The entries of a forward and a backward kernel."""
    assert pdssm("compile", *SPEC, "--target", "cpu").status == 0
    return sorted(path for path in root.iterdir() if path.is_dir())


def test_ls(pdssm: Command, root: Path, compiled: list[Path]) -> None:
    done = pdssm("cache", "ls")
    assert done.status == 0
    found = rows(done.out)
    assert [row["key"] for row in found] == [
        path.name[:12] for path in sorted(compiled, key=lambda p: -p.stat().st_mtime)
    ]
    assert {row["program"].rpartition(" ")[0] for row in found} == {
        "scan N=4 forward",
        "scan N=4 backward",
    }
    for row in found:
        assert row["template"] == "cpu-rows"
        assert row["target"].startswith("cpu:")
        assert row["size"].endswith("kB")
        assert row["made"].endswith(" s")
        assert row["used"].endswith(" s")
        assert "pdssm-compiler=" in row["versions"]
        assert "apache-tvm-ffi=" in row["versions"]
    assert str(root) in done.out
    assert done.out.splitlines()[-1].startswith("2 entries, ")
    assert done.out.splitlines()[-1].endswith(" of 1.1 GB")


def test_ls_of_what_cannot_be_read(pdssm: Command, compiled: list[Path]) -> None:
    (compiled[0] / "entry.json").write_text("{")
    found = {row["key"]: row["program"] for row in rows(pdssm("cache", "ls").out)}
    assert found[compiled[0].name[:12]].startswith("JSONDecodeError: ")
    assert found[compiled[1].name[:12]].startswith("scan N=4 ")


def test_ls_of_nothing(pdssm: Command) -> None:
    assert pdssm("cache", "ls").out.splitlines()[-1] == "0 entries, 0 bytes of 1.1 GB"


def test_explain_hits(pdssm: Command, compiled: list[Path]) -> None:
    done = pdssm("cache", "explain", *SPEC, "--target", "cpu")
    found = rows(done.out)
    assert [(row["kernel"], row["cache"]) for row in found] == [
        ("forward", "hit"),
        ("backward", "hit"),
    ]
    assert {row["key"] for row in found} == {path.name[:12] for path in compiled}
    (compiled[0] / "kernel.o").write_bytes(b"")
    states = {row["cache"] for row in rows(pdssm("cache", "explain", *SPEC).out)}
    assert states == {"hit", "corrupt: kernel.o does not match its hash"}


def test_explain_misses(
    pdssm: Command, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in compiled}
    monkeypatch.setattr("pdssm_compiler.runtime.key.generator_hash", lambda: "f" * 64)
    done = pdssm("cache", "explain", *SPEC, "--target", "cpu", "--entries", 1)
    assert done.status == 0
    kernels, forward, backward = done.out.split("┏")[1:]
    assert [row["cache"] for row in rows(f"┏{kernels}")] == ["miss", "miss"]
    for table, kind in ((forward, "forward"), (backward, "backward")):
        # Headings of two lines: what it is, and the program.
        assert f"scan N=4 {kind} ┃ scan N=4 {kind} ┃" in table
        (row,) = (line for line in table.splitlines() if line.startswith("│"))
        name, wanted, there = (cell.strip() for cell in row.strip("│").split("│"))
        assert (name, wanted) == ("generator", "f" * 12)
        assert len(there) == 12
    # Nothing is compiled, and nothing counts as a use.
    assert {path: path.stat().st_mtime_ns for path in compiled} == before


def test_explain_for_another_target(pdssm: Command, compiled: list[Path]) -> None:
    done = pdssm("cache", "explain", *SPEC, "--target", "sm_90", "--template", "triton-rows")
    kernels = done.out.split("┏")[1]
    assert {(row["template"], row["alignment"]) for row in rows(f"┏{kernels}")} == {
        ("triton-rows", "0"),
        ("triton-rows", "16"),
    }
    assert "│ target     │ cuda:sm_90       │ cpu:" in done.out
    assert "│ template   │ triton-rows      │ cpu-rows" in done.out
    assert "config" not in done.out


def test_explain_where_there_is_nothing(pdssm: Command) -> None:
    done = pdssm("cache", "explain", *SPEC, "--target", "cpu")
    assert "forward cpu-rows" in done.out
    assert "there is nothing to compare it with" in done.out


def test_clear(
    pdssm: Command, root: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = time.time() - 3 * 86400
    os.utime(compiled[0], (old, old))
    (root / "staged-left").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    done = pdssm("cache", "clear", "--older-than", "2d")
    assert done.status == 1
    assert f"remove 1 entry, {size(compiled[0])}, of {root}? [y/N]" in done.out
    assert compiled[0].exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    done = pdssm("cache", "clear", "--older-than", "2d")
    assert done.status == 0
    assert done.out.endswith("removed 1 entry\n")
    assert not compiled[0].exists()
    assert not (root / "staged-left").exists()
    assert pdssm("cache", "clear", "--older-than", "2d", "--yes").out == "removed 0 entries\n"
    assert pdssm("cache", "clear", "--all", "--yes").out == "removed 1 entry\n"
    assert KernelCache(root, 1).entries() == []


def size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / 1000:.1f} kB"


def test_errors(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ((), ("--all", "--older-than", "3d")):
        message = error_line(pdssm("cache", "clear", *options))
        assert message == "say what to remove: either --older-than, such as 30d, or --all"
    for wrong in ("3", "d", "3x", "0d", "-1d", "three days"):
        message = error_line(pdssm("cache", "clear", f"--older-than={wrong}"))
        assert (
            message == f"--older-than is a number and s, m, h, d or w, such as 30d, not {wrong!r}"
        )
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    for command in (("ls",), ("explain", *SPEC), ("clear", "--all")):
        assert error_line(pdssm("cache", *command)) == "the cache is off: PDSSM_CACHE=0; unset it"
