"""``pdssm-compiler log``: what logs say, and clearing them."""

import io
from pathlib import Path

import pytest

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.tuning import log
from pdssm_compiler.runtime.tuning.log import append_rows, keep_program
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from tests.cli.conftest import Command, error_line
from tests.runtime.tuning.made_rows import PROGRAM, predicted, row


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's logs; nothing is shipped but one row."""
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "cache"))
    monkeypatch.setattr("pdssm_compiler.cli.log.shipped_logs", lambda: tmp_path / "shipped")
    append_rows(tmp_path / "shipped" / "theirs" / "n6.jsonl", [row(ms=7.0, threads=0)])
    return log.user_logs()


def fill(root: Path) -> None:
    append_rows(root / "mine" / "n6.jsonl", [
        row(CpuRowsConfig(1), ms=3.0, heuristic=True, changes=0, threads=2),
        row(CpuRowsConfig(2), ms=2.0, threads=2),
        row(CpuRowsConfig(2), ms=1.0, threads=8),
        row(ms=5.0, length=9000, threads=2),
    ])  # fmt: skip
    append_rows(root / "mine" / "n7.jsonl", [row(ms=None, status="wrong", error="off")])
    append_rows(root / "a-gpu" / "n6.predicted.jsonl", [predicted(0.25, heuristic=True)])
    keep_program(root, PROGRAM)


def test_ls(pdssm: Command, root: Path) -> None:
    fill(root)
    done = pdssm("log", "ls")
    assert (done.status, done.err) == (0, "")
    assert [line.rstrip().partition(" split_scatter")[0] for line in done.out.splitlines()] == [
        "this user's: a-gpu",
        "  a small scan forward, B=4 T=100 H=2: 0.25 ms predicted 2030-01-02, triton-rows "
        "rows=1 num_warps=1 unroll=4 prepared=True",
        "this user's: mine",
        "  a small scan forward, B=4 T=100 H=2 on 2 threads: 2 ms measured 2030-01-02, cpu-rows "
        "max_heads=2",
        "  a small scan forward, B=4 T=100 H=2 on 8 threads: 1 ms measured 2030-01-02, cpu-rows "
        "max_heads=2",
        "  a small scan forward, B=4 T=9000 H=2 on 2 threads: 5 ms measured 2030-01-02, cpu-rows "
        "max_heads=3",
        "  n7.jsonl: none, nothing right among 1 rows",
        "shipped: theirs",
        "  a small scan forward, B=4 T=100 H=2: 7 ms measured 2030-01-02, cpu-rows max_heads=3",
    ]
    only = pdssm("log", "ls", "--device", "mine").out
    assert "this user's: mine" in only
    assert "shipped: none of mine in" in only
    assert "a-gpu" not in only


def test_ls_in_a_narrow_terminal(
    pdssm: Command, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_rows(root / "mine" / "n6.jsonl", [row(label="\x1b[31mB=4 T=100 H=2: a\nscan")])
    whole = pdssm("log", "ls", "--device", "mine").out
    assert len(whole.splitlines()) == 3
    assert "?[31mB=4 T=100 H=2: a?scan forward, B=4 T=100 H=2 on" in whole
    monkeypatch.setenv("COLUMNS", "80")
    narrow = pdssm("log", "ls", "--device", "mine").out
    lines = [line for line in narrow.splitlines() if line.startswith("  ")]
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 3
    assert "".join(narrow.split()) == "".join(whole.split())


def test_damaged_lines_are_told(pdssm: Command, root: Path) -> None:
    fill(root)
    path = root / "mine" / "n6.jsonl"
    path.write_bytes(b'{"half\n\xff\n' + path.read_bytes())
    # Listed is what is shipped as well.
    message = error_line(pdssm("log", "ls", "--device", "x"))
    assert message == "no logs of 'x'; there are those of a-gpu, mine, theirs"
    (root / "mine" / "folder.jsonl").mkdir()
    done = pdssm("log", "ls", "--device", "mine")
    assert done.status == 0
    assert done.err.splitlines()[0] == f"{root / 'mine' / 'folder.jsonl'} is no file"
    assert [line.partition(" is passed")[0] for line in done.err.splitlines()[1:]] == [
        f"{path}:1", f"{path}:2",
    ]  # fmt: skip
    assert "B=4 T=9000 H=2" in done.out


def test_clear(pdssm: Command, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    done = pdssm("log", "clear", "--device", "mine")
    assert done.status == 1
    assert f"remove 2 files of {root}? [y/N]" in done.out
    assert len(list(root.glob("*/*.jsonl"))) == 3
    assert pdssm("log", "clear", "--device", "mine", "--yes").out == "removed 2 files\n"
    assert [path.parent.name for path in root.glob("*/*.jsonl")] == ["a-gpu"]
    assert len(list(root.glob("programs/*"))) == 1
    assert pdssm("log", "clear", "--all", "-y").out == "removed 1 file\n"
    assert pdssm("log", "clear", "--all", "-y").out == "removed 0 files\n"
    assert list(root.glob("programs/*")) == []
    told = pdssm("log", "ls").out
    assert told.startswith(f"this user's: none in {root}\n")
    assert "shipped: theirs" in told


def test_errors(pdssm: Command, root: Path) -> None:
    for options in ((), ("--all", "--device", "mine")):
        message = error_line(pdssm("log", "clear", *options))
        assert message == "say what to remove: either --device, a folder of log ls, or --all"
    message = error_line(pdssm("log", "clear", "--device", "x"))
    assert message == f"no logs of 'x' in {root}; there are those of none"
    fill(root)
    message = error_line(pdssm("log", "clear", "--device", "theirs"))
    assert message == f"no logs of 'theirs' in {root}; there are those of a-gpu, mine"
    (root / "mine" / "folder.jsonl").mkdir()
    message = error_line(pdssm("log", "clear", "--device", "mine", "--yes"))
    assert message.startswith(f"cannot remove all of {root}: ")
