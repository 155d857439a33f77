"""A Triton function whose programs take chunk after chunk and wait for one another.

A program takes a ticket, which says its chunk, and keeps the chunk's tokens in registers. It folds
them, leaves the summary to others, gets the carry before the chunk and runs the tokens. Tickets
count chunk by chunk through all rows, so whatever a program waits for is done by programs that
took their tickets before: they run or ran, and somebody always goes on.

Chunks form windows. Of a window, the words ``signals`` tell which chunks have left their summary
(a bit each), and whether the carry behind the window is there (the bit after those).
"""

from collections.abc import Iterable

from pdssm_compiler.ir.types import Index
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import part_names
from pdssm_compiler.schedules.emit.triton import Kept, TritonBody
from pdssm_compiler.schedules.emit.triton_kernel import (
    function,
    load_tokens,
    run_together,
    write_tokens,
)
from pdssm_compiler.schedules.signature import Argument

# A word has a bit for each chunk of a window, one for the carry, and its sign.
MOST_WINDOW = 30

SIGNALS = Argument("signals", Index(2), "i32", "signal", True)

# Summaries that are read together.
_TOGETHER = 2

# The ending of what is said of a chunk's tokens while they are kept.
_KEPT = "_kept"

_PUBLISH = """
@triton.jit
def publish(word, bit):
    # What the threads of this program have stored is seen by whoever sees the bit.
    tl.debug_barrier()
    tl.atomic_or(word, bit, sem="release")
"""
_AWAIT = """
@triton.jit
def wait_for(word, bits):
    # Reading by an atomic operation: a plain load could be answered by a stale cache.
    while (tl.atomic_add(word, 0, sem="acquire") & bits) != bits:
        pass
    tl.debug_barrier()
"""
HELPERS = (_PUBLISH, _AWAIT)


