"""The skeleton that the PyTorch templates share: a source around one loop over tokens."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.pytorch import (
    PytorchBody,
    behind_reads,
    names,
    turn_reads,
)
from pdssm_compiler.schedules.target import Target


def needs_split(target: Target) -> bool:
    """Whether complex numbers are better two real tensors there: not every device has complex
    ones.
    """
    return target.kind == "other"


# ``split, compiled``: torch.compile generates no code for complex tensors.
SPACE = ((False, False), (True, False), (True, True))

# A loop over tokens; {order} and {reverse} undo the direction of time.
_WALK = """
def walk(turn, carries, tokens, fixed, length, chunks):
    # The first token of every chunk, then the second of every chunk, and so on.
    # carries: [B, chunks, H, ...]; tokens: [B, length, H, ...]
    size = length // chunks
    tokens = [x.unflatten(1, (chunks, size)).unbind(2) for x in tokens]
    kept = []
    for number in {order}:
        carries, keep = turn(carries, [x[number] for x in tokens], fixed)
        kept.append(keep)
    return carries, [torch.stack(x, 2).flatten(1, 2) for x in zip(*kept{reverse})]
"""


class TorchScan:
    """The skeleton of a source: what comes before, in and after the loop over tokens."""

    def __init__(self, body: PytorchBody) -> None:
        self.body = body
        self.program = body.program
        self.writer = body.writer
        phases = body.phases
        self.early = (*phases.fixed, *phases.ahead)
        results = [out.value for out in self.program.token_outputs]
        results += [out.value for out in self.program.sum_outputs]
        results += [check.map for check in self.program.checks]
        # Results that need a carry.
        self.late = [value for value in dict.fromkeys(results) if value not in self.early]
        self.kept, _, _ = behind_reads(phases, self.late)

    def preamble(self) -> None:
        """Imports, and the functions that the loop calls."""
        self.writer.line("import torch")
        self.text("")
        for helper in self.body.helpers():
            self.text(helper)
        if self.program.carries:
            self.text(self._directed(_WALK))
            self.body.turn("turn", self.program, self.kept)
        if self.body.phases.behind:
            self.body.behind(self.late)

    def _directed(self, source: str) -> str:
        forward = self.program.direction == "forward"
        order, reverse = ("range(size)", "") if forward else ("reversed(range(size))", "[::-1]")
        return source.format(order=order, reverse=reverse)

    def text(self, source: str) -> None:
        """A function as it stands, and the empty lines after it."""
        for line in source.strip("\n").splitlines():
            self.writer.line(line)
        self.writer.line()
        self.writer.line()

    @contextmanager
    def entry(self, more: Iterable[Value] = ()) -> Iterator[None]:
        """The entry around the loop over tokens.

        Args:
            more: what to compute ahead for other programs than this one.
        """
        body, write = self.body, self.writer.line
        write("def scan(")
        for parameter in body.parameters():
            write(f"    {parameter},")
        with self.writer.block("):"):
            body.sizes()
            body.inputs()
            body.clear_sums()
            write("# What needs no carry, for all tokens at once.")
            body.compute(self.early)
            body.compute(value for value in more if value not in self.early)
            body.results(self.early, "")
            if self.program.carries:
                starts = [part for carry in self.program.carries for part in body.start(carry)]
                write(f"carries = {names(starts)}")
            yield
            if self.program.final_outputs:
                write(f"{body.names(carry.value for carry in self.program.carries)} = carries")
            for final in self.program.final_outputs:
                parts = body.parts(self.program.carry(final.carry).value)
                body.write(f"out_{final.name}", [f"{part}[:, 0]" for part in parts])

    def stretch(self, length: str, chunks: str, cut: str = "") -> None:
        """Run neighbouring tokens and write what they give.

        Args:
            length: how many tokens.
            chunks: how many chunks of them run side by side; ``carries`` has as many.
            cut: the tokens' index, "" for all.
        """
        body, write = self.body, self.writer.line
        self.walk("carries, kept", "turn", "carries", self.program, length, chunks, cut)
        if not self.late:
            return
        if body.phases.behind:
            _, token, fixed = behind_reads(body.phases, self.late)
            arguments = f"kept, {self.cut(token, cut)}, {body.names(fixed)}"
            write(f"{body.names(self.late)} = behind({arguments})")
        else:
            write(f"{body.names(self.kept)} = kept")
        body.results(self.late, cut)

    def walk(
        self,
        results: str,
        turn: str,
        carries: str,
        program: Program,
        length: str,
        chunks: str,
        cut: str,
    ) -> None:
        """Run a program's turns over a stretch of tokens; see :meth:`stretch`."""
        token, fixed = turn_reads(program)
        given = f"{self.cut(token, cut)}, {self.body.names(fixed)}"
        self.writer.line(f"{results} = walk({turn}, {carries}, {given}, {length}, {chunks})")

    def cut(self, values: Sequence[Value], cut: str) -> str:
        """Values of a stretch of tokens."""
        listed = self.body.names(values)
        return f"[x{cut} for x in {listed}]" if cut and values else listed
