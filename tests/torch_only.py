"""A process without TVM, in which every CPU kernel is plain PyTorch."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pdssm_compiler.runtime import plan, settings
from pdssm_compiler.schedules import registry
from pdssm_compiler.schedules.templates.base import Template


@contextmanager
def torch_only(*templates: Template[Any]) -> Iterator[None]:
    """Nothing finds the package tvm, and neither a plan nor a kernel made with it is used.

    Args:
        templates: the fallbacks there are; none for those of the registry.
    """
    found = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *more: None if name == "tvm" else found(name, *more),
        )
        patch.setattr(plan, "_plans", {})
        patch.setenv(settings.CACHE_ENABLED, "0")
        if templates:
            patch.setattr(registry, "_FALLBACKS", templates)
        yield
