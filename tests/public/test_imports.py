"""What importing and calling the package loads: a fresh process tells."""

import json
import subprocess
import sys
from pathlib import Path

import pdssm_compiler

ROOT = Path(pdssm_compiler.__file__).parent.parent

SCAN = """
import torch, pdssm_compiler
tensor = torch.ones(2, 3, 2, 5, dtype=torch.complex64)
states, _ = pdssm_compiler.pd_scan(tensor, tensor)
assert states[0, 2, 0, 0] == 3
print(pdssm_compiler.explain()[-1].origin, file=sys.stderr)
"""


def loaded_by(code: str) -> tuple[set[str], str]:
    """Names in ``sys.modules`` after some code ran in a process of its own, and its messages."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout)), done.stderr


def test_import_pdssm_compiler_is_light() -> None:
    modules, _ = loaded_by("import pdssm_compiler")
    assert not {"torch", "triton", "tvm", "tvm_ffi", "numpy"} & modules
    assert not {name for name in modules if name.startswith("pdssm_compiler.")}


def test_import_ir_loads_no_kernels() -> None:
    modules, _ = loaded_by("import pdssm_compiler.ir, pdssm_compiler.ir.passes")
    assert not {"torch", "triton", "tvm", "tvm_ffi"} & modules


def test_import_schedules_loads_no_compiler() -> None:
    modules, _ = loaded_by("import pdssm_compiler.schedules.registry")
    assert not {"torch", "triton", "tvm", "tvm_ffi"} & modules


def test_every_public_name_is_there() -> None:
    for name in pdssm_compiler.__all__:
        if name not in ("CompiledScan", "compile"):
            assert getattr(pdssm_compiler, name) is not None
    assert set(pdssm_compiler.__all__) <= set(dir(pdssm_compiler))


def test_pd_scan_on_a_warm_cache_does_not_import_tvm() -> None:
    cold, messages = loaded_by(SCAN)
    if "compiled" in messages:
        assert "tvm" in cold
    warm, messages = loaded_by(SCAN)
    assert "disk" in messages
    assert not {"tvm", "triton"} & warm
