"""The model of a scheduler: what a loop waits for."""

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.waits import cycles, longest_loop, main, parsed, resident

CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.64 R4, [R2.64+0x100] ;
        /*0020*/              @!P0 FFMA R6, R4, R5, R6 ;
        /*0030*/                   FSETP.GT.AND P1, PT, R6, R7, PT ;
        /*0040*/                   MUFU.EX2 R8, R6 ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
"""


def test_a_loop_is_read() -> None:
    loop = [parsed(each) for each in longest_loop(CODE)]
    assert [each.kind for each in loop] == ["load", "fma", "alu", "mufu", "alu"]
    assert [each.words for each in loop] == [2, 0, 0, 0, 0]
    assert set(loop[0].writes) == {"R4", "R5"}
    assert set(loop[0].reads) == {"R2", "R3"}
    assert set(loop[1].reads) == {"R4", "R5", "R6", "P0"}
    assert loop[2].writes[0] == "P1"
    assert loop[4].reads[-1] == "P1"
    assert longest_loop("/*0000*/ EXIT ;") == []


@pytest.mark.parametrize("latency", [100.0, 400.0])
def test_warps_hide_what_one_waits_for(latency: float) -> None:
    """A load, and thirty instructions that need it: one warp waits for the whole of it."""
    work = [parsed(f"FFMA R{10 + n}, R4, R5, R7") for n in range(30)]
    loop = [parsed("LDG.E R4, [R2.64]"), *work]
    alone = cycles(loop, 1, latency)
    assert latency < alone < latency + 50
    assert cycles(loop, 4, latency) < alone / 3
    # As many as it takes leave nothing but the instructions.
    assert cycles(loop, 16, latency) == pytest.approx(31, rel=0.05)


def test_what_is_loaded_a_turn_before_is_waited_for_less() -> None:
    work = [parsed("FFMA R9, R8, R5, R10")] * 200
    late = [parsed("LDG.E R4, [R2.64]"), parsed("FFMA R8, R4, R5, R7"), *work]
    ahead = [parsed("FFMA R8, R4, R5, R7"), parsed("LDG.E R4, [R2.64]"), *work]
    assert cycles(ahead, 1, 150.0) < cycles(late, 1, 150.0) - 100


def test_pipes_and_returning_loads_are_shared() -> None:
    assert cycles([parsed("MUFU.EX2 R8, R6")] * 10, 8, 0) == pytest.approx(80, rel=0.05)
    loads = [parsed(f"LDG.E.128 R{4 * n}, [R90.64]") for n in range(10)]
    assert cycles(loads, 8, 0) == pytest.approx(160, rel=0.05)


def test_registers_leave_room_for_warps() -> None:
    assert resident(128, 4) == 4
    assert resident(168, 4) == 3
    assert resident(255, 4) == 2
    assert resident(24, 8) == 16


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("-N", "0", "Invalid value for '-N'"),
        ("-K", "0", "Invalid value for '-K'"),
        ("--tokens", "-1", "Invalid value for '--tokens'"),
        ("--latency", "inf", "Invalid value for '--latency'"),
        ("--latency", "nan", "Invalid value for '--latency'"),
        ("--config", "nope", "unknown template 'nope'"),
        ("--config", 'triton-matrices {"rows": 1}', "not a config of triton-matrices"),
    ],
)
def test_what_is_wrong_is_said(option: str, value: str, said: str) -> None:
    app = typer.Typer()
    app.command()(main)
    found = CliRunner().invoke(app, [option, value])
    assert found.exit_code == 2
    assert said in " ".join(found.output.replace("│", " ").split())
