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
KERNELS = "PDSSM_KERNELS"
POOL_LIMIT = "PDSSM_POOL_LIMIT"
TUNE = "PDSSM_TUNE"

_DEFAULT_LIMIT = 1 << 30
_DEFAULT_POOL = 256 << 20


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
    return _bytes(CACHE_LIMIT, _DEFAULT_LIMIT)


def kernel_folders() -> tuple[Path, ...]:
    """Folders of kernels compiled ahead of time: ``PDSSM_KERNELS``, separated as in ``PATH``."""
    named = os.environ.get(KERNELS, "")
    return tuple(Path(part) for part in named.split(os.pathsep) if part)


def pool_limit() -> int:
    """Most bytes of freed CPU outputs kept for the next ones, ``PDSSM_POOL_LIMIT``; 256 MiB unless
    told, and 0 keeps none.

    Raises:
        SettingError: not a whole number of bytes.
    """
    return _bytes(POOL_LIMIT, _DEFAULT_POOL)


def tune_effort() -> str:
    """How hard calls tune what no log speaks for, ``PDSSM_TUNE``: ``none``, unless told ``quick``
    or ``full``.

    Raises:
        SettingError: another word.
    """
    effort = os.environ.get(TUNE, "none")
    if effort not in ("none", "quick", "full"):
        raise SettingError(f"{TUNE} is none, quick or full, not {effort!r}")
    return effort


def _bytes(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise SettingError(f"{name} is a whole number of bytes, not {text!r}")
    return int(text)
