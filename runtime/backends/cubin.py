"""What a cubin's own notes say of its kernel, by the disassembler that ships with Triton."""

import re
import subprocess
import tempfile


def cubin_resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes spilled a thread, bytes of shared memory a block."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def noted(*labels: str) -> int:
        found = (re.search(rf"{label}:(\d+)", text) for label in labels)
        return sum(int(match[1]) for match in found if match)

    return {
        "registers": noted("REG"),
        "spilled": noted("STACK", "LOCAL"),
        "shared_bytes": noted("SHARED"),
    }
