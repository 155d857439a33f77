"""Layers under DDP, FSDP2 and distributed checkpoints: two processes on a CPU, with gloo.

They are launched once. A dead-lock ends the launch by its time.
"""

from pathlib import Path

import pytest

from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.nn.agreement import ACTS, assert_found, assert_loads_alone, played
from tests.nn.ranks import MODELS
from tests.torch_only import torch_only

SECONDS = 150.0
pytestmark = pytest.mark.timeout(SECONDS + 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch_only(TorchTokens()):
        return played(tmp_path_factory.mktemp("ranks"), "cpu", SECONDS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("act", ACTS)
def test_two_processes_find_what_one_does(folder: Path, act: str, name: str) -> None:
    assert_found(folder, act, name)


@pytest.mark.parametrize("name", MODELS)
def test_a_sharded_checkpoint_is_loaded_by_one_process(folder: Path, name: str) -> None:
    assert_loads_alone(folder, name)
