"""Most of these tests run generated PyTorch: what a layer does around its scan is the same for
every kernel, and dozens of small programs would take minutes to compile.
"""

from collections.abc import Iterator

import pytest

from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.torch_only import torch_only


@pytest.fixture(autouse=True)
def templates(request: pytest.FixtureRequest) -> Iterator[None]:
    """Scans are of ``torch-tokens``, unless the test is marked to take what users get."""
    if "kernels" in request.fixturenames:
        yield
    else:
        with torch_only(TorchTokens()):
            yield


@pytest.fixture
def kernels() -> None:
    """A test that asks for this runs the kernels that users get on a CPU."""
