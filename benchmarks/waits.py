"""``python -m benchmarks.waits``: what the loops of triton-matrices wait for, without a GPU.

Each function is compiled, and its longest loop run by a model of one of a processor's four
schedulers: warps in turn, each in the order of its machine code, that wait for registers. An
instruction is issued a cycle; loads come back after a given number of cycles, 128 bytes a cycle
and processor. No cache is modelled: how long a load takes is what measured times are fitted by
(docs/mixture.md). It tells configs apart that have as many instructions, by how early their loads
stand before what needs them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import typer

from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import LEARNED, mixture
from pdssm_compiler.runtime.backends import BACKENDS
from pdssm_compiler.runtime.backends.cubin import cubin_resources, disassembled
from pdssm_compiler.runtime.compile_service import lower, read_config
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.schedules.target import Target, named_target
from pdssm_compiler.schedules.templates.base import ConfigError

# Cycles that a pipe is taken for by a warp's instruction, and until its result is there.
_TAKES = {"alu": 2.0, "mufu": 8.0}
_AFTER = {"alu": 5.0, "mufu": 22.0, "uniform": 8.0, "fma": 4.0}
_FMA = ("FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "CS2R")
_LOADS, _STORES = ("LDG", "LDL", "LDS"), ("ST", "BRA", "BAR", "EXIT")
# Loads that wait to be issued, in cycles; schedulers of a processor, and registers of one.
_QUEUE, _SCHEDULERS, _REGISTERS, _MOST_THREADS = 40.0, 4, 65536, 2048
_CLOCK_HZ = 1.8e9


class Instruction(NamedTuple):
    """One of a loop.

    Attributes:
        kind: ``load``, or a pipe.
        writes, reads: registers and predicates.
        words: of 128 bytes that a load brings a warp.
    """

    kind: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    words: int = 0


def longest_loop(code: str) -> list[str]:
    """The instructions of the longest loop of disassembled machine code; none without a loop."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    found: list[str] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
            target = re.search(r"BRA.*`\((\.L\w+)\)", instruction[1])
            if target and target[1] in labels:
                found = max(found, instructions[labels[target[1]] :], key=len)
    return found


def parsed(text: str) -> Instruction:
    """An instruction from its text."""
    guard = re.match(r"@!?(U?P\d+)\s+", text)
    op, _, rest = text[guard.end() if guard else 0 :].partition(" ")
    operands = rest.split(",")
    wide = 4 if ".128" in op else 2 if ".64" in op or op.startswith(("CS2R", "IMAD.WIDE")) else 1
    if op.startswith(_STORES):
        writes, reads = [], [name for each in operands for name in _names(each)]
    else:
        writes = list(_names(operands[0], wide))
        of_addresses = 2 if op.startswith(_LOADS) else 1
        reads = [name for each in operands[1:] for name in _names(each, of_addresses)]
    if guard:
        reads.append(guard[1])
    if op.startswith(_LOADS):
        return Instruction("load", tuple(writes), tuple(reads), wide)
    kind = "mufu" if op.startswith("MUFU") else "fma" if op.startswith(_FMA) else "alu"
    return Instruction("uniform" if op.startswith("U") else kind, tuple(writes), tuple(reads))


def _names(operand: str, wide: int = 1) -> Iterator[str]:
    for match in re.finditer(r"(?<![A-Z])(U?R)(\d+)(\.64)?", operand):
        for number in range(max(wide, 2 if match[3] else 1)):
            yield f"{match[1]}{int(match[2]) + number}"
    yield from re.findall(r"(?<![A-Z])U?P\d+", operand)


