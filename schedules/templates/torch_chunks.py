"""torch-chunks: plain PyTorch, all chunks of a sequence side by side, their summaries combined.

For programs whose step is affine in their one carry: what
:mod:`pdssm_compiler.ir.passes.summarise` takes. One loop folds the tokens of all chunks at once
into the chunks' summaries; a scan over the summaries, in steps of doubled distance, says how every
chunk starts; a second loop runs all chunks at once from there. The tokens that do not fill a chunk
follow one by one. So ``T`` turns become ``2 · chunk + log2(T / chunk)``, and fewer than a chunk
for the rest, each over more numbers.

Where a product of diagonals overflows within a chunk, this order of evaluation gives infinities
that the token loop would not: no concern for diagonals of magnitude at most 1.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes.summarise import Summary, summarise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.phases import phases_of
from pdssm_compiler.schedules.emit.pytorch import PytorchBody
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.templates.torch_scan import SPACE, TorchScan, needs_split


@dataclass(frozen=True)
class TorchChunksConfig(Config):
    """How chunks are run.

    Attributes:
        chunk_length: tokens of a chunk; None for the power of two next to the square root of the
            length, at each call.
        split: complex numbers as two real tensors; :mod:`~pdssm_compiler.schedules.emit.pytorch`
            says what for.
        compiled: run the source under ``torch.compile``, which unrolls the loops: once for each
            batch, length and number of heads.
    """

    chunk_length: int | None = None
    split: bool = False
    compiled: bool = False


class TorchChunks(Template[TorchChunksConfig]):
    """The template; see the module's text."""

    name = "torch-chunks"
    backend = "torch"
    kinds = ("cpu", "cuda", "hip", "other")
    config_type = TorchChunksConfig

    def space(self, program: Program, target: Target) -> Iterator[TorchChunksConfig]:
        for chunk_length in (None, 8, 16, 32, 64, 128, 256):
            for split, compiled in SPACE:
                yield TorchChunksConfig(chunk_length, split, compiled)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> TorchChunksConfig:
        return TorchChunksConfig(program.chunk_length, split=needs_split(target))

    def feasible(self, program: Program, target: Target, config: TorchChunksConfig) -> str | None:
        if config.chunk_length is not None and config.chunk_length < 1:
            return f"chunk_length is at least 1, not {config.chunk_length}"
        try:
            summarise(program)
        except PassError as error:
            return str(error)
        return None

    def lower(self, program: Program, target: Target, config: TorchChunksConfig) -> KernelSource:
        summary = summarise(program)
        writer = Writer()
        writer.comment(f"{self.name} {config}\n{program.text}")
        parts = (summary.fold, summary.combine, summary.apply)
        scan = TorchScan(PytorchBody(program, writer, split=config.split, others=parts))
        scan.preamble()
        _functions(scan, summary)
        if config.chunk_length is None:
            scan.text(_CHUNK_LENGTH)
        chunk = config.chunk_length or "chunk_length(L)"
        with (
            scan.entry(_carry_free(summary.fold)),
            writer.block(f"for first, last, chunks in stretches(L, {chunk}):"),
        ):
            cut = "[:, first:last]"
            with writer.block("if chunks > 1:"):
                _enter(scan, summary, cut)
            scan.stretch("last - first", "chunks", cut)
            end = "-1:" if program.direction == "forward" else ":1"
            writer.line(f"carries = [x[:, {end}] for x in carries]")
        return KernelSource(
            self.backend, writer.text, "scan", program, self.name, asdict(config), target
        )


_CHUNK_LENGTH = """
def chunk_length(length):
    # The power of two next to the square root.
    chunk = 1
    while 2 * chunk * chunk <= length:
        chunk *= 2
    return chunk
"""

# Both ways of time: where the rest lies, and which of two neighbours comes first.
_STRETCHES = {
    "forward": """
def stretches(length, chunk):
    # (first, last, chunks): the whole chunks side by side, then the rest.
    whole = length - length % chunk
    if whole <= chunk:
        return [(0, length, 1)] if length else []
    rest = [(whole, length, 1)] if whole < length else []
    return [(0, whole, whole // chunk), *rest]
""",
    "backward": """
def stretches(length, chunk):
    # (first, last, chunks): the whole chunks, which end the sequence, side by side, then the rest.
    rest = length % chunk
    if length - rest <= chunk:
        return [(0, length, 1)] if length else []
    return [(rest, length, length // chunk), *([(0, rest, 1)] if rest else [])]
""",
}
_PREFIXES = {
    "forward": """
def prefixes(summaries):
    # Each chunk's summary combined with those of all chunks before it.
    distance, chunks = 1, summaries[0].shape[1]
    while distance < chunks:
        before, after = [x[:, :-distance] for x in summaries], [x[:, distance:] for x in summaries]
        both = combine(before, after)
        summaries = [torch.cat([x[:, :distance], y], 1) for x, y in zip(summaries, both)]
        distance *= 2
    return summaries
""",
    "backward": """
def prefixes(summaries):
    # Each chunk's summary combined with those of all chunks after it, which run before it.
    distance, chunks = 1, summaries[0].shape[1]
    while distance < chunks:
        before, after = [x[:, distance:] for x in summaries], [x[:, :-distance] for x in summaries]
        both = combine(before, after)
        summaries = [torch.cat([y, x[:, -distance:]], 1) for x, y in zip(summaries, both)]
        distance *= 2
    return summaries
""",
}


def _functions(scan: TorchScan, summary: Summary) -> None:
    """The functions of summaries: a token folded in, two combined, one applied."""
    scan.body.turn("fold", summary.fold, ())
    scan.body.whole("combine", summary.combine, _summary(summary.combine))
    scan.body.whole("apply", summary.apply, [carry.next for carry in summary.apply.carries])
    scan.text(_PREFIXES[scan.program.direction])
    scan.text(_STRETCHES[scan.program.direction])


def _summary(program: Program) -> list[Value]:
    """What a fold's carries are after a token, in the order in which its results are inputs."""
    return [program.carry(final.carry).next for final in program.final_outputs]


def _carry_free(program: Program) -> tuple[Value, ...]:
    phases = phases_of(program)
    return (*phases.fixed, *phases.ahead)


def _enter(scan: TorchScan, summary: Summary, cut: str) -> None:
    """From the carry before the first chunk to those before every chunk."""
    body, write = scan.body, scan.writer.line
    for carry in summary.fold.carries:
        for part, first in zip(body.parts(carry.value), body.start(carry, "chunks"), strict=True):
            write(f"{part} = {first}")
    write(f"neutral = {body.names(carry.value for carry in summary.fold.carries)}")
    scan.walk("summaries, _", "fold", "neutral", summary.fold, "last - first", "chunks", cut)
    write("enter = [x.expand(-1, chunks, -1, -1) for x in carries]")
    write("leave = apply(enter, prefixes(summaries))")
    both = (
        "[x[:, :1], y[:, :-1]]" if scan.program.direction == "forward" else "[y[:, 1:], x[:, :1]]"
    )
    write(f"carries = [torch.cat({both}, 1) for x, y in zip(enter, leave)]")
