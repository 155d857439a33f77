"""TVMScript as kernels are compiled from it, against TVM's own parser."""

from typing import Any

import pytest

from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.backends.tvm_script import import_tvm, parsed
from pdssm_compiler.schedules.emit.lane_functions import LANE_FUNCTIONS
from pdssm_compiler.schedules.target import cpu_target, named_target
from pdssm_compiler.schedules.templates.base import Problem, Template
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunks
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows
from pdssm_compiler.schedules.templates.cuda_step import CudaStep
from tests.kernels import under_stress

NAMES = {"LANE_FUNCTIONS": LANE_FUNCTIONS}
TEMPLATES = (CpuRows(), CudaChunks(), CudaRows(), CudaStep())
# A template's forward and backward programs: half of them each time.
CASES = [
    *((TEMPLATES[at], at % 2 == 0) for at in range(4)),
    *under_stress(*((TEMPLATES[at], at % 2 == 1) for at in range(4))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name)
def test_the_module_is_that_of_tvms_parser(case: tuple[Template[Any], bool]) -> None:
    template, backward = case
    program = pd_scan(PdScan(6, 3, initial_state=True, final_state=True))
    if backward:
        program = adjoint(program, surrogate="active").program
    tvm = import_tvm()
    from tvm.script import ir, tirx

    target = cpu_target() if template.kinds == ("cpu",) else named_target("sm_90")
    program = specialise(program)
    config = template.heuristic(program, target, Problem())
    text = template.lower(program, target, config).text
    want = tvm.script.from_source(text, {"I": ir, "T": tirx, **NAMES})
    assert parsed(text, NAMES).script() == want.script()


KERNEL = """
@I.ir_module
class Kernel:
    @T.prim_func
    def scan(a_: T.handle, n: T.int32):
        a = T.match_buffer(a_, (8,), "float32")
        {line}
"""


@pytest.mark.parametrize(
    "line",
    [
        "a[-1 + 2] = T.float32(2) * a[n % 8] - (-a[0])",
        "a[0], a[1] = T.float32(1), T.float32(2)",
        "b, c = n + 1, n + 2; a[b % 8] = T.Cast('float32', c)",
        "if n > 3 and not n == 5 or n < 0:\n            a[0] = T.float32(abs(-1))",
        "if True and n != 2:\n            a[0] = T.float32(1)",
        "if False or n <= 2:\n            a[0] = T.float32(1)",
        "for i in T.serial(8):\n            a[i] = T.max(a[i], T.float32(0))",
        "if 0 < n < 5:\n            a[0] = T.float32(1)",
    ],
)
def test_a_statement(line: str) -> None:
    tvm = import_tvm()
    from tvm.script import ir, tirx

    text = KERNEL.format(line=line)
    try:
        want = tvm.script.from_source(text, {"I": ir, "T": tirx}).script()
    except tvm.error.DiagnosticError:
        with pytest.raises(tvm.error.DiagnosticError):
            parsed(text, {})
    else:
        assert parsed(text, {}).script() == want


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a[0] = missing", "Undefined variable: missing"),
        ("a[0] = T.nothing(n)", "nothing"),
        ("a[0] = [a[i] for i in range(8)][0]", "no kernel is written with ListComp"),
        ("a[0] = a[0:4]", "no kernel is written with Slice"),
        ("T.evaluate(T.max(*[n, 2]))", "no kernel is written with Starred"),
    ],
)
def test_what_is_no_kernel_is_told_with_its_place(line: str, told: str) -> None:
    tvm = import_tvm()
    with pytest.raises(tvm.error.DiagnosticError) as error:
        parsed(KERNEL.format(line=line), {})
    assert told in str(error.value)
    assert line in str(error.value)


def test_a_module_that_is_not_well_formed_is_refused() -> None:
    """What is defined in a branch is used behind it."""
    line = "for i in T.serial(8):\n            b = i + 1\n        a[0] = T.Cast('float32', b)"
    with pytest.raises(Exception, match=r"b\b"):
        parsed(KERNEL.format(line=line), {})
