"""What several commands gave, in one file, and as the rows of a document's tables."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.state_tracking.files import replace_file
from examples.state_tracking.presets import TABLE3
from examples.state_tracking.settings import NAME

# Mean accuracy on 40 to 256 tokens, in per cent, of the published PD-SSM (arXiv 2509.22284,
# tables 2 and 3).
PUBLISHED = {
    "cycle-navigation": 99.5,
    "even-pairs": 99.7,
    "modular-arithmetic": 96.2,
    "parity": 99.9,
    **dict.fromkeys(TABLE3, 100.0),
    "S5-32": 1.07,
}
HEAD = (
    *("task", "model", "seeds", "accuracy, %", "published", "steps", "seconds", "beside"),
    *("states read, least, true", "the task's", "all right up to"),
)
# Of where and by what the runs of a folder were, what must be alike in all of them.
_ALIKE = ("device", "threads", "versions", "commit", "matrix_products")
# Of each file what is a list in it, and what each of that has.
_NEEDED = {
    "results": ("runs", ("settings", "best", "log")),
    "automata": ("automata", ("run", "states", "difference")),
    "lengths": ("lengths", ("run", "length", "accuracy", "sequences")),
}


def gather(folders: Iterable[Path], note: str) -> dict[str, Any]:
    """The results of folders that were trained at one commit on one kind of device, with the
    automata and lengths that were measured of their runs, there or on another device.

    Args:
        folders: each with ``results.json``, ``automata.json`` or ``lengths.json``, or several.
        note: what else is to be known of the runs.

    Returns:
        As :func:`examples.state_tracking.results.summary`, with ``together`` and ``date`` in each
        run, and ``automata`` and ``lengths`` as their commands store them.

    Raises:
        ValueError: a folder with none of the files, or with one that is damaged; no results at
            all, or results of several commits or devices; a run that has no measurement yet, or
            that is there twice.
        OSError: a file that cannot be read.
    """
    found: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    names = set[str]()
    for folder in folders:
        read = {
            name: _read(folder / f"{name}.json", within, needed)
            for name, (within, needed) in _NEEDED.items()
            if (folder / f"{name}.json").exists()
        }
        if not read:
            raise ValueError(f"{folder} has no results.json, automata.json or lengths.json")
        if results := read.pop("results", None):
            about = {name: results[name] for name in _ALIKE}
            if found and about != {name: found[name] for name in _ALIKE}:
                raise ValueError(
                    f"{folder} was trained elsewhere, or by another commit, than the folders "
                    f"before it; gather them one by one"
                )
            found |= about
            for name in map(_name, results["runs"]):
                if name in names:
                    raise ValueError(f"{folder} has {name} as a folder before it; gather one")
            names |= {_name(run) for run in results["runs"]}
            of_folder = {name: results[name] for name in ("together", "date")}
            runs += [run | of_folder for run in results["runs"]]
        for name, measured in read.items():
            if name in found:
                raise ValueError(f"{folder} is the second with {name}.json; gather one")
            found[name] = measured
    if not runs:
        raise ValueError("no folder has a results.json; name those of trained tables too")
    measured = {name: found.pop(name) for name in ("automata", "lengths") if name in found}
    return found | {"note": note, "runs": runs} | measured


def _read(path: Path, within: str, needed: Sequence[str]) -> dict[str, Any]:
    """What a command has stored; errors as of :func:`gather`."""
    logs: dict[str, Any] = {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        for each in found[within]:
            for name in needed:
                each[name]
        if within == "runs":
            for name in (*_ALIKE, "together", "date"):
                found[name]
            logs = {_name(run): run["log"] for run in found["runs"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not what a command stores ({type(error).__name__}: {error}); run its "
            f"command again"
        ) from None
    if unmeasured := [name for name, log in logs.items() if not log]:
        raise ValueError(
            f"{path} has no measurement of {', '.join(unmeasured)} yet; go on with its table"
        )
    return found


def _name(run: Mapping[str, Any]) -> str:
    return NAME.format_map(run["settings"])


def write(found: Mapping[str, Any], path: Path) -> None:
    """Write what was gathered, on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(found) + "\n").encode())


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """A row for the seeds of each task and model, below :data:`HEAD`.

    Args:
        found: what :func:`gather` gives.
    """
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in found["runs"]:
        kinds.setdefault((run["settings"]["task"], run["settings"]["model"]), []).append(run)
    automata = {each["run"]: each for each in found.get("automata", {}).get("automata", ())}
    lengths: dict[str, list[dict[str, Any]]] = {}
    for each in found.get("lengths", {}).get("lengths", ()):
        lengths.setdefault(each["run"], []).append(each)
    made = []
    for (task, model), runs in kinds.items():
        names = [_name(run) for run in runs]
        published = PUBLISHED.get(task) if model == "pdssm" else None
        made.append([
            *(task, model, str(len(runs))),
            f"{statistics.fmean(100 * run['best'] for run in runs):.1f}",
            "–" if published is None else f"{published:.4g}",
            _span([run["log"][-1]["step"] for run in runs]),
            _span([round(run["log"][-1]["seconds"]) for run in runs]),
            _span([run["together"] - 1 for run in runs]),
            *_automata([automata[name] for name in names if name in automata]),
            _lengths([lengths[name] for name in names if name in lengths]),
        ])  # fmt: skip
    return made


def _span(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def _automata(found: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """How many states they have, and how many are the task's, or where the only one is not."""
    states = "; ".join(", ".join(str(n) for n in each["states"].values()) for each in found)
    if len(found) == 1 and found[0]["difference"] is not None:
        return states, f"not after {' '.join(map(str, found[0]['difference']))}"
    right = sum(each["difference"] is None for each in found)
    return states, f"{right} of {len(found)}" if found else ""


def _lengths(found: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Up to how many tokens all sequences of the runs were answered right, and how many runs."""
    if not found:
        return ""
    wrong = [each["length"] for run in found for each in run if each["accuracy"] < 1]
    right = [each["length"] for run in found for each in run]
    most = max((n for n in right if not wrong or n < min(wrong)), default=0)
    return f"{most:,} ({len(found)})".replace(",", " ")


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))
