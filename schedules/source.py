"""What a template makes of a program: source text and how to compile it."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.chunking import Chunking
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.target import Target

Backend = Literal["tvm", "tvm-cuda", "triton", "torch"]
Runs = Literal["tokens", "chunk", "next chunk", "summaries", "map", "groups", "matrices"]


@dataclass(frozen=True)
class Phase:
    """One of the functions that a source runs one after the other.

    Attributes:
        entry: the function's name.
        arguments: its tensors: those of the whole source by name, and scratch.
        runs: what one program of its grid goes through in order: ``tokens`` of a block of rows;
            ``chunk``: those of one chunk of a block of rows; ``next chunk``: the same, of the
            chunk that no program before it has taken; ``summaries``: a step for each chunk of a
            block of rows; ``map``: one map of the table that is the first argument, for a
            block of heads; ``groups``: the chunks' sums of one value of an index, for a block of
            rows, whose groups the first argument has; ``matrices``: see
            :mod:`~pdssm_compiler.schedules.emit.triton_matrices`.
    """

    entry: str
    arguments: tuple[Argument, ...]
    runs: Runs = "tokens"


@dataclass(frozen=True)
class KernelSource:
    """Generated source.

    Attributes:
        backend: the code generator that reads it.
        text: the source, with the program's text form in its header.
        entry: the function to call.
        program: the lowered program it runs, in the names that the text has for it.
        template: the name of the template that made it.
        config: the template's config, as a dict.
        target: what it is for.
        options: what the backend's compiler is told.
        phases: the functions to run, where there are several.
        scratch: tensors that one phase writes for the next, or the blocks of one launch for one
            another; their roles are ``chunk``, ``head`` or ``signal``.
        chunking: how rows are cut into chunks, where they are.
        inverts: whether for inverses of tables the kernel takes the tables themselves: it inverts
            their maps, and reports those that are no permutations.
    """

    backend: Backend
    text: str
    entry: str
    program: Program
    template: str
    config: dict[str, Any]
    target: Target
    options: dict[str, Any] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    scratch: tuple[Argument, ...] = ()
    chunking: Chunking | None = None
    inverts: bool = False

    @property
    def signature(self) -> Signature:
        """The calling convention."""
        return Signature(self.program)

    @property
    def launches(self) -> tuple[Phase, ...]:
        """Every function, in the order they run."""
        return self.phases or (Phase(self.entry, self.signature.arguments),)


class Writer:
    """Lines of generated Python, indented by blocks."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def line(self, text: str = "") -> None:
        """One line at the current depth."""
        self._lines.append("    " * self._depth + text if text else "")

    def comment(self, text: str) -> None:
        """Comment lines, one for each line of the text."""
        for line in text.splitlines():
            self.line(f"# {line}".rstrip())

    @contextmanager
    def block(self, header: str, optional: bool = False) -> Iterator[None]:
        """An indented block below ``header``; an empty one gets ``pass``, or is left out where it
        is optional.
        """
        self.line(header)
        self._depth += 1
        before = len(self._lines)
        yield
        empty = len(self._lines) == before
        if empty and not optional:
            self.line("pass")
        self._depth -= 1
        if empty and optional:
            self._lines.pop()

    @property
    def text(self) -> str:
        """Everything written."""
        return textwrap.dedent("\n".join(self._lines)) + "\n"
