"""Every op has a rule in every emitter, and nothing below ``schedules/`` knows a program."""

import ast
from pathlib import Path

import pytest

from pdssm_compiler.ir import programs
from pdssm_compiler.ir.ops import OPS
from pdssm_compiler.ir.ops.matrices import MATRIX_OPS
from pdssm_compiler.schedules.emit import (
    arithmetic,
    pytorch,
    torch_matrices,
    triton,
    triton_matrix_places,
    tvm,
)
from tests.imports import imported, sources


@pytest.mark.parametrize("emitter", [tvm, triton, pytorch], ids=["tvm", "triton", "pytorch"])
def test_every_op_has_a_rule(emitter: object) -> None:
    leaves = {"input", "carry"}
    assert set(OPS) - MATRIX_OPS - leaves == emitter.SUPPORTED_OPS - leaves


@pytest.mark.parametrize(
    "emitter", [torch_matrices, triton_matrix_places], ids=["torch", "triton"]
)
def test_every_op_over_matrices_has_a_rule(emitter: object) -> None:
    assert MATRIX_OPS == emitter.SUPPORTED_OPS


def test_every_function_has_a_spelling() -> None:
    for dialect in (tvm.DIALECT, triton.DIALECT, pytorch.DIALECT):
        assert set(dialect.functions) == set(arithmetic.FUNCTIONS)


def names_of_programs() -> set[str]:
    """Modules, functions and classes of ``ir.programs``, and the names their programs use."""
    folder = Path(programs.__path__[0])
    found = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                declares = node.func.attr in ("input", "carry", "emit", "final")
                if declares and isinstance(node.args[0], ast.Constant):
                    found.add(node.args[0].value)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found.add(node.name)
    return found


def test_schedules_name_no_program() -> None:
    # "state" is a word as well; it is looked for as a whole string only.
    forbidden = names_of_programs()
    assert {"pd_scan", "PdScan", "diagonal", "drive", "dictionary", "selection"} <= forbidden
    for path in sources("schedules"):
        for name in imported(path):
            assert not name.startswith("pdssm_compiler.ir.programs"), path
        tree = ast.parse(path.read_text())
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                assert name not in forbidden, f"{path}:{node.lineno}: {name}"
            if isinstance(node, ast.Constant) and id(node) not in docs:
                assert node.value not in forbidden, f"{path}:{node.lineno}: {node.value}"
