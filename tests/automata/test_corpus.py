"""``load_corpus``: what is read, what is skipped with a line, what is an error."""

import os
import sysconfig
from pathlib import Path
from typing import IO, Any

import pytest

from pdssm_compiler.automata import Corpus, CorpusError, Text, corpus, load_corpus
from pdssm_compiler.ir.errors import PdssmError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a.txt").write_bytes(b"first\n")
    (tmp_path / "b" / "c.txt").write_bytes(b"second\xff\n")
    (tmp_path / "b" / "empty.txt").write_bytes(b"")
    (tmp_path / "b" / "zero.bin").write_bytes(b"x\0y")
    (tmp_path / ".hidden" / "d.txt").write_bytes(b"hidden")
    (tmp_path / ".e.txt").write_bytes(b"hidden too")
    return tmp_path


def test_the_standard_library_is_there_by_default() -> None:
    found = load_corpus(None, max_bytes=300_000)
    names = [text.name for text in found.texts]
    assert found.total_bytes == 300_000
    assert len(names) == len(set(names)) > 3
    root = Path(sysconfig.get_path("stdlib"))
    for text in found.texts:
        assert text.name.endswith(".py")
        assert "site-packages" not in text.name
        assert (root / text.name).read_bytes().startswith(text.data)
    (note,) = found.skipped
    assert note.endswith("bytes read, the byte budget ends here")
    assert found == load_corpus(None, max_bytes=300_000)


def test_a_folder_in_order_with_what_was_skipped(folder: Path) -> None:
    found = load_corpus([folder])
    assert found.texts == (
        Text(str(folder / "a.txt"), b"first\n"),
        Text(str(folder / "b" / "c.txt"), b"second\xff\n"),
    )
    assert found.skipped == (
        f"{folder / 'b' / 'empty.txt'}: it is empty",
        f"{folder / 'b' / 'zero.bin'}: it is binary",
    )
    assert found.total_bytes == 14


def test_a_named_file_may_be_hidden_or_binary(folder: Path) -> None:
    paths = [folder / "b" / "zero.bin", folder / ".e.txt"]
    assert [text.data for text in load_corpus(paths).texts] == [b"x\0y", b"hidden too"]


@pytest.mark.parametrize(
    ("budget", "data", "expected"),
    [
        (None, [b"first\n", b"second\xff\n"], []),
        (14, [b"first\n", b"second\xff\n"], []),
        (13, [b"first\n", b"second\xff"], ["7 of 8 bytes read, the byte budget ends here"]),
        (6, [b"first\n"], ["not read, the byte budget ends here"]),
        (
            2,
            [b"fi"],
            [
                "2 of 6 bytes read, the byte budget ends here",
                "not read, the byte budget ends here",
            ],
        ),
    ],
)
def test_the_budget_cuts_the_last_text(
    folder: Path, budget: int | None, data: list[bytes], expected: list[str]
) -> None:
    paths = [folder / "a.txt", folder / "b" / "c.txt"]
    found = load_corpus(paths, max_bytes=budget)
    assert [text.data for text in found.texts] == data
    notes = [line.rsplit(": ", 1)[1] for line in found.skipped]
    assert notes == expected


def test_a_long_file_is_read_to_its_end(tmp_path: Path) -> None:
    data = bytes(range(1, 256)) * 400
    (tmp_path / "long").write_bytes(data)
    assert load_corpus([tmp_path / "long"]) == Corpus((Text(str(tmp_path / "long"), data),))


def error_of(*paths: Path) -> str:
    with pytest.raises(CorpusError) as caught:
        load_corpus(list(paths))
    assert isinstance(caught.value, PdssmError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_named_file_that_cannot_be_searched(folder: Path) -> None:
    missing, empty = folder / "nowhere", folder / "b" / "empty.txt"
    assert error_of(folder / "a.txt", missing) == f"{missing} does not exist; check its name"
    assert error_of(empty) == f"{empty} cannot be searched: it is empty; name another"
    device = Path("/dev/null")
    assert error_of(device) == (
        f"{device} cannot be searched: it is neither a file nor a folder; name another"
    )
    assert "null byte" in error_of(Path("a\0b"))


def test_a_file_behind_a_closed_door(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, whom no door keeps out, so opening is made to fail.
    closed, opened = folder / "b" / "c.txt", Path.open

    def open_unless_closed(path: Path, mode: str) -> IO[Any]:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", open_unless_closed)
    expected = f"{closed} cannot be searched: permission denied; name another"
    assert error_of(closed) == expected
    found = load_corpus([folder])
    assert [text.data for text in found.texts] == [b"first\n"]
    assert f"{closed}: permission denied" in found.skipped


def test_a_folder_behind_a_closed_door(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert error_of(folder) == (
        f"there is no text to search in {folder}; name a file or folder with text; the first file "
        f"skipped is {folder}: permission denied"
    )


def test_a_file_too_large_to_be_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_FILE_BYTES", 7)
    large = folder / "b" / "c.txt"
    reason = "it has 8 bytes, more than the 7 of a text"
    assert error_of(large) == f"{large} cannot be searched: {reason}; name another"
    assert f"{large}: {reason}" in load_corpus([folder]).skipped


def test_nothing_to_read(tmp_path: Path) -> None:
    assert error_of(tmp_path) == (
        f"there is no text to search in {tmp_path}; name a file or folder with text"
    )
    assert error_of().startswith("there is no text to search in no path at all")


def test_a_budget_of_nothing() -> None:
    with pytest.raises(CorpusError, match="the byte budget is 0; give at least 1"):
        load_corpus(None, max_bytes=0)
