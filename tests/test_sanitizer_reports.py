"""What of compute-sanitizer's words counts as clean."""

import pytest

from tests.gpu.sanitizer import complaint


@pytest.mark.parametrize(
    ("tool", "said", "found"),
    [
        ("memcheck", "ERROR SUMMARY: 0 errors", None),
        ("synccheck", "ERROR SUMMARY: 2 errors", "ERROR SUMMARY: 2 errors"),
        ("racecheck", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", None),
        (
            "racecheck",
            "RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)",
            "RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)",
        ),
    ],
)
def test_a_summary_decides(tool: str, said: str, found: str | None) -> None:
    output = f"========= COMPUTE-SANITIZER\nran cuda-rows scan\n========= {said}\n"
    assert complaint(tool, output) == found


def test_without_a_summary_nothing_is_clean() -> None:
    assert complaint("memcheck", "") == "no summary: the tool did not finish"
    assert complaint("memcheck", "========= COMPUTE-SANITIZER\nran cuda-rows\n") is not None


def test_what_was_found_is_told() -> None:
    output = """========= COMPUTE-SANITIZER
========= Error: Race reported between Read access at take(int)+0x10 in kernel.cu:5
=========     and Write access at post(int)+0x20 in kernel.cu:9 [8 hazards]
=========     Saved host backtrace up to driver entry point at kernel launch time
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
    assert complaint("racecheck", output) == (
        "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
        "Error: Race reported between Read access at take(int)+0x10 in kernel.cu:5\n"
        "    and Write access at post(int)+0x20 in kernel.cu:9 [8 hazards]"
    )
