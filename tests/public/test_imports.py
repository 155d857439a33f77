"""Which way imports point, and what importing and calling the package loads."""

import json
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pdssm_compiler
from tests.imports import PACKAGES, imported, module_name, sources

ROOT = Path(pdssm_compiler.__file__).parent.parent

# What each package may import of the others; the top package, of all. Shipped logs are data.
BELOW = {"ir": set(), "schedules": {"ir"}, "runtime": {"ir", "schedules", "autotune_logs"}}

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


@pytest.mark.parametrize("package", BELOW)
def test_imports_point_one_way(package: str) -> None:
    allowed = BELOW[package] | {package}
    for path in sources(package):
        for name in imported(path):
            if name.startswith("pdssm_compiler"):
                parts = [*name.split("."), ""]
                assert parts[1] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("package", ["ir", "schedules"])
def test_no_tensor_library_below_the_runtime(package: str) -> None:
    for path in sources(package):
        roots = {name.partition(".")[0] for name in imported(path)}
        assert not roots & {"torch", "triton", "tvm", "tvm_ffi"}, path


def test_the_top_package_imports_nothing_when_it_is_imported() -> None:
    found = set(imported(PACKAGES[""] / "__init__.py", at_import=True))
    assert found == {"importlib.import_module", "typing.TYPE_CHECKING", "typing.Any"}


def test_only_the_command_line_imports_the_command_line() -> None:
    for path in sources(""):
        inside = "cli" in path.parent.parts or path.name == "__main__.py"
        for name in imported(path):
            assert inside or not name.startswith("pdssm_compiler.cli"), f"{path} imports {name}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    files = {module_name(p, path): path for p in PACKAGES for path in sources(p)}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        # What is imported is a module, or a name in one.
        reached = (
            found if found in files else found.rpartition(".")[0]
            for found in imported(path, at_import=True)
        )
        graph[name] = {found for found in reached if found in files}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, naming the cycle


def test_the_top_packages_modules_do_not_go_through_its_lazy_names() -> None:
    modules = {module_name(p, path) for p in PACKAGES for path in sources(p)}
    for path in sources(""):
        if path.name != "__init__.py" or path.parent != PACKAGES[""]:
            for name in imported(path):
                lazy = name.startswith("pdssm_compiler.") and name.count(".") == 1
                assert not lazy or name in modules, f"{path} imports {name}"


def test_no_module_has_the_name_of_what_the_package_exports() -> None:
    """Importing it would put the module in the place of what is exported."""
    modules = {path.stem if path.is_file() else path.name for path in PACKAGES[""].iterdir()}
    assert modules & set(pdssm_compiler.__all__) == {"reference"}


def test_the_wheel_has_every_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        module_name(package, path)
        for package in PACKAGES
        for path in sources(package)
        if path.name == "__init__.py"
    }
    assert set(setuptools["packages"]) == found | {"pdssm_compiler.autotune_logs"}
    assert "py.typed" in setuptools["package-data"]["pdssm_compiler"]
