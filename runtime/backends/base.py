"""What a backend does: sources to files, files to a callable kernel."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from pdssm_compiler.schedules.source import KernelSource


class Sizes(NamedTuple):
    """The sizes of one call: ``B``, ``T``, ``H``."""

    batch: int
    length: int
    heads: int


class Kernel(ABC):
    """A loaded kernel."""

    @abstractmethod
    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        """Run on the current stream or thread.

        Args:
            tensors: the signature's arguments in order; complex ones as reals ``[..., 2]``, own
                axes dense, leading strides free.
            error: int64 ``[1]``, 0 unless a check fails; see
                :mod:`pdssm_compiler.schedules.signature`.
            sizes: the sizes of the call.
        """

    def launch_dense(
        self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes
    ) -> None:
        """:meth:`launch` for contiguous tensors, complex ones as they are."""
        reals = [torch.view_as_real(each) if each.is_complex() else each for each in tensors]
        self.launch(reals, error, sizes)

    def resources(self) -> dict[str, int]:
        """Registers, spills, shared memory, barriers, where the backend knows them."""
        return {}


class Backend(ABC):
    """A code generator."""

    name: str

    @abstractmethod
    def unavailable(self) -> str | None:
        """None if kernels can be compiled here, otherwise what is missing and the remedy."""

    @abstractmethod
    def compile(self, source: KernelSource, alignment: int) -> dict[str, bytes]:
        """The files of a cache entry, ``source.py`` among them.

        Raises:
            BackendUnavailableError: see :meth:`unavailable`.
        """

    def cannot_load(self, files: dict[str, bytes]) -> str | None:
        """None if a kernel that was compiled elsewhere runs here, otherwise what is missing and
        the remedy.

        Args:
            files: the kernel's, of :meth:`compile` or :meth:`deployable`.
        """
        return self.unavailable()

    def deployable(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """The files of an entry in the form that needs the least where it is loaded."""
        return files

    @abstractmethod
    def needs(self, files: dict[str, bytes]) -> str:
        """What a machine needs besides this package and torch to run a kernel.

        Args:
            files: the kernel's, of :meth:`compile` or :meth:`deployable`.
        """

    def stages(
        self, source: KernelSource, files: dict[str, bytes]
    ) -> dict[str, Callable[[], str]]:
        """What lies between the source and the machine, by name, made when called.

        Args:
            source: the source of an entry.
            files: the entry's files.
        """
        return {}

    @abstractmethod
    def load(self, source: KernelSource, alignment: int, files: dict[str, bytes]) -> Kernel:
        """A kernel from the files of an entry, on this machine's device.

        Raises:
            BackendUnavailableError: the kernel cannot run here.
        """
