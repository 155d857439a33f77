"""The site builds without a warning, and its API has every name that the package and its layers
export.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pdssm_compiler
from pdssm_compiler import nn

pytest.importorskip("sphinx", reason="the site is built where Sphinx is installed")

ROOT = Path(__file__).resolve().parents[2]


def test_it_builds_and_is_whole(tmp_path: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    # Doctrees are kept apart: nothing is written to the checkout.
    built = subprocess.run(
        [*command, "-d", tmp_path / "trees", ROOT / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (built.returncode, built.stderr) == (0, "")
    with (tmp_path / "site" / "objects.inv").open("rb") as file:
        found = InventoryFile.load(file, "", lambda base, name: name)
    listed = {name for kind, names in found.items() if kind.startswith("py:") for name in names}
    exported = {f"pdssm_compiler.{name}" for name in pdssm_compiler.__all__}
    exported |= {f"pdssm_compiler.nn.{name}" for name in nn.__all__}
    assert exported - listed == set()
    # What a layer is called by, as well.
    methods = ("forward", "step", "init_cache")
    layers = ("FlashPDSSM", "PDSSM", "CausalAttention", "CausalLM")
    of_layers = {f"pdssm_compiler.nn.{layer}.{name}" for layer in layers for name in methods}
    assert of_layers - listed == set()
