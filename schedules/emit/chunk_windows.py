"""Carries of cuda-chunks where all blocks run at once: rows are cut into windows of chunks.

From block to block a carry passes through global memory. A team joins the summaries of its window
before its own while it waits for the one carry before the window.
"""

from pdssm_compiler.schedules.emit.chunk_bodies import ChunkBodies, Shape, Windows
from pdssm_compiler.schedules.emit.cuda_chunks import ChunkKernel, form
from pdssm_compiler.schedules.emit.lane_body import place_of_row
from pdssm_compiler.schedules.source import Writer


class WindowKernel(ChunkKernel):
    """See the module's text."""

    sizes = (*ChunkKernel.sizes, "window", "every")
    summaries = ("fold_", "joined_", "whole_")

    def __init__(self, writer: Writer, bodies: ChunkBodies, config: Shape, with_: Windows) -> None:
        super().__init__(writer, bodies, config)
        self.join, self.append = with_

    def _share_rows(self) -> str:
        self.writer.line("sharing: T.let = blocks // abreast")
        self.writer.line("part: T.let = block // abreast")
        return "block % abreast"

    def _meet(self) -> None:
        self.writer.line("T.cuda.cta_sync()")

    def _arrays(self) -> None:
        super()._arrays()
        self.join.arrays()
        self.append.arrays()

    def _carry(self) -> None:
        self.writer.line("place: T.let = number % window")
        with self.writer.block("if place + 1 < window and number + 1 < chunks:"):
            self.bodies.fold.end_row()
            self._write_form()
            self.bodies.scan.sync()
            self.bodies.scan.call("lane_publish", self._flag("number"), "lane")
        self.join.start_row()
        last = "place + 1 == window and number + 1 < chunks"
        with self.writer.block("if place > 0:"):
            self._join()
            with self.writer.block(f"if {last}:"):
                self._join_own()
        self.bodies.scan.load_constants()
        with self.writer.block("if number < window:"):
            self.bodies.scan.start_carries()
        with self.writer.block("else:"):
            self._receive()
        with self.writer.block(f"if {last}:"), self._carry_behind():
            self._pass_on()
        with self.writer.block("if place > 0:"):
            self._apply("joined_")

    def _join(self) -> None:
        """Join the summaries of the window before this chunk's."""
        write, join = self.writer.line, self.join
        write("opening: T.let = number - place")
        join.sync()
        join.call("lane_await", self._flag("opening"), "folded_sC", "place", "lane")
        with self.writer.block(
            f"for group in T.serial((place + {join.tile - 1}) // {join.tile}):"
        ):
            join.chunk = f"(opening + T.min(group * {join.tile} + u, place - 1))"
            join.hold(0)
            with (
                self.writer.block(f"for u in T.unroll({join.tile}):"),
                self.writer.block(f"if group * {join.tile} + u < place:"),
            ):
                join.token()
        self._sort("joined_")

    def _join_own(self) -> None:
        """Join this chunk's summary to those before it, so that one step leads from the carry
        before the window to the one behind it.
        """
        write, append = self.writer.line, self.append
        for joined, whole in zip(self.join.carry_arrays, append.carry_arrays, strict=True):
            with append.over_elements():
                write(f"{whole}[e] = {joined}[e]")
        append.held = None
        append.sync()
        with self.writer.block("for u in T.serial(1):"):
            append.token()
        self._sort("whole_")

    def _write_form(self) -> None:
        """Leave the sorted form of the fold's map where the summary is."""
        fold = self.bodies.fold
        forms = [a for a in fold.signature.arguments if a.name.endswith(("_order", "_last"))]
        if self.bodies.sorted:
            # Lanes beyond the last element repeat it, but have a form that ends every run.
            with fold.over_elements(), fold.by_its_owner():
                for argument, place in zip(forms, fold.to_row(*form("fold_")), strict=True):
                    fold.write_element(argument, "j", (place,))

    def _receive(self) -> None:
        """Take the carry that the chunk or window before has passed on."""
        with self.writer.block(f"if {self._is_near('team > 0')}:"):
            self._hand_near("lane_take_near", "team", self._mark("number"))
        with self.writer.block("else:"):
            self._hand_far("lane_take", self._words("number // every - 1"))

    def _pass_on(self) -> None:
        """Pass the carry behind this chunk's window on before its tokens are run."""
        with self.writer.block("if place > 0:"):
            self._apply("whole_", 1)
        with self.writer.block("else:"):
            self._apply("fold_", 1)
        teams = self.config.teams
        with self.writer.block(f"if {self._is_near(f'team + 1 < {teams}')}:"):
            following = f"((team + 1) % {teams})"
            self._hand_near("lane_post_near", following, self._mark("number + 1"))
        with self.writer.block("else:"):
            self._hand_far("lane_post", self._words("number // every"))

    @staticmethod
    def _is_near(neighbour: str) -> str:
        """Whether the team of the next chunk, or the one before, is in this block: then chunks do
        not wait for whole windows.
        """
        return f"window == 1 and ({neighbour} or sharing == 1)"

    def _hand_far(self, function: str, place: str) -> None:
        """Post or take a carry in global memory, where each row has a place of its own."""
        scan = self.bodies.scan
        lane = "lane" if scan.rows == 1 else scan.within(scan.own_lane)
        self._hand(function, f"T.address_of({place})", lane, scan.program.state_size)

    def _words(self, number: str) -> str:
        return f"passed[b * passed_sB + ({number}) * passed_sC + h * passed_sH]"

    def _flag(self, chunk: str) -> str:
        """Of several rows side by side, the first one's."""
        b, h = "b", "h"
        if self.bodies.scan.rows > 1:
            b, h = place_of_row("team_row[0]")
        return f"T.address_of(folded[{b} * folded_sB + {chunk} * folded_sC + {h} * folded_sH])"
