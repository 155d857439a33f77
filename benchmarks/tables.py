"""A record as tables and lines to read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from benchmarks import targets
from benchmarks.measure import Row
from benchmarks.provenance import OutputError
from pdssm_compiler.cli.consoles import new_table

Column = tuple[str, Callable[[Row], str]]


def _times(row: Row) -> str:
    return f"{row['ms']:.4f}"


def _wanted(row: Row) -> str:
    wanted = targets.OF_ROOF.get((row["shape"], row["maps"], row["direction"]))
    return f"{wanted:.0%}" if wanted and row["payload"] == "float32" else ""


def _of_mixture(row: Row) -> str:
    if row.get("target_ms"):
        return f"≤ {row['target_ms']:.0f} ms"
    return f"≤ {row['target_ratio']:.0f} times identity" if row.get("target_ratio") else ""


def _template(row: Row) -> str:
    return row.get("template", "") + (" *" if row.get("chosen") else "")


_KERNELS: tuple[Column, ...] = (
    ("shape", lambda row: row["shape"]),
    ("maps", lambda row: row["maps"]),
    ("direction", lambda row: row["direction"]),
    ("template", _template),
    ("ms", _times),
    ("spread", lambda row: f"{row['spread']:.1%}"),
    ("eager", lambda row: f"{row['eager_ms']:.4f}"),
    ("floor", lambda row: f"{row['floor_ms']:.4f}"),
    ("GB/s", lambda row: f"{row['gb_per_s']:.0f}"),
    ("of roof", lambda row: f"{row['of_roof']:.0%}"),
    ("wanted", _wanted),
    ("same bits", lambda row: "yes" if row["same_bits"] else "NO"),
    ("regs", lambda row: str(row.get("resources", {}).get("registers", ""))),
)
_PAYLOAD: Column = ("payload", lambda row: row["payload"])
_PER_ELEMENT: Column = ("ps an element", lambda row: f"{per_element(row):.1f}")

_LOOP: tuple[Column, ...] = (
    ("shape", lambda row: row["shape"]),
    ("direction", lambda row: row["direction"]),
    ("scan ms", lambda row: f"{row['scan']['ms']:.3f}"),
    ("spread", lambda row: f"{row['scan']['spread']:.1%}"),
    ("loop ms", lambda row: f"{row['loop']['ms']:.1f}"),
    ("loop's spread", lambda row: f"{row['loop']['spread']:.1%}"),
    ("tokens timed", lambda row: str(row["tokens"])),
    ("ratio", lambda row: f"{row['ratio']:.0f}×"),
    ("wanted", lambda row: f"≥ {row['target_ratio']}×" if row["target_ratio"] else ""),
    ("largest error", lambda row: f"{row['largest_error']:.1e}"),
)
_FUSED: tuple[Column, ...] = (
    ("shape", lambda row: row["shape"]),
    ("direction", lambda row: row["direction"]),
    ("ms", _times),
    ("spread", lambda row: f"{row['spread']:.1%}"),
    # Runs of earlier versions were timed as called alone.
    ("eager", lambda row: f"{row.get('eager_ms', row['ms']):.4f}"),
    ("of roof", lambda row: f"{row['of_roof']:.0%}"),
    ("wanted", lambda row: f"≤ {row['target_ms']:.2f} ms" if row["target_ms"] else ""),
)
_MIXTURE: tuple[Column, ...] = (
    ("shape", lambda row: row["shape"]),
    ("sizes", lambda row: " ".join(f"{name}={n}" for name, n in row["sizes"].items())),
    ("maps", lambda row: row["maps"]),
    ("ms", _times),
    ("spread", lambda row: f"{row['spread']:.1%}"),
    ("eager", lambda row: f"{row['eager_ms']:.4f}"),
    ("peak MiB", lambda row: f"{row['peak_mib']:.0f}" if row.get("peak_mib") else ""),
    ("of identity", lambda row: f"{row['of_identity']:.2f}" if "of_identity" in row else ""),
    ("TFMA/s", lambda row: f"{row['tera_fma_per_s']:.1f}" if "tera_fma_per_s" in row else ""),
    ("wanted", lambda row: _of_mixture(row)),
)
_PEERS: tuple[Column, ...] = (
    ("operator", lambda row: row["peer"]),
    ("direction", lambda row: row.get("direction", "")),
    ("given", lambda row: row["sizes"]),
    ("ms", _times),
    ("spread", lambda row: f"{row['spread']:.1%}"),
    ("of ours, float32", lambda row: _of_ours(row, "float32")),
    ("of ours, bfloat16", lambda row: _of_ours(row, "bfloat16")),
)


_LAYERS: tuple[Column, ...] = (
    ("layer", lambda row: row["layer"]),
    ("B", lambda row: str(row["sizes"]["B"])),
    ("T", lambda row: str(row["sizes"]["T"])),
    ("direction", lambda row: row["direction"]),
    ("ms", _times),
    ("spread", lambda row: f"{row['spread']:.1%}"),
    ("eager", lambda row: f"{row['eager_ms']:.4f}"),
    ("of products", lambda row: f"{row['of_products']:.2f}×"),
    ("over them", lambda row: f"{row['over_us']:.1f} µs"),
    ("wanted", lambda row: _wanted_of_layer(row)),
    ("peak MiB", lambda row: f"{row['peak_mib']:.0f}" if row.get("peak_mib") else ""),
    ("wanted", lambda row: f"≤ {row['target_mib']}" if "target_mib" in row else ""),
    ("of ours", lambda row: f"{row['of_ours']:.2f}×" if "of_ours" in row else ""),
)


def _wanted_of_layer(row: Row) -> str:
    if "target_us" in row:
        return f"over them ≤ {row['target_us']} µs"
    return f"≤ {row['target_ms']:.2f} ms" if "target_ms" in row else ""


def _of_ours(row: Row, payload: str) -> str:
    return f"{row['of_ours'][payload]:.2f}×" if payload in row["of_ours"] else ""


def per_element(row: Row) -> float:
    """Picoseconds of a row for each complex number of its states."""
    sizes = row["sizes"]
    return row["ms"] * 1e9 / (sizes["B"] * sizes["T"] * sizes["H"] * sizes["N"])


def table(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """Rows under columns. Of a row that has an error only what is known before it is measured; the
    error itself is told by :func:`lines`.
    """
    made = new_table(*(name for name, _ in columns), title=title)
    for row in rows:
        known = [cell(row) if "error" not in row else _if_known(cell, row) for _, cell in columns]
        made.add_row(*known, style="red" if "error" in row else None)
    return made


def _if_known(cell: Callable[[Row], str], row: Row) -> str:
    try:
        return cell(row)
    except KeyError:
        return "–"


def tables(record: dict[str, Any]) -> Iterator[RenderableType]:
    """What was measured, section by section, then what holds over rows."""
    for section in ("suite", "worst", "scaling", "step", "peers"):
        rows = [row for row in record["rows"] if row["section"] == section]
        if rows:
            extra = {"scaling": (_PER_ELEMENT,), "peers": (_PAYLOAD,)}.get(section, ())
            yield table(section, (*_KERNELS, *extra), rows)
    if record.get("fused"):
        yield table("fused core in bfloat16", _FUSED, record["fused"])
    if record.get("mixture"):
        yield table("PD-SSM layer, forward and backward", _MIXTURE, record["mixture"])
    if record.get("layers"):
        title = "layers under bfloat16 autocast; decoding in bfloat16"
        yield table(title, _LAYERS, record["layers"])
    if record.get("loop"):
        yield table("plain torch loop, as called", _LOOP, record["loop"])
    if record.get("peers"):
        yield table("other operators, as called", _PEERS, record["peers"])
    yield from lines(record)


# What names a row.
_NAMES = ("section", "shape", "layer", "peer", "maps", "payload", "direction", "template")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def lines(record: dict[str, Any]) -> Iterator[str]:
    """What went wrong, and what holds over several rows, beside what is wanted: a line each."""
    names = ("fused", "layers", "mixture", "loop", "peers")
    missing: set[str] = set()
    apart = (row for name in names for row in record.get(name, ()))
    for row in (*record["rows"], *apart):
        if "error" in row:
            named = (row.get(key) for key in _NAMES)
            told = f"{', '.join(filter(None, named))}: {_first_line(row['error'])}"
            # A layer that is not there is so at every length.
            if told not in missing:
                yield f"not measured: {told}"
            missing.add(told)
    found = record["verdicts"]
    for worst in found.get("worst_maps", ()):
        yield (
            f"worst maps, {worst['shape']} {worst['direction']}: {worst['of_random']:.2f} times "
            f"the time of random ones (wanted: at most {targets.WORST:.0f})"
        )
    if "lengths" in found:
        yield (
            f"a constant number of tokens, any length: times lie {found['lengths']:.1%} apart "
            f"(wanted: at most {targets.LENGTHS:.0%})"
        )
    if "same_bits" in found:
        same = found["same_bits"]
        other = same["other"]
        yield (
            f"the same run twice left the same bits in {same['kernels'] - len(other)} of "
            f"{same['kernels']} rows{''.join(f'; not in {name}' for name in other)}"
        )
    if record["left_out"]:
        yield f"not measured, for want of time: {', '.join(record['left_out'])}"
    if "host" in record:
        yield from _host(record["host"])


def _host(host: Row) -> Iterator[str]:
    """The host's own costs. Runs of earlier versions have fewer of them."""
    for name, told in (("call", "call"), ("call_with_permutations", "call with permutations")):
        if name in host:
            call = host[name]
            yield (
                f"a warm {told} adds {call['overhead_us']:.1f} µs to its kernel "
                f"({call['call_us']:.1f} against {call['kernel_us']:.1f}; wanted: at most "
                f"{targets.CALL_US})"
            )
    yield (
        f"the import adds {host['import']['median_s']:.3f} s to torch's (wanted: at most "
        f"{targets.IMPORT_S})"
    )
    if "first_result" in host:
        yield (
            f"a new process has its first result after {host['first_result']['median_s']:.2f} s, "
            f"torch's import aside (wanted: at most {targets.FIRST_RESULT_S:.0f})"
        )


def show(record: dict[str, Any], console: Console) -> None:
    """Print a record.

    Raises:
        OutputError: it is of an earlier version, whose rows say less.
    """
    if "verdicts" not in record:
        raise OutputError("these results are of an earlier version; measure again to see tables")
    console.print(
        f"{record['device']}, copy roof {record['roof_gb_per_s']:.1f} GB/s, commit "
        f"{record['commit']}, {record['date']}",
        highlight=False,
        markup=False,
    )
    console.print(
        "ms: median time on the device (graph replays on a GPU); spread: from the least to the "
        "most of repeated runs, of the median; eager: median time of plain calls; floor: bytes "
        "that must be moved, at the copy's rate; *: what a plain call takes",
        highlight=False,
        markup=False,
    )
    for one in tables(record):
        if isinstance(one, str):
            console.print(one, highlight=False, markup=False, soft_wrap=True)
        else:
            console.print(one)
