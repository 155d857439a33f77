"""Libraries that launch Triton's kernels are the cache's, whatever the environment names."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pdssm_compiler.runtime import settings

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import json, os, sys
touched, built = [], []
sys.addaudithook(
    lambda event, given: touched.extend(
        f"{event} {os.fsdecode(each)}"
        for each in given
        if isinstance(each, (str, bytes)) and "unlikely-name-of-a-folder" in os.fsdecode(each)
    )
    if event != "os.putenv"
    else None
)
import torch, pdssm_compiler
from triton.runtime import build
real = build._build
build._build = lambda *a, **k: built.append(1) or real(*a, **k)
x = torch.randn(2, 9, 3, 5, dtype=torch.complex64, device="cuda")
spec = pdssm_compiler.ScanSpec(5, map_source="none")
scan = pdssm_compiler.compile(spec, "cuda", config="triton-rows")
states, _ = scan(x, x)
want, _ = pdssm_compiler.reference.pd_scan(x, x)
torch.testing.assert_close(states, want, rtol=1e-4, atol=1e-3)
print(json.dumps([pdssm_compiler.explain()[0].origin, touched, len(built)]))
"""


def test_folders_of_triton_are_left_alone(tmp_path: Path) -> None:
    hostile = tmp_path / "unlikely-name-of-a-folder"
    hostile.mkdir()
    hostile.chmod(0o777)
    named = dict.fromkeys(("TRITON_CACHE_DIR", "TRITON_HOME"), str(hostile))
    environment = os.environ | named | {settings.CACHE_DIR: str(tmp_path / "cache")}

    def run() -> list:
        done = subprocess.run(
            [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    _, touched, built = run()
    assert touched == []
    assert built > 0
    libraries = list((tmp_path / "cache" / "triton").glob("*/*.so"))
    assert len(libraries) == built
    assert run() == ["disk", [], 0]
    # One that was exchanged is not loaded.
    libraries[0].write_bytes(libraries[0].read_bytes()[:-1] + b"x")
    assert run() == ["disk", [], 1]
    assert list(hostile.iterdir()) == []
