"""Rows for the tests of logs."""

from dataclasses import asdict, replace
from typing import Any

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.schedules.target import cpu_target
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig

PROGRAM: Program = specialise(pd_scan(PdScan(6, 3)))
CPU = cpu_target()


def row(config: Any = None, template: str = "cpu-rows", **changes: Any) -> Row:
    """A row of a small scan on this CPU, with some fields changed."""
    config = CpuRowsConfig(3) if config is None else config
    made = Row(
        program=PROGRAM.fingerprint,
        label="a small scan",
        direction="forward",
        batch=4,
        length=100,
        heads=2,
        template=template,
        config=config if isinstance(config, dict) else asdict(config),
        heuristic=False,
        changes=1,
        status="ok",
        device=CPU.name,
        target=str(CPU),
        threads=2,
        versions={"torch": "0"},
        commit="0" * 40,
        date="2030-01-02T03:04:05+00:00",
        ms=1.0,
        spread=0.01,
    )
    return replace(made, **changes)
