"""Settings: the environment variables, read when they are used."""

from pathlib import Path

import platformdirs
import pytest

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.cache import default_cache


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PDSSM_CACHE_DIR", str(tmp_path))
    assert settings.cache_dir() == tmp_path
    monkeypatch.delenv("PDSSM_CACHE_DIR")
    assert settings.cache_dir() == Path(platformdirs.user_cache_dir("pdssm_compiler"))
    monkeypatch.setenv("PDSSM_CACHE_DIR", "")
    assert settings.cache_dir() == Path(platformdirs.user_cache_dir("pdssm_compiler"))


def test_cache_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSSM_CACHE", "0")
    assert not settings.cache_enabled()
    assert default_cache() is None
    for value in ("1", ""):
        monkeypatch.setenv("PDSSM_CACHE", value)
        assert settings.cache_enabled()
    monkeypatch.delenv("PDSSM_CACHE")
    assert settings.cache_enabled()


def test_cache_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PDSSM_CACHE_LIMIT", raising=False)
    assert settings.cache_limit() == 2**30
    monkeypatch.setenv("PDSSM_CACHE_LIMIT", "4096")
    assert settings.cache_limit() == 4096
    for wrong in ("-1", "1 GiB", "1e9", ""):
        monkeypatch.setenv("PDSSM_CACHE_LIMIT", wrong)
        with pytest.raises(ValueError, match=f"whole number of bytes, not '{wrong}'"):
            settings.cache_limit()


def test_default_cache_follows_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PDSSM_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PDSSM_CACHE_LIMIT", "77")
    cache = default_cache()
    assert (cache.root, cache.limit) == (tmp_path, 77)
    # One object a folder, so that a warning is given once.
    assert default_cache() is cache


def test_pool_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PDSSM_POOL_LIMIT", raising=False)
    assert settings.pool_limit() == 2**28
    for text in ("0", "4096"):
        monkeypatch.setenv("PDSSM_POOL_LIMIT", text)
        assert settings.pool_limit() == int(text)
    monkeypatch.setenv("PDSSM_POOL_LIMIT", "lots")
    with pytest.raises(ValueError, match="POOL_LIMIT is a whole number of bytes, not 'lots'"):
        settings.pool_limit()
