"""From a user's log to one that others have: the rows that decide, and no others."""

from pathlib import Path

from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.tuning.log import keep_program, read_log, write_rows
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.winners import latest, winner


def best_rows(rows: list[Row]) -> list[Row]:
    """Of each race, the winner, and the heuristic that it was compared with."""
    races: dict[object, list[Row]] = {}
    for row in rows:
        races.setdefault(row.race, []).append(row)
    found = []
    for measured in races.values():
        best = winner(measured)
        if best is not None:
            heuristic = [row for row in latest(measured) if row.heuristic and row.ms is not None]
            found += [*heuristic, *([] if best.heuristic else [best])]
    return found


def ship(log: Path, program: Program, folder: Path) -> Path | None:
    """Put the best rows of a user's log into ``<folder>/<gpu>/<program>.jsonl``, in the place of
    those that are there of the same race, and the program's text beside; gives the file, None
    where nothing was right.

    Args:
        log: ``…/<gpu>/<program>.jsonl``.
        program: the specialised program that it is of.
        folder: such as a checkout's ``autotune_logs``.

    Raises:
        OSError: what the file system says.
    """
    new = best_rows(read_log(log)[0])
    if not new:
        return None
    path = folder / log.parent.name / log.name
    races = {row.race for row in new}
    kept = [row for row in read_log(path)[0] if row.race not in races]
    keep_program(folder, program)
    write_rows(
        path, sorted([*kept, *new], key=lambda row: (row.sizes, row.place, not row.heuristic))
    )
    return path
