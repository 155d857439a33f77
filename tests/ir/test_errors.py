"""How errors show values: on one line, however long and whatever they are."""

from typing import Any

import numpy as np
import pytest

from pdssm_compiler.ir.errors import shown


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("not now")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2.0"),
        ("a\nb", r"'a\nb'"),
        (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
        ("x" * 100, f"'{'x' * 79}…"),
        (Silent(), "a Silent"),
    ],
    ids=["number", "text", "array", "long", "silent"],
)
def test_shown(value: Any, text: str) -> None:
    assert shown(value) == text
