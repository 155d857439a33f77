"""How the scans are called: names, order and defaults, which calls of users rely on."""

from inspect import Parameter, signature
from typing import Any

import pytest

import pdssm_compiler
from pdssm_compiler import reference

PROMISED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "pd_scan": (
        ["diagonal", "drive"],
        dict.fromkeys(("dictionary", "selection", "destination", "initial_state", "cu_seqlens"))
        | {"output_final_state": False, "reverse": False},
    ),
    "flash_pd_scan": (
        ["dictionary_logits", "selector_logits", "diagonal", "drive"],
        dict.fromkeys(("initial_state", "cu_seqlens"))
        | {"temperature": 1.0, "surrogate": "active", "output_final_state": False},
    ),
    "pd_scan_step": (
        ["state", "diagonal", "drive"],
        dict.fromkeys(("dictionary", "selection", "destination")),
    ),
}
CALLS = {name: getattr(pdssm_compiler, name) for name in PROMISED} | {
    f"reference.{name}": getattr(reference, name) for name in ("pd_scan", "flash_pd_scan")
}


@pytest.mark.parametrize("name", CALLS)
def test_they_are_as_promised(name: str) -> None:
    found = signature(CALLS[name]).parameters
    first, options = PROMISED[name.removeprefix("reference.")]
    of_place = [p.name for p in found.values() if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    assert of_place == first
    assert all(found[each].default is Parameter.empty for each in first)
    for option, default in options.items():
        assert found[option].kind is Parameter.KEYWORD_ONLY
        assert found[option].default == default, option
    # What came later can be left out.
    assert all(p.default is not Parameter.empty for p in found.values() if p.name not in first)