def cycles(loop: Sequence[Instruction], warps: int, latency: float, turns: int = 9) -> float:
    """Cycles of a scheduler for a warp's turn of a loop.

    Args:
        loop: its instructions.
        warps: of the scheduler, begun evenly apart.
        latency: cycles until a load is there.
        turns: of a warp, on average, of which the first third is not counted.
    """
    at, done, last = [0] * warps, 0, 0
    free = [warp * len(loop) / warps for warp in range(warps)]
    ready: list[dict[str, float]] = [{} for _ in range(warps)]
    pipes = dict.fromkeys(_TAKES, 0.0)
    memory = now = 0.0
    first, end, begun = warps * (turns // 3), warps * turns, 0.0
    while done < end:
        soonest, chosen = float("inf"), -1
        for step in range(warps):
            warp = (last + step) % warps
            each = loop[at[warp]]
            waits = [ready[warp].get(name, 0.0) for name in each.reads]
            waits += [ready[warp].get(name, 0.0) for name in each.writes if each.kind != "load"]
            when = max(free[warp], pipes.get(each.kind, 0.0), *waits, 0.0)
            if each.kind == "load":
                when = max(when, memory - _QUEUE)
            if when <= now:
                chosen = warp
                break
            soonest = min(soonest, when)
        if chosen < 0:
            now = max(now + 1, soonest)
            continue
        last, each = chosen, loop[at[chosen]]
        if each.kind == "load":
            # The four schedulers share what brings loads back.
            memory = max(memory, now) + _SCHEDULERS * each.words
            there = memory + latency
        else:
            there = now + _AFTER[each.kind]
            if each.kind in pipes:
                pipes[each.kind] = now + _TAKES[each.kind]
        ready[chosen].update(dict.fromkeys(each.writes, there))
        free[chosen] = now + 1
        at[chosen] += 1
        if at[chosen] == len(loop):
            at[chosen] = 0
            done += 1
            begun = now if done == first else begun
        now += 1
    return (now - 1 - begun) / (end - first)


def resident(registers: int, warps: int) -> int:
    """Warps of a scheduler at a time, of programs of so many."""
    of_thread = -(-registers // 8) * 8
    programs = min(_REGISTERS // (of_thread * warps * 32), _MOST_THREADS // (warps * 32))
    return max(1, programs * warps // _SCHEDULERS)


def functions(
    state_size: int, entries: int, config: str | None, target: Target
) -> Iterator[tuple[str, int, int, float, list[Instruction]]]:
    """Each function of a mixture with a loop: its name, registers of a thread, warps of a
    scheduler, and its loop, with the entries of ``M_t`` that a thread goes through in a turn.
    """
    program = mixture(state_size, entries, "f32", "column")
    for each in (program, adjoint(program, LEARNED, surrogate="dense").program):
        source, _ = lower(each, target, read_config(config or ""))
        files = BACKENDS["triton"].compile(source, 16)
        for phase in source.launches:
            cubin = files[f"{phase.entry}.cubin"]
            loop = longest_loop(disassembled(cubin))
            count = Counter(re.sub(r"^@!?U?P\d+\s+", "", text).split()[0] for text in loop)
            # An exponential for every entry, or a comparison.
            done = count["MUFU.EX2"] or sum(v for k, v in count.items() if k.startswith("FMNMX"))
            if done:
                registers = cubin_resources(cubin)["registers"]
                warps = resident(registers, source.config["num_warps"])
                yield phase.entry.split("_")[0], registers, warps, done, [*map(parsed, loop)]


def main(
    state_size: int = typer.Option(128, "-N", min=1, help="States."),
    entries: int = typer.Option(8, "-K", min=1, help="Matrices."),
    tokens: int = typer.Option(65536, min=1, help="Of a call."),
    latency: list[float] = typer.Option(  # noqa: B008
        [500.0, 600.0, 700.0], min=0, max=1e6, help="Cycles of a load."
    ),
    config: str = typer.Option(None, help="Of triton-matrices, as logs have it."),
) -> None:
    """Say how long a mixture's functions take on an H200, by the order of their instructions."""
    target = named_target("h200")
    warp_entries = tokens * state_size**2 / 32 / (_SCHEDULERS * target.processors)
    try:
        found_in = list(functions(state_size, entries, config, target))
    except (ConfigError, NoTemplateError) as error:
        raise typer.BadParameter(str(error), param_hint="--config") from None
    for name, registers, warps, done, loop in found_in:
        found = [
            cycles(loop, warps, each) / done * warp_entries / _CLOCK_HZ * 1e3 for each in latency
        ]
        told = ", ".join(f"{ms:.2f}" for ms in found)
        print(
            f"{name}: {told} ms; {len(loop) / done:.1f} instructions an entry, {registers} "
            f"registers, {warps} warps a scheduler"
        )


if __name__ == "__main__":
    typer.run(main)
