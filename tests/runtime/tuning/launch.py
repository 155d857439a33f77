"""Two ranks by torchrun, how one of them ends, and what they saw."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

ROOT = Path(__file__).parents[3]


def launch(
    acts: str,
    folder: Path,
    device: str = "cpu",
    seconds: float = 120.0,
    module: str = "tests.runtime.tuning.ranks",
) -> tuple[int, str]:
    """Have two ranks play acts of a module; gives the exit status, and what was said.

    Args:
        acts: their names, separated by commas.
        folder: of their caches, their device's locks and what they saw.
        device: ``cpu`` or ``cuda``.
        seconds: after which something is taken to wait for ever.
        module: what the ranks run, with acts, device and folder as its arguments.

    Raises:
        TimeoutError: it took longer, and was ended.
    """
    locks = folder / "locks"
    locks.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", module]
    env = os.environ | {"TMPDIR": str(locks), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, acts, device, str(folder)],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # It ends its ranks, which are in sessions of their own.
        process.terminate()
        out, _ = process.communicate()
        raise TimeoutError(f"the ranks have not come to their end in {seconds} s: {out}") from None
    return process.returncode, out


def leave() -> NoReturn:
    """End this process, a rank that has done its part.

    Its interpreter is not taken down: a thread of gloo that lets go of a work's tensors meanwhile
    asks for the lock of an interpreter that is ending. That ends the thread and, from within a
    destructor, the process (https://github.com/pytorch/pytorch/pull/179291).
    """
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def seen(folder: Path, act: str, rank: int) -> dict[str, Any]:
    """What a rank saw in an act."""
    return json.loads((folder / f"{act}-{rank}.json").read_text())
