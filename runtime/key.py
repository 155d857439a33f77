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

# The packages whose version changes what a backend generates.
_COMPILERS = {
    "tvm": ("apache-tvm", "apache-tvm-ffi", "apache-tvm-ffi-orcjit"),
    "tvm-cuda": ("apache-tvm", "apache-tvm-ffi"),
    "triton": ("triton",),
    "torch": ("torch",),
}


@dataclass(frozen=True)
class KernelKey:
    """What a compiled kernel depends on.

    Attributes:
        program: fingerprint of the lowered program.
        template: the template's name.
        config: its config, as sorted JSON.
        target: ``kind:arch``.
        features: LLVM feature flags of a CPU.
        alignment: bytes that every pointer is a multiple of, 16, or 0 for the element's own size.
        options: what the backend's compiler is told, as sorted JSON.
        compilers: versions of the backend's packages.
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


def key_of(source: KernelSource, alignment: int) -> KernelKey:
    """The key of a kernel made from this source."""
    return KernelKey(
        program=source.program.fingerprint,
        template=source.template,
        config=json.dumps(source.config, sort_keys=True),
        target=str(source.target),
        features=source.target.features,
        alignment=alignment,
        options=json.dumps(source.options, sort_keys=True),
        compilers=compiler_versions(source.backend),
        cuda_compiler=compiler_version() if source.backend == "tvm-cuda" else "",
        generator=generator_hash(),
    )


@cache
def compiler_versions(backend: str) -> str:
    """Versions of a backend's packages; ``absent`` for one that is not installed."""
    found = []
    for package in _COMPILERS[backend]:
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
