"""Rows for the tests of logs."""

from dataclasses import asdict, replace
from typing import Any

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.tuning.rows import Row, figures_of, place_of
from pdssm_compiler.schedules.target import cpu_target, named_target
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig

PROGRAM: Program = specialise(pd_scan(PdScan(6, 3)))
CPU = cpu_target()
H100 = named_target("h100")


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
        threads=place_of(CPU)[1],
        versions={"torch": "0"},
        commit="0" * 40,
        date="2030-01-02T03:04:05+00:00",
        ms=1.0,
        spread=0.01,
    )
    return replace(made, **changes)


def predicted(ms: float = 1.0, config: Any = None, **changes: Any) -> Row:
    """A row that a cost model has left, of an H100 that nothing was measured on."""
    config = TritonRowsConfig(1, 1, 4) if config is None else config
    fields: dict[str, Any] = {
        "status": "predicted",
        "device": H100.name,
        "target": str(H100),
        "threads": 0,
        "ms": None,
        "spread": 0.1,
        "predicted_ms": ms,
        "basis": "7 rows of another GPU",
        "figures": figures_of(H100),
    }
    return row(config, "triton-rows", **fields | changes)
