"""``pdssm-compiler run``: a user's own pattern and files, and a line for each thing wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdssm_compiler.automata import device_search
from tests.cli.conftest import Command, error_line


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("pi = 3.1415, e = 2.71; 42 is all, 1.2.3 is none\n" * 20)
    return path


def test_a_pattern_and_files_of_ones_own(pdssm: Command, text: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    done = pdssm("run", "--regex", r"[0-9]+(\.[0-9]+)?", text, text, "--plot", plot)
    assert done.status == 0, done.err
    assert "2 texts" in done.out
    assert "on cpu" in done.out or "on cuda" in done.out
    row = next(line for line in done.out.splitlines() if r"[0-9]+(\.[0-9]+)?" in line)
    assert f"│ {2 * 20 * 5} " in row  # 3.1415, 2.71, 42, 1.2 and 3, in each line
    assert "every state and match" in row
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_known_pattern(pdssm: Command, text: Path, tmp_path: Path) -> None:
    done = pdssm("run", "--pattern", "integers", text, "--plot", tmp_path / "plot.svg")
    assert done.status == 0
    assert "integers" in done.out
    assert "identifiers" not in done.out


def test_a_folder_says_what_it_skipped(pdssm: Command, text: Path, tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    done = pdssm("run", "--regex", "[a-z]+", tmp_path, "--plot", tmp_path / "plot.pdf")
    assert done.status == 0
    assert "1 texts" in done.out
    assert "binary.txt: it is binary" in done.err


def test_a_wrong_state_or_match_is_told(
    pdssm: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = device_search.search
    for wrong, said in (
        ({"wrong_states": 3}, "WRONG: 3 states"),
        ({"wrong_texts": ("some.py",)}, "WRONG: 0 states, matches in some.py"),
    ):

        def search(*arguments: Any, _wrong: Any = wrong, **more: Any) -> Any:
            return replace(real(*arguments, **more), **_wrong)

        monkeypatch.setattr(device_search, "search", search)
        done = pdssm("run", "--regex", "a", text, "--plot", tmp_path / "plot.png")
        assert done.status == 1
        assert said in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--regex", "a("), "pattern 'a(' is not a regular expression: missing )"),
        (
            ("--regex", "(a|b)*a(a|b){18}"),
            "the automaton of pattern '(a|b)*a(a|b){18}' was given up",
        ),
        (("--regex", "a*"), "pattern 'a*' matches the empty string"),
        (("--regex", "^a"), "pattern '^a' uses an anchor"),
        (("--pattern", "floats"), "unknown pattern 'floats'; known: integers, identifiers, "),
        (("--device", "tpu"), "unknown device 'tpu'; use cpu"),
        (("--device", "cuda:7"), "torch sees no device 'cuda:7'; use cpu"),
        (("nowhere.txt",), "nowhere.txt does not exist; check its name"),
        (("/dev/null",), "/dev/null cannot be searched: it is neither a file nor a folder; name"),
        (("--plot", "plot.txt"), "--plot names a .png, .pdf or .svg file, not plot.txt"),
        (("--plot", "nowhere/plot.png"), "there is no folder nowhere to write the plot to"),
    ],
    ids=lambda item: item[-1] if isinstance(item, tuple) else "",
)
def test_each_thing_wrong_has_its_line(
    arguments: tuple[str, ...], message: str, pdssm: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("aaa")
    files = ("a.txt",) if arguments[0].startswith("--") else ()
    assert error_line(pdssm("run", *arguments, *files)).startswith(message)


def test_an_unreadable_file(pdssm: Command, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        # The tests may run as root, whom no permission stops.
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    message = error_line(pdssm("run", "--regex", "a", text))
    assert message == f"{text} cannot be searched: permission denied; name another"


def test_a_plot_that_cannot_be_written(pdssm: Command, text: Path) -> None:
    done = pdssm("run", "--regex", "a", text, "--plot", "/proc/plot.png")
    assert done.status == 1
    assert "pdssm-compiler: cannot write the plot to /proc/plot.png: " in done.err
    assert done.err.strip().endswith("; choose --plot")
