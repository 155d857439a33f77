"""Small models train on one thread: of several, in several test workers, each waits for others."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
