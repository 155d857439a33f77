"""Every environment variable the package reads; docs/settings.md is their page.

They are read when used, not when imported, so a test or a notebook may set them late.
"""

import os
from pathlib import Path

import platformdirs

from pdssm_compiler.runtime.errors import SettingError

CACHE_DIR = "PDSSM_CACHE_DIR"
CACHE_ENABLED = "PDSSM_CACHE"
CACHE_LIMIT = "PDSSM_CACHE_LIMIT"

_DEFAULT_LIMIT = 1 << 30


def cache_dir() -> Path:
    """Where compiled kernels are kept: ``PDSSM_CACHE_DIR``, or the user's cache folder."""
    named = os.environ.get(CACHE_DIR)
    return Path(named) if named else Path(platformdirs.user_cache_dir("pdssm_compiler"))


def cache_enabled() -> bool:
    """Whether kernels are kept on disk: ``PDSSM_CACHE=0`` says no."""
    return os.environ.get(CACHE_ENABLED, "1") != "0"


def cache_limit() -> int:
    """Most bytes the cache may take, ``PDSSM_CACHE_LIMIT``; one GiB unless told.

    Raises:
        SettingError: not a whole number of bytes.
    """
    text = os.environ.get(CACHE_LIMIT)
    if text is None:
        return _DEFAULT_LIMIT
    if not text.isdecimal():
        raise SettingError(f"{CACHE_LIMIT} is a whole number of bytes, not {text!r}")
    return int(text)
