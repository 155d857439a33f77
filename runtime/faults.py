"""Checks that failed inside a kernel: where they are recorded and how they are told.

A kernel writes an error word (:mod:`pdssm_compiler.schedules.signature`) instead of stopping. On a
CPU it is read right after the call. On a GPU the words of all kernels stand in pinned memory that
the device writes through and the host reads without synchronising: what is found there is raised
by the next call, or by :func:`check`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from pdssm_compiler.ir.errors import PdssmError
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Index
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.errors import (
    IndexRangeError,
    NanLogitError,
    OffsetError,
    PromiseError,
)
from pdssm_compiler.schedules.signature import CHECK_SHIFT, ReportedCheck, Signature

_WORDS = 4096


@dataclass(frozen=True)
class Subject:
    """Whose maps a helper program checks.

    Attributes:
        name: the user's name of the tensor.
        axes: the tensor's leading axes as the user knows them, each with the axis of the helper's
            tokens ``[B, T, H]`` that it is, e.g. ``(("h", 2), ("k", 1))``.
    """

    name: str
    axes: tuple[tuple[str, int], ...]

    def place(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """An index into the helper's tokens, as one into the user's tensor."""
        return (*(index[axis] for _, axis in self.axes), *index[3:])


# Which maps and indices are hard choices: all, none, or those of these names.
Chosen = bool | frozenset[str]

_TOKENS = (("b", 0), ("t", 1), ("h", 2))


class Reporter:
    """Turns the error words of one program into exceptions.

    Args:
        program: the program.
        subject: for helper programs, whose maps they check.
        chosen: whether its maps and indices are hard choices
            (:mod:`pdssm_compiler.runtime.choices`), or the names of those that are: such a one is
            out of range where a logit was NaN, and only there.
    """

    def __init__(
        self, program: Program, subject: Subject | None = None, chosen: Chosen = False
    ) -> None:
        self._signature = Signature(program)
        self._program = program
        self._subject = subject
        self.chosen = chosen
        # Indices by which a state is kept: out of range where offsets are wrong, and only there
        # (:mod:`pdssm_compiler.runtime.packing`).
        self._flags = {v.args[1].name for v in program.body if v.op == "keep"}

    @property
    def has_checks(self) -> bool:
        """Whether the kernel can report anything."""
        return bool(self._signature.checks)

    def error(
        self,
        word: int,
        sizes: Sizes,
        tensors: Mapping[str, torch.Tensor] | None = None,
        first: int | None = 0,
    ) -> PdssmError:
        """The exception for an error word.

        Args:
            word: what the kernel wrote.
            sizes: sizes of the call.
            tensors: the call's inputs by name, to quote the entry at fault, where the host has
                them.
            first: which token of the caller's sequence the call's first one is; None for that of
                a segment, nobody knows which.
        """
        check = self._signature.checks[(word >> CHECK_SHIFT) - 1]
        token = word & ((1 << CHECK_SHIFT) - 1)
        if check.promise == "range":
            return self._range_error(check, token, sizes, tensors, first)
        name, place = self._name(check), self._where(check, token, sizes, first)
        return PromiseError(
            f"{name}{place} is not the {check.promise} that map_class promised; give maps that "
            f"are, or pass map_class='general'"
        )

    def _range_error(
        self,
        check: ReportedCheck,
        token: int,
        sizes: Sizes,
        tensors: Mapping[str, torch.Tensor] | None,
        first: int | None,
    ) -> PdssmError:
        input_ = self._program.input(check.subject)
        bound = input_.type.bound if isinstance(input_.type, Index) else self._program.state_size
        name = self._name(check)
        if check.subject in self._flags:
            return OffsetError(
                f"cu_seqlens does not cut the tokens into sequences ({name} is out of range): "
                f"offsets start at 0, do not decrease and end at T; look at them with .tolist()"
            )
        remedy = f"entries must lie in [0, {bound})"
        if tensors is not None:
            tensor = tensors[check.subject]
            # In the tensor's own dtype the bound may wrap: 256 is 0 in uint8.
            wide = tensor.long()
            wrong = ((wide < 0) | (wide >= bound)).nonzero()
            if len(wrong):
                index = tuple(wrong[0].tolist())
                found = tensor[index].item()
                if self._subject or input_.role == "token":
                    index = (index[0], index[1] + (first or 0), *index[2:])
                told = list(self._subject.place(index) if self._subject else index)
                return IndexRangeError(f"{name}{told} = {found}: {remedy}")
        where = self._where(check, token, sizes, first)
        if self.chosen is True or (self.chosen and name in self.chosen):
            return NanLogitError(
                f"the logits of {name}{where} have a NaN, so nothing can be chosen; look for what "
                f"made it"
            )
        return IndexRangeError(f"{name}{where} has an entry out of range: {remedy}")

    def _name(self, check: ReportedCheck) -> str:
        """What the user calls the tensor at fault."""
        if self._subject is not None:
            return self._subject.name
        return self._program.input(check.subject).inverse_of or check.subject

    def _where(self, check: ReportedCheck, token: int, sizes: Sizes, first: int | None) -> str:
        """Which part of it is at fault."""
        input_ = self._program.input(check.subject)
        heads = max(1, sizes.heads)
        if input_.inverse_of is not None:
            # The kernel inverts the table's maps: it knows which.
            return f"[h={token % heads}, k={token // heads}]"
        if input_.role == "head":
            return f" (head {token % heads})"
        return self._place(token, sizes, first)

    def _place(self, token: int, sizes: Sizes, first: int | None) -> str:
        heads, length = max(1, sizes.heads), max(1, sizes.length)
        t = (first or 0) + token // heads % length
        within = " of a segment" if first is None else ""
        values = (token // (heads * length), f"{t}{within}", token % heads)
        axes = self._subject.axes if self._subject else _TOKENS
        parts = [f"{name}={values[axis]}" for name, axis in axes]
        return f"[{', '.join(parts)}]"


class _HostWord(threading.local):
    """The error word of a thread's calls on the CPU."""

    def __init__(self) -> None:
        # A thread's first call may be anywhere: a default device has no say about an array's
        # tensor, nor has a transform of torch.func, in which a new tensor has no memory; under
        # fake tensors it would be one.
        self.array = np.zeros(1, np.int64)
        with _disable_current_modes():
            self.tensor = torch.from_numpy(self.array)


