"""Devices of a test's own: what else tunes on this machine is not waited for."""

from pathlib import Path

import pytest

from pdssm_compiler.runtime.tuning import turns


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the devices' turns."""
    folder = tmp_path_factory.mktemp("machine")
    monkeypatch.setattr(turns, "_machine_folder", lambda: folder)
    return folder
