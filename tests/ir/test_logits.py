"""An index that is stored as logits: the place of the largest of them."""

from dataclasses import replace

import numpy as np
import pytest

from pdssm_compiler.ir.errors import IRError, VerificationError
from pdssm_compiler.ir.interpreter import interpret
from pdssm_compiler.ir.parser import parse_program
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.verify import verify
from pdssm_compiler.schedules.registry import TEMPLATES
from tests.strategies import Sizes, arrays_for

PROGRAM = pd_scan(PdScan(5, 4, initial_state=True))
CHOOSES = PROGRAM.stored("selection", "bf16")


def test_its_text_says_so() -> None:
    assert "input %selection : token index<4> as bf16" in CHOOSES.text
    assert parse_program(CHOOSES.text) == CHOOSES
    assert (CHOOSES.logits, PROGRAM.logits) == (("selection",), ())


def test_the_interpreter_takes_the_first_of_the_largest() -> None:
    arrays = arrays_for(PROGRAM, Sizes(2, 7, 3), 0)
    logits = np.random.default_rng(1).integers(-1, 2, (2, 7, 3, 4)).astype(np.float64)
    want = interpret(PROGRAM, arrays | {"selection": logits.argmax(-1)})
    found = interpret(CHOOSES, arrays | {"selection": logits})
    np.testing.assert_array_equal(found["states"], want["states"])
    logits[1, 4, 2, 0] = np.nan
    with pytest.raises(IRError, match=r"%selection has an index outside \[0, 4\)"):
        interpret(CHOOSES, arrays | {"selection": logits})
    with pytest.raises(IRError, match=r"%selection has the shape \(2, 7, 3\)"):
        interpret(CHOOSES, arrays)


def of_rows() -> Program:
    inputs = (replace(i, role="row") if i.holds_logits else i for i in CHOOSES.inputs)
    return replace(CHOOSES, inputs=tuple(inputs))


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (PROGRAM.stored("selection", "f32"), "%selection: index<4> cannot be stored as f32"),
        (PROGRAM.stored("dictionary", "bf16"), "cannot be stored as bf16"),
        (
            of_rows(),
            "%selection holds logits, and they belong to a token, not to a row",
        ),
    ],
)
def test_what_cannot_hold_logits(program: Program, told: str) -> None:
    with pytest.raises(VerificationError, match=told):
        verify(program)


def test_one_template_reads_them() -> None:
    told = {name: template.takes(CHOOSES) for name, template in TEMPLATES.items()}
    assert [name for name, reason in told.items() if reason is None] == ["cuda-step"]
    assert told["cpu-rows"] == "cpu-rows reads no logits in place of the index %selection"
