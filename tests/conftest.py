"""What every test of the project shares: the Hypothesis profiles and a kernel cache of the run."""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("local", max_examples=25, deadline=None, print_blob=True)
# The same examples in every run: a red CI is a change, not a new draw.
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
# For long runs: pytest --hypothesis-profile=stress
settings.register_profile("stress", settings.get_profile("local"), max_examples=1000)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# A test makes little garbage, and the modules of torch, Triton and TVM are none.
gc.set_threshold(10_000, 20, 50)

_CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One fresh kernel cache a run; the workers of pytest-xdist inherit it."""
    if not hasattr(config, "workerinput"):
        config.stash[_CACHE] = tempfile.mkdtemp(prefix="pdssm-tests-")
        os.environ["PDSSM_CACHE_DIR"] = config.stash[_CACHE]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what needs a process of its own, unless this is it."""
    alone = os.environ.get("TRITON_INTERPRET") == "1"
    return True if collection_path.name == "triton_interpreter" and not alone else None


def pytest_collection_finish() -> None:
    """What was imported is not looked through again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Leave torch as many threads as it had: commands that tests run in this process set them."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    result = yield
    if torch and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return result


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it; what was not looked through is cleared in the end."""
    gc.unfreeze()
    if _CACHE in config.stash:
        shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


@pytest.fixture
def no_shipped_logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Heuristics alone choose, whatever has been shipped meanwhile."""
    from pdssm_compiler.runtime.tuning import resolve

    monkeypatch.setattr(resolve, "shipped_logs", lambda: tmp_path / "none")
    resolve.forget()
    yield
    resolve.forget()
