"""What the files of the package import, read from their source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pdssm_compiler
import pdssm_compiler.ir
import pdssm_compiler.runtime
import pdssm_compiler.schedules

PACKAGES = {
    "ir": Path(pdssm_compiler.ir.__path__[0]),
    "schedules": Path(pdssm_compiler.schedules.__path__[0]),
    "runtime": Path(pdssm_compiler.runtime.__path__[0]),
    "": Path(pdssm_compiler.__path__[0]),
}


def sources(package: str) -> list[Path]:
    """The files of ``pdssm_compiler.<package>``; of the top package itself for ""."""
    found = sorted(PACKAGES[package].rglob("*.py"))
    assert found
    return found


def module_name(package: str, path: Path) -> str:
    """The dotted name of one of its files."""
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(part for part in ("pdssm_compiler", package, *parts) if part)


def imported(path: Path, *, at_import: bool = False) -> Iterator[str]:
    """Full names of the modules, and of the names, that a file imports.

    Args:
        path: the file.
        at_import: only what is imported when the file is: not what functions import when they
            are called, nor what only type checkers read.
    """
    for node in _nodes(ast.parse(path.read_text()), at_import):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _nodes(tree: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (at_import and (for_types or isinstance(node, ast.FunctionDef))):
            yield node
            yield from _nodes(node, at_import)
