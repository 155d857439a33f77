"""Logs of a scan speak for it with other integers, and with states at its ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.runtime.tuning import log, resolve
from pdssm_compiler.runtime.tuning.kin import kin
from pdssm_compiler.runtime.tuning.log import append_rows, file_name, folder_name
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from tests.runtime.tuning.made_rows import CPU, PROGRAM, row

SIZES = Problem.bucket(8, 100)


def like(**changes: object) -> PdScan:
    return PdScan(6, 3, **changes)  # type: ignore[arg-type]


OTHERS = {
    "with int32 maps": like(map_storage="i64", selection_storage="u8"),
    "without states at its ends": like(initial_state=True, final_state=True),
    "with int32 maps and without states at its ends": like(map_storage="i64", final_state=True),
}


@pytest.fixture(autouse=True)
def _logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path))
    monkeypatch.setattr(resolve, "shipped_logs", lambda: tmp_path / "shipped")
    resolve.forget()
    yield
    resolve.forget()


@pytest.mark.parametrize("map_class", ["general", "permutation"])
@pytest.mark.parametrize("direction", ["forward", "backward", "active"])
@pytest.mark.parametrize("told", OTHERS)
def test_who_is_kin(told: str, direction: str, map_class: str) -> None:
    def of(spec: PdScan) -> Program:
        program = pd_scan(spec)
        if direction == "active":
            return specialise(adjoint(program, surrogate="active").program)
        return specialise(program if direction == "forward" else adjoint(program).program)

    plain, other = like(map_class=map_class), OTHERS[told]
    found = kin(of(PdScan(**vars(other) | {"map_class": map_class})))
    assert (of(plain).fingerprint, told) in [(of.fingerprint, told) for of, told in found]
    assert kin(of(plain)) == ()


@pytest.mark.parametrize("told", OTHERS)
def test_their_logs_speak(told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = specialise(pd_scan(OTHERS[told]))
    folder = log.user_logs() / folder_name(CPU.name)
    append_rows(folder / file_name(PROGRAM), [row(CpuRowsConfig(4))])
    taken = choose(program, CPU, None, SIZES)
    assert taken.config == CpuRowsConfig(4)
    assert taken.reason == f"tuned on this machine, for 8 rows of 100 tokens of the scan {told}"
    # Not where calls add to the log: which of the two was called first would decide.
    monkeypatch.setenv(settings.TUNE, "quick")
    resolve.forget()
    assert choose(program, CPU, None, SIZES).reason == "heuristic"
    append_rows(tmp_path / "shipped" / folder.name / file_name(PROGRAM), [row(CpuRowsConfig(3))])
    resolve.forget()
    assert choose(program, CPU, None, SIZES).config == CpuRowsConfig(3)
    monkeypatch.delenv(settings.TUNE)
    # Its own comes first.
    mine = row(CpuRowsConfig(5), program=program.fingerprint)
    append_rows(folder / file_name(program), [mine])
    resolve.forget()
    taken = choose(program, CPU, None, SIZES)
    assert (taken.config, taken.reason) == (
        CpuRowsConfig(5), "tuned on this machine, for 8 rows of 100 tokens",
    )  # fmt: skip
