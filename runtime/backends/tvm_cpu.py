"""TVM for CPUs: TVMScript to an object file, linked in memory.

TVM itself (a second to import, hundreds of megabytes) is needed to compile only. A cached object
file is linked by the FFI's just-in-time linker, and uses TVM's small runtime library for its
threads, so neither compiling nor loading needs a C compiler, and a warm start does not import TVM.
A kernel to be deployed is linked to a shared library, by a C compiler; that needs the FFI alone.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.runtime.backends.base import Backend, Kernel, Sizes
from pdssm_compiler.runtime.backends.cpu_threads import provide_threads
from pdssm_compiler.runtime.backends.matrices import laid_out, put_back
from pdssm_compiler.runtime.backends.tvm_script import import_tvm, parsed
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.runtime.staging import private_folder
from pdssm_compiler.schedules.emit.tvm_matrices import choice_arguments
from pdssm_compiler.schedules.emit.tvm_matrix_gradients import Parts, parts_of
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.templates.cpu_matrices import CpuMatricesConfig, cpu_shape
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig, launch, token_bytes

_OBJECT = "kernel.o"
LIBRARY = "kernel.so"
_SOURCE = "source.py"
C_COMPILERS = ("cc", "gcc", "clang")
_REMEDY = "install pdssm-compiler with its dependencies (pip install pdssm-compiler)"


class TvmCpu(Backend):
    """The backend; see the module's text."""

    name = "tvm"

    def unavailable(self) -> str | None:
        return _wrong_system() or missing_package("tvm_ffi", "tvm_ffi_orcjit", "tvm")

    def cannot_load(self, files: dict[str, bytes]) -> str | None:
        linker = () if LIBRARY in files else ("tvm_ffi_orcjit",)
        return _wrong_system() or missing_package("tvm_ffi", *linker)

    def compile(self, source: KernelSource, alignment: int) -> dict[str, bytes]:
        missing = self.unavailable()
        if missing:
            raise BackendUnavailableError(f"cannot compile for {source.target}: {missing}")
        tvm = import_tvm()
        module = parsed(source.text, {})
        processor = tvm.get_global_func("target.llvm_get_system_cpu")()
        target = tvm.target.Target({"kind": "llvm", "mcpu": processor, "opt-level": 3})
        # Storage rewriting would drop what keeps small arrays on the stack.
        with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
            executable = tvm.compile(module, target=target)
        with private_folder() as folder:
            path = folder / _OBJECT
            executable.mod.write_to_file(str(path), "o")
            return {_OBJECT: path.read_bytes(), _SOURCE: source.text.encode()}

    def deployable(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """A library, linked by the C compiler; the object file where there is none."""
        compiler = next(filter(shutil.which, C_COMPILERS), None)
        if compiler is None or LIBRARY in files:
            return files
        with private_folder() as folder:
            made_from, made = folder / _OBJECT, folder / LIBRARY
            made_from.write_bytes(files[_OBJECT])
            # What it uses of the C library and of the FFI is in the process that loads it.
            command = [compiler, "-shared", "-nostdlib", "-o", str(made), str(made_from)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise BackendUnavailableError(f"{compiler} cannot link a kernel: {result.stderr}")
            return {LIBRARY: made.read_bytes(), _SOURCE: files[_SOURCE]}

    def needs(self, files: dict[str, bytes]) -> str:
        return "apache-tvm-ffi" + ("" if LIBRARY in files else ", apache-tvm-ffi-orcjit")

    def load(self, source: KernelSource, alignment: int, files: dict[str, bytes]) -> Kernel:
        missing = self.cannot_load(files)
        if missing:
            raise BackendUnavailableError(f"cannot run on {source.target}: {missing}")
        _load_runtime()
        if LIBRARY in files:
            module = _load_library(files[LIBRARY])
        else:
            import tvm_ffi_orcjit

            module = tvm_ffi_orcjit.default_session().load_module(files[_OBJECT])
        if source.program.over_matrices:
            parts = parts_of(source.program)
            if parts is not None:
                return TvmMatrixGradientsKernel(module, source, parts)
            return TvmChoiceKernel(module, source)
        return TvmCpuKernel(module, CpuRowsConfig(**source.config), source.signature)


def _wrong_system() -> str | None:
    if sys.platform.startswith("linux"):
        return None
    return f"TVM's runtime library is loaded on Linux only, and this is {sys.platform}"


def _load_library(content: bytes) -> Any:
    import tvm_ffi

    with private_folder() as folder:
        path = folder / LIBRARY
        path.write_bytes(content)
        return tvm_ffi.load_module(path)


class TvmCpuKernel(Kernel):
    """A linked kernel. It follows ``torch.set_num_threads``."""

    def __init__(self, module: Any, config: CpuRowsConfig, signature: Signature) -> None:
        self._module = module
        self._parallel = module["scan"]
        self._serial = module["scan_serial"]
        self._config = config
        self._state_size = signature.program.state_size
        self._token_bytes = token_bytes(signature)
        # Passed as their bits: see schedules.emit.tvm.buffer_dtype.
        self._as_bits = [
            number
            for number, argument in enumerate(signature.arguments)
            if argument.dtype == "bfloat16"
        ]

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        if self._as_bits:
            tensors = list(tensors)
            for number in self._as_bits:
                tensors[number] = tensors[number].view(torch.uint16)
        threads = torch.get_num_threads()
        tasks, heads = launch(self._config, *sizes, self._state_size, threads)
        written = sizes.batch * sizes.length * sizes.heads * self._token_bytes
        stream = int(0 < self._config.stream_bytes <= written)
        if _runs_alone(tasks):
            self._serial(*tensors, error, tasks, heads, stream)
        else:
            self._parallel(*tensors, error, tasks, heads, stream)


class TvmMatricesKernel(Kernel):
    """A linked kernel over matrices."""

    def __init__(self, module: Any, source: KernelSource) -> None:
        self._parallel = module["scan"]
        self._serial = module["scan_serial"]
        self._shape = cpu_shape(source.program, CpuMatricesConfig(**source.config))
        self._names = [argument.name for argument in source.signature.arguments]

    def _run(self, given: Sequence[torch.Tensor], most: int) -> None:
        """Run by as many threads as torch has, ``most`` at most."""
        tasks = min(most, torch.get_num_threads())
        if _runs_alone(tasks):
            self._serial(*given, 1)
        else:
            self._parallel(*given, tasks)


class TvmChoiceKernel(TvmMatricesKernel):
    """Chooses maps."""

    def __init__(self, module: Any, source: KernelSource) -> None:
        super().__init__(module, source)
        self._arguments = choice_arguments(source.program)
        self._table = self._arguments.table.name

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        tokens = sizes.batch * sizes.length
        groups = -(-tokens // self._shape.tokens) * sizes.heads
        if groups:
            named = dict(zip(self._names, tensors, strict=True))
            named[self._table] = laid_out(named[self._table], self._shape)
            self._run([named[name] for name in self._arguments.names], groups)


class TvmMatrixGradientsKernel(TvmMatricesKernel):
    """Computes the gradients of what a map was chosen by."""

    def __init__(self, module: Any, source: KernelSource, parts: Parts) -> None:
        super().__init__(module, source)
        self._parts = parts

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        named = dict(zip(self._names, tensors, strict=True))
        parts, shape = self._parts, self._shape
        weighed, inner = named[parts.weighed], named[parts.inner]
        if sizes.batch * sizes.length * sizes.heads == 0:
            weighed.zero_()
            return
        table = laid_out(named[parts.table], shape)
        partial = inner.new_empty(shape.columns, *inner.shape)
        total = table.new_empty(sizes.batch, *table.shape)
        # Of complex numbers parts come last, so an element has two.
        vectors = [named[name].flatten(3) for name in (parts.looped, parts.across)]
        noise = [named[name] for name in parts.noise or ()]
        temperature = named[parts.temperature]
        given = (named[parts.weights], *vectors, table, temperature, partial, total, *noise)
        self._run(given, sizes.batch * sizes.heads * shape.columns)
        torch.sum(partial, 0, out=inner)
        put_back(total[None], shape, weighed)


_BIND = "TVM_BIND_THREADS"
_runtime_lock = threading.Lock()
# None as well where TVM is not installed.
_runtime: ctypes.CDLL | None = None
_pools = threading.local()
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _runs_alone(tasks: int) -> bool:
    """Whether this thread runs all tasks; otherwise its pool is there.

    The threads of TVM's pool are not there in a forked child, which would wait forever.
    """
    if tasks == 1 or _forked:
        return True
    if _runtime is not None and not hasattr(_pools, "made"):
        _make_pool()
    return False


def missing_package(*modules: str) -> str | None:
    """None if all packages are installed, otherwise which is missing and the remedy."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return f"the Python package {module} is missing: {_REMEDY}"
    return None


def _load_runtime() -> None:
    """Load TVM's runtime library, which generated code calls for its threads, without TVM; where
    TVM is not installed, make threads of our own do.
    """
    global _runtime
    with _runtime_lock:
        if _runtime is not None:
            return
        import tvm_ffi  # (the runtime library needs its symbols)

        spec = importlib.util.find_spec("tvm")
        if spec is None:
            provide_threads(ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi()))
            return
        assert spec.submodule_search_locations is not None
        path = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_runtime.so"
        try:
            _runtime = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise BackendUnavailableError(
                f"TVM's runtime library cannot be loaded: {error}; {_REMEDY}"
            ) from None


# ThreadGroup::AffinityMode::kSpecifyThreadShareAllCore
_SHARE_ALL_CORES = -3


def _make_pool() -> None:
    """Make this thread's pool, with all its processors and without tying threads to them.

    TVM decides at every launch how many threads it may use: half the processors, unless it was
    told which to use. It would also tie the calling thread to one of them, unless the environment
    forbids it at that moment; where the user set the variable, it is the user's.
    """
    import tvm_ffi

    processors = [str(number) for number in sorted(os.sched_getaffinity(0))]
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    with _runtime_lock:
        ours = _BIND not in os.environ
        if ours:
            os.environ[_BIND] = "0"
        try:
            configure(_SHARE_ALL_CORES, len(processors), processors)
        finally:
            if ours:
                del os.environ[_BIND]
    _pools.made = True