class Lookback:
    """Writes the function.

    Args:
        fold: tokens to their summary, which is of chunks.
        join: summaries to their summary.
        apply: summaries to the carry behind them.
        scan: the program on one chunk.
        incoming: where the carry before a chunk is left, an input of ``scan``.
        tokens: of a chunk.
        window: chunks of a window.
    """

    def __init__(
        self,
        fold: TritonBody,
        join: TritonBody,
        apply: TritonBody,
        scan: TritonBody,
        incoming: str,
        tokens: int,
        window: int,
    ) -> None:
        self.fold, self.join, self.apply, self.scan = fold, join, apply, scan
        self.tokens, self.window = tokens, window
        self.writer = scan.writer
        self.incoming = next(a for a in scan.signature.arguments if a.name == incoming)
        (self._carry,) = apply.program.carries

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """The function's tensors."""
        bodies = (self.scan, self.fold, self.apply, self.join)
        declared = {a.name: a for body in bodies for a in reversed(body.signature.arguments)}
        return (*declared.values(), SIGNALS)

    def write(self, name: str) -> None:
        """The whole function."""
        write = self.writer.line
        with function(self.writer, name, self.arguments, "next chunk"):
            self._take_ticket()
            self.scan.pointers(self.arguments[:-1])
            for number in range(self.tokens):
                write(f"t{_KEPT}{number} = {self._token(str(number))}")
            kept = Kept(_KEPT)
            for body in (self.fold, self.scan):
                load_tokens(body, self.tokens, _KEPT, kept)
            write("# Behind the last chunk there is none that would ask for its summary.")
            with self.writer.block("if chunk + 1 < chunks:"):
                self._fold()
            with self.writer.block("if place > 0:"):
                write("wait_for(word, bit - 1)")
            write("# The last program of a window takes it in one step, before its own tokens.")
            with self.writer.block(f"if (place + 1 == {self.window}) & (chunk + 1 < chunks):"):
                self._pass_on()
            self._start_window()
            write_tokens(self.apply, "place", _TOGETHER, _before)
            self._scan()

    def _take_ticket(self) -> None:
        write, window = self.writer.line, self.window
        write('ticket = tl.atomic_add(signals, 1, sem="relaxed")')
        write("block = (ticket % blocks.to(tl.int32)).to(tl.int64)")
        write("chunk = (ticket // blocks.to(tl.int32)).to(tl.int64)")
        write("is_last = chunk + 1 == chunks")
        write(f"place = chunk % {window}")
        write("bit = 1 << place.to(tl.int32)")
        write(f"word = signals + 1 + chunk // {window} * blocks + block")
        self.scan.rows("block")
        write(f"begin = chunk * {self.tokens}")
        write(f"count = tl.minimum(L - begin, {self.tokens})")
        write("# Only a whole chunk is kept; the tokens of another are read one by one.")
        write(f"is_whole = count == {self.tokens}")
        write("live_kept = live & is_whole")
        write("inside_kept = inside & is_whole")

    def _fold(self) -> None:
        """Leave the chunk's summary to the programs of the window."""
        self.fold.start_rows()
        run_together(self.fold, self.tokens, _KEPT)
        self.fold.end_rows()
        self.writer.line("publish(word, bit)")

    def _pass_on(self) -> None:
        """Leave the carry behind the window to the programs of the next one."""
        self.join.start_rows()
        write_tokens(self.join, "(place + 1)", _TOGETHER, _before)
        given = self._joined()
        for value, name in given.items():
            if value.name in self.apply.signature.sorted_maps:
                self.join.sort(name)
        self._start_window()
        self.apply.token("", given)
        self._store()
        self.writer.line(f"publish(word, {1 << self.window})")

    def _joined(self) -> dict[Value, str]:
        """What the joined summary is called, for each part of one that is applied."""
        read = {input_.name: input_.value for input_ in self.apply.program.inputs}
        finals = self.fold.program.final_outputs
        return {read[final.name]: final.carry for final in finals if final.name in read}

    def _start_window(self) -> None:
        """The carry before the window."""
        write = self.writer.line
        with self.writer.block(f"if chunk >= {self.window}:"):
            write(f"wait_for(word - blocks, {1 << self.window})")
            self._load()
        with self.writer.block("else:"):
            self.apply.start_carry(self._carry)

    def _scan(self) -> None:
        """The chunk's tokens."""
        for carry in self.scan.program.carries:
            if carry.start_input != self.incoming.name:
                self.scan.start_carry(carry)
        self.scan.start_constants()
        with self.writer.block("if is_whole:"):
            run_together(self.scan, self.tokens, _KEPT)
        with self.writer.block("else:"):
            write_tokens(self.scan, "count", 1, self._token)
        self.scan.end_rows()

    def _token(self, step: str) -> str:
        forward = self.scan.program.direction == "forward"
        return f"begin + {step}" if forward else f"L - 1 - (begin + {step})"

    # -- the carry before a chunk, in memory ----------------------------------------------------

    @property
    def _parts(self) -> str:
        return ", ".join(part_names(self._carry.name, self._carry.type))

    @property
    def _mask(self) -> str:
        return "inside[:, :, None]" if self.incoming.complex else "inside"

    def _place(self, chunks: str) -> str:
        """Where the carry stands that is so many chunks from this one's."""
        name = self.incoming.name
        step = f"{name}_sC * 2" if self.incoming.complex else f"{name}_sC"
        return f"{name}_at + {chunks} * {step}"

    def _load(self) -> None:
        loaded = f"tl.load({self._place('(-place)')}, mask={self._mask}, other=0.0)"
        if self.incoming.complex:
            loaded = f"tl.split({loaded})"
        self.writer.line(f"{self._parts} = {loaded}")

    def _store(self) -> None:
        value = f"tl.join({self._parts})" if self.incoming.complex else self._parts
        self.writer.line(f"tl.store({self._place('1')}, {value}, mask={self._mask})")


def _before(step: str) -> str:
    """A summary of the window, counted from this program's."""
    return f"{step} - place"


def kept_words(bodies: Iterable[TritonBody]) -> int:
    """32-bit registers that an element of each of a token's inputs takes, all bodies' together."""
    kept = Kept()
    for body in bodies:
        load_tokens(body, 1, _KEPT, kept)
    return kept.words
