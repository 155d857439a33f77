"""What a cubin holds, by the tools that ship with Triton; no device is needed."""

import importlib.util
import re
import subprocess
import tempfile

from pdssm_compiler.runtime.errors import BackendUnavailableError


def cubin_resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes spilled a thread, bytes of shared memory a block; nothing where
    Triton is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        return {}
    text = _told("cuobjdump", "--dump-resource-usage", cubin)

    def noted(*labels: str) -> int:
        found = (re.search(rf"{label}:(\d+)", text) for label in labels)
        return sum(int(match[1]) for match in found if match)

    return {
        "registers": noted("REG"),
        "spilled": noted("STACK", "LOCAL"),
        "shared_bytes": noted("SHARED"),
    }


def disassembled(cubin: bytes) -> str:
    """The machine code (SASS) as text.

    Raises:
        BackendUnavailableError: Triton, whose disassembler this is, is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        raise BackendUnavailableError(
            "the disassembler comes with the Python package triton, which is missing: pip install "
            "triton (Linux only)"
        )
    return _told("nvdisasm", "--print-code", cubin)


def _told(tool: str, option: str, cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [getattr(knobs.nvidia, tool).path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
