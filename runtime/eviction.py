"""What a cache's folder keeps, and when each part was last used.

The last use is the folder's time of change. It orders what is evicted; no kernel depends on it.
"""

import contextlib
import os
import re
from pathlib import Path

# Below a cache's folder: the launchers that Triton builds, each in a folder of its own.
LAUNCHERS = "triton"
_DIGEST = re.compile("[0-9a-f]{64}")
# Clocks of machines that share a file system differ a little.
_SKEW_SECONDS = 300.0


def entry_folders(root: Path) -> list[Path]:
    """The folders of entries, whole or corrupt. What is being filled or removed is none."""
    return [path for path in _inside(root) if _DIGEST.fullmatch(path.name)]


def kept_folders(root: Path) -> list[Path]:
    """All that counts towards a cache's size, each part of which can go by itself."""
    return [*entry_folders(root), *_inside(root / LAUNCHERS)]


def last_use(folder: Path, now: float) -> float:
    """When a folder was last used, in seconds; 0 where its time lies in the future.

    The clock has been set back since, so its time says nothing. Were it taken for the newest,
    nothing older would ever be kept beside it.

    Raises:
        OSError: the folder is gone.
    """
    used = folder.lstat().st_mtime
    return used if used <= now + _SKEW_SECONDS else 0.0


def bytes_of(folder: Path) -> int:
    """Bytes of the files right in a folder.

    Raises:
        OSError: it is gone.
    """
    with os.scandir(folder) as files:
        return sum(f.stat(follow_symlinks=False).st_size for f in files if f.is_file())


def _inside(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []
