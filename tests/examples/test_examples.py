"""Every example runs, and says what is so."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import count_modulo, split_sequence
from pdssm_compiler.ir import parse_program
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan

FOLDER = Path(count_modulo.__file__).parent


def said(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    import_module(f"examples.{name}").main()
    return capsys.readouterr().out


def test_each_has_a_test_and_a_line_in_the_readme() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert names == {"first_scan", "split_sequence", "count_modulo", "ahead_of_time", "fused_scan"}
    assert set(re.findall(r"`(\w+)\.py`", (FOLDER / "README.md").read_text())) == names


def test_first_scan(capsys: pytest.CaptureFixture[str]) -> None:
    text = said("first_scan", capsys)
    assert "states [2, 100, 4, 32], gradient of the diagonal [2, 100, 4, 32]" in text
    error = re.search(r"of the largest state: (\S+)", text)
    assert error is not None
    assert float(error[1]) < 1e-6
    assert re.search(r"scan N=32 forward on .*, by heuristic; ", text)
    assert "scan N=32 backward on " in text


def test_split_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    assert said("split_sequence", capsys) == "equal to the last bit: True\n"
    # It is not the same in any order, so the test above can fail.
    states = [split_sequence.last_state(split_sequence.pieces(cut)) for cut in ([3, 2], [2, 3])]
    assert not torch.equal(*states)


def test_fused_scan(capsys: pytest.CaptureFixture[str]) -> None:
    text = said("fused_scan", capsys)
    fused, separate = map(int, re.findall(r"(\d+) KiB kept", text))
    # A state a row and as much behind it, and at least the diagonal and the states of 2048 tokens.
    assert fused == 2
    assert separate >= 2 * 2048
    assert "the same gradients: True" in text


@given(st.text("ab", min_size=1, max_size=50))
def test_count_modulo(text: str) -> None:
    assert count_modulo.counts(text) == [text[: n + 1].count("a") % 3 for n in range(len(text))]


def test_count_modulo_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert said("count_modulo", capsys) == "a banana and an apple\n111220011222200011111\n"


def test_ahead_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    text = said("ahead_of_time", capsys)
    for target in ("cuda:sm_90", "hip:gfx942"):
        assert re.search(rf"{target}: [1-9]\d* registers, 0 spilled bytes", text)
    program = pd_scan(PdScan(32, 8, map_class="permutation"))
    assert parse_program(text[text.index("scan N=") :]) == specialise(program)
