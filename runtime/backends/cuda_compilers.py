"""CUDA C++ to a cubin: NVRTC, which is faster, or nvcc. Neither needs a GPU."""

import ctypes
import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.runtime.staging import private_folder

Form = Literal["cubin", "ptx"]
Compiler = Literal["NVRTC", "nvcc"]

_OPTIONS = ("-std=c++17", "-lineinfo", "-w")
# The headers that TVM's text includes under NVRTC, as far as it uses them.
_HEADERS = {
    b"cuda/std/cstdint": b"""
namespace cuda { namespace std {
typedef unsigned char uint8_t; typedef unsigned short uint16_t;
typedef unsigned int uint32_t; typedef unsigned long uint64_t;
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long int64_t;
} }
""",
    b"cuda/std/type_traits": b"""
namespace cuda { namespace std {
template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };
template <class A, class B> inline constexpr bool is_same_v = is_same<A, B>::value;
template <class A> struct is_integral { static constexpr bool value = A(1) / A(2) == A(0); };
template <class A> struct is_signed { static constexpr bool value = A(-1) < A(0); };
template <class A> struct is_unsigned { static constexpr bool value = A(0) < A(-1); };
template <class A> struct is_floating_point {
  static constexpr bool value = !is_integral<A>::value;
};
template <bool C, class A = void> struct enable_if {};
template <class A> struct enable_if<true, A> { typedef A type; };
template <bool C, class A, class B> struct conditional { typedef A type; };
template <class A, class B> struct conditional<false, A, B> { typedef B type; };
} }
""",
}
_PIP = "pip install nvidia-cuda-nvrtc (torch with CUDA brings it)"
# Of a compiler that is there and does not work.
_REMEDIES = {
    "NVRTC": "install another one",
    "nvcc": "install a host compiler (g++) or another toolkit, or use NVRTC",
}
_TRIAL = 'extern "C" __global__ void trial(int* out) { *out = threadIdx.x; }'


def why_not(compiler: Compiler) -> str | None:
    """None if a compiler compiles here, which is tried; otherwise what is wrong and the remedy."""
    library, path = nvrtc(), nvcc()
    try:
        if compiler == "NVRTC":
            if library is None:
                return f"its library is not here: {_PIP}"
            _with_nvrtc(library, _TRIAL, "sm_90", "cubin")
        else:
            if path is None:
                return "it is not on PATH: install a CUDA toolkit, or use NVRTC"
            _with_nvcc(path, _TRIAL, "sm_90", "cubin")
    except (BackendUnavailableError, OSError) as error:
        return f"{error}: {_REMEDIES[compiler]}"
    return None


def missing_compiler() -> str | None:
    """None if CUDA can be compiled here, otherwise what is missing and the remedy."""
    if nvrtc() is not None or nvcc():
        return None
    return f"neither nvcc nor NVRTC is here: install a CUDA toolkit, or {_PIP}"


def compile_cuda(text: str, arch: str, form: Form = "cubin") -> bytes:
    """A translation unit compiled for an architecture such as ``sm_90``.

    Args:
        text: CUDA C++.
        arch: the architecture.
        form: a cubin, or PTX as text.

    Raises:
        BackendUnavailableError: no compiler, or the compiler refuses; the message has its words.
    """
    library = nvrtc()
    if library is not None:
        return _with_nvrtc(library, text, arch, form)
    compiler = nvcc()
    if compiler is None:
        raise BackendUnavailableError(str(missing_compiler()))
    return _with_nvcc(compiler, text, arch, form)


def compiler_version() -> str:
    """What :func:`compile_cuda` compiles with, as ``nvrtc=13.0`` or ``nvcc=13.0.88``;
    ``absent`` if there is nothing.
    """
    library = nvrtc()
    if library is not None:
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"nvrtc={major.value}.{minor.value}"
    compiler = nvcc()
    return f"nvcc={_nvcc_version(compiler)}" if compiler else "absent"


@cache
def _nvcc_version(compiler: str) -> str:
    """``13.0.88``, from ``release 13.0, V13.0.88``."""
    try:
        said = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return "unknown"
    found = re.search(r"\bV(\d[\d.]*)", said)
    return found[1] if found else "unknown"


def nvcc() -> str | None:
    """The path of nvcc, None if it is not installed."""
    return shutil.which("nvcc")


def _with_nvcc(compiler: str, text: str, arch: str, form: Form) -> bytes:
    with private_folder() as folder:
        source, made = folder / "kernel.cu", folder / f"kernel.{form}"
        source.write_text(text)
        command = [compiler, f"-arch={arch}", f"-{form}", *_OPTIONS, "-o", str(made), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise BackendUnavailableError(f"nvcc refuses a kernel for {arch}: {result.stderr}")
        return made.read_bytes()


@cache
def nvrtc() -> Any:
    """NVRTC's library, None if it is not installed."""
    names = [f"libnvrtc.so.{version}" for version in (13, 12)]
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        names += map(str, sorted(Path(root).glob("**/lib/libnvrtc.so.1[0-9]")))
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _with_nvrtc(library: Any, text: str, arch: str, form: Form) -> bytes:
    program = ctypes.c_void_p()
    headers = (ctypes.c_char_p * len(_HEADERS))(*_HEADERS.values())
    names = (ctypes.c_char_p * len(_HEADERS))(*_HEADERS)
    # NVRTC has PTX for virtual architectures only.
    options = [f"-arch={arch if form == 'cubin' else arch.replace('sm', 'compute')}", *_OPTIONS]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    library.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"kernel.cu", len(_HEADERS), headers, names
    )
    try:
        if library.nvrtcCompileProgram(program, len(options), given):
            said = _filled(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            raise BackendUnavailableError(
                f"NVRTC refuses a kernel for {arch}: {said.decode(errors='replace')}"
            )
        if form == "ptx":
            made = _filled(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program)
            return made.rstrip(b"\0")
        return _filled(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _filled(size_of: Any, fill: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    fill(program, buffer)
    return buffer.raw
