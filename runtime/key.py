"""The kernel key: every field that changes what is compiled, and nothing else.

Batch and length are not in it, so a new one never compiles anything.
"""

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from pdssm_compiler.runtime.backends.cuda_compilers import compiler_version
from pdssm_compiler.schedules.source import KernelSource

# The packages whose version changes what a backend generates, and those that must be of the same
# version where a kernel is loaded. The driver loads a cubin, and needs none.
_COMPILERS = {
    "tvm": ("apache-tvm", "apache-tvm-ffi-orcjit"),
    "tvm-cuda": ("apache-tvm", "apache-tvm-ffi"),
    "triton": (),
    "torch": (),
}
_LOADERS = {"tvm": ("apache-tvm-ffi",), "tvm-cuda": (), "triton": ("triton",), "torch": ("torch",)}
# Whose kernels depend on how pointers are aligned.
_ALIGNED = frozenset({"triton"})


@dataclass(frozen=True)
class KernelKey:
    """What a compiled kernel depends on.

    Attributes:
        program: fingerprint of the lowered program.
        template: the template's name.
        config: its config, as sorted JSON.
        target: ``kind:arch``.
        features: LLVM feature flags of a CPU.
        alignment: bytes that every pointer is a multiple of, 16, or 0 for the element's own size;
            0 where kernels do not depend on it.
        options: what the backend's compiler is told, as sorted JSON.
        compilers: versions of the packages that compile alone.
        loaders: versions of the packages that a kernel is loaded with.
        cuda_compiler: what compiles the CUDA text that a backend writes, with its version; "" for
            backends that write none.
        generator: hash of the code generator's own source.
    """

    program: str
    template: str
    config: str
    target: str
    features: str
    alignment: int
    options: str
    compilers: str
    loaders: str
    cuda_compiler: str
    generator: str

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, in hexadecimal: the name of the cache entry."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: "KernelKey") -> dict[str, tuple[Any, Any]]:
        """The fields in which two keys differ: name to (this, other)."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return {name: (mine, theirs) for name, mine, theirs in pairs if mine != theirs}

    def obstacles(self, wanted: "KernelKey") -> dict[str, tuple[Any, Any]]:
        """Why a kernel of this key does not run where another is wanted that cannot be compiled
        there: name to (this, wanted). Whatever made a kernel, it runs the same; and a processor
        runs what was compiled for one with no more features.
        """
        found = self.differences(wanted)
        found.pop("compilers", None)
        found.pop("cuda_compiler", None)
        if set(self.features.split()) <= set(wanted.features.split()):
            found.pop("features", None)
        return found


def key_of(source: KernelSource, alignment: int) -> KernelKey:
    """The key of a kernel made from this source."""
    return KernelKey(
        program=source.program.fingerprint,
        template=source.template,
        config=json.dumps(source.config, sort_keys=True),
        target=str(source.target),
        features=source.target.features,
        alignment=alignment if source.backend in _ALIGNED else 0,
        options=json.dumps(source.options, sort_keys=True),
        compilers=versions(_COMPILERS[source.backend]),
        loaders=versions(_LOADERS[source.backend]),
        cuda_compiler=compiler_version() if source.backend == "tvm-cuda" else "",
        generator=generator_hash(),
    )


@cache
def versions(packages: tuple[str, ...]) -> str:
    """Versions of packages; ``absent`` for one that is not installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package}={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package}=absent")
    return " ".join(found)


@cache
def generator_hash() -> str:
    """Hash of the sources that turn a program into a kernel: the IR, the schedules, and the
    backends' own.
    """
    import pdssm_compiler.ir
    import pdssm_compiler.runtime.backends
    import pdssm_compiler.schedules

    digest = hashlib.sha256()
    for package in (
        pdssm_compiler.ir,
        pdssm_compiler.schedules,
        pdssm_compiler.runtime.backends,
    ):
        folder = Path(package.__path__[0])
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cuh"), *folder.rglob("*.ll")]):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