host_word = _HostWord()


class LastCall(NamedTuple):
    """What a message needs of a kernel's last call on a GPU.

    Attributes:
        sizes: of the call.
        in_segments: whether it was one of several, each a segment of a sequence.
    """

    sizes: Sizes
    in_segments: bool = False


class DeviceWords:
    """The error words of every kernel on GPUs; one word a kernel."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tensor: torch.Tensor | None = None
        self._array = np.zeros(0, dtype=np.int64)
        self._owners: list[tuple[Reporter, list[LastCall]]] = []

    def claim(self, reporter: Reporter) -> tuple[torch.Tensor, list[LastCall]]:
        """A kernel's word, ``[1]`` in pinned memory, and a one-element list in which its caller
        keeps what messages need of the last call.

        Raises:
            RuntimeError: more kernels than words.
        """
        with self._lock:
            if self._tensor is None:
                self._tensor = torch.zeros(
                    _WORDS, dtype=torch.int64, device="cpu", pin_memory=True
                )
            index = len(self._owners)
            if index == _WORDS:
                raise RuntimeError(f"more than {_WORDS} GPU kernels in one process")
            last = [LastCall(Sizes(0, 0, 0))]
            self._owners.append((reporter, last))
            # Every call looks through them: those that are claimed.
            self._array = self._tensor.numpy()[: index + 1]
            return self._tensor[index : index + 1], last

    def raise_any(self) -> None:
        """Raise what a kernel has recorded, and forget it.

        Raises:
            IndexRangeError, NanLogitError, OffsetError, PromiseError: a check failed in an
                earlier call.
        """
        if not self._array.any():
            return
        with self._lock:
            found = np.flatnonzero(self._array).tolist()
            # A NaN is first: what else reads the same choices, as a backward does, reports them.
            index = min(found, key=lambda place: not self._owners[place][0].chosen)
            word = int(self._array[index])
            self._array[:] = 0
        reporter, last = self._owners[index]
        first = None if last[0].in_segments else 0
        raise reporter.error(word, last[0].sizes, first=first)


device_words = DeviceWords()


def check(synchronize: bool = True) -> None:
    """Raise the error of any earlier GPU scan whose indices were out of range, whose maps broke
    their promise, whose logits had a NaN, or whose offsets did not cut its tokens into sequences.

    Args:
        synchronize: wait for the GPU first, so that nothing still running is missed.

    Raises:
        IndexRangeError, NanLogitError, OffsetError, PromiseError: see above.
    """
    if synchronize and torch.cuda.is_available():
        torch.cuda.synchronize()
    device_words.raise_any()
