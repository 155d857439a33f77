"""Sums over the elements of a token, and sums over tokens by an index."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from pdssm_compiler.ir.program import TokenOutput
from pdssm_compiler.ir.types import Scalar, Type
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import Parts, part_names
from pdssm_compiler.schedules.emit.lane_body import LANES
from pdssm_compiler.schedules.emit.lane_ring import LaneRing
from pdssm_compiler.schedules.emit.tvm import real_dtype


class LaneSums(LaneRing):
    """Adds what is summed over lanes, and what is added up over tokens."""

    def _collect_summands(self, total: Value, j: str, parts: Parts) -> None:
        """In each lane, the sum of its own elements."""
        self._add(self._array_places(total, j), tuple(self._summand(total, p) for p in parts))

    def _summand(self, total: Value, part: str) -> str:
        """The lanes that repeat the last element do not count."""
        n = self.width
        zero = f"T.{real_dtype(total.type)}(0)"
        return (
            part
            if n % self.lanes == 0
            else f"T.if_then_else(e * {self.lanes} + lane < {n}, {part}, {zero})"
        )

    def _add_up(self, total: Value) -> None:
        places = self._array_places(total, "0")
        if self._is_put_off(total):
            tiles = part_names(f"{self.names[total]}_tile", total.type)
            for tile, place in zip(tiles, places, strict=True):
                self.call("lane_merge", f"T.address_of({tile}[0])", place, "u")
            return
        for place in places:
            self.writer.line(f"{place} = {self._total(total, place)}")

    def _total(self, value: Value, part: str) -> str:
        """The sum of the lanes' parts of a sum."""
        if self.rows > 1:
            n = self.program.state_size
            even = f"T.bool({self.width == LANES and LANES % n == 0})"
            row = (self.own_lane, str(n), even)
            return self._called("lane_side_sum", part, *row, returns=value.type)
        if self.team == 1:
            return self._called("lane_sum", part, returns=value.type)
        return self._called(
            "lane_team_sum", part, self._sum_scratch(value), "lane", *self._barrier,
            returns=value.type,
        )  # fmt: skip

    def _sum_scratch(self, value: Value) -> str:
        """A number for each warp and token of a tile."""
        own = self._of_team(real_dtype(value.type))
        return f"T.address_of(sum_{self.names[value]}[{own}0])"

    @property
    def _postponable(self) -> list[Value]:
        """Sums of elements that are written out and not read. Those of all tokens of a tile take
        fewer shuffles together than one by one.
        """
        if self.tile & (self.tile - 1) or self.rows > 1:
            return []
        read = {arg for value in self.program.body for arg in value.args}
        read |= {carry.next for carry in self.program.carries}
        read |= {total.value for total in self.program.sum_outputs}
        return [v for v in self.program.body if v.op == "sum" and v not in read]

    @property
    def puts_off(self) -> bool:
        """Whether sums wait for the end of their tile."""
        return self._puts_off and bool(self._postponable)

    def _is_put_off(self, value: Value) -> bool:
        return self._puts_off and value in self._postponable

    @contextmanager
    def whole_tile(self, first: str) -> Iterator[None]:
        """Around the tokens of a whole tile, unrolled, whose first step is ``first``."""
        self._puts_off = True
        yield
        self._puts_off = False
        outputs = [out for out in self.program.token_outputs if out.value in self._postponable]
        if outputs:
            # A block of its own: a kernel may run several tiles in a row.
            with self.writer.block("for written in T.serial(1):"):
                self._write_sums(outputs, first)

    def _write_sums(self, outputs: list[TokenOutput], first: str) -> None:
        """Write the sums of a whole tile, each lane those of one token."""
        tile = str(self.tile)
        token = self._called("lane_merged_token", f"lane % {LANES}", tile, dtype="int32")
        self.writer.line(f"merged: T.let = {token}")
        step = f"{first} + T.Cast('int64', merged)"
        forward = self.program.direction == "forward"
        self.writer.line(f"t: T.let = {step if forward else f'L - 1 - ({step})'}")
        for out in outputs:
            names = part_names(f"{self.names[out.value]}_tile", out.value.type)
            for name in names:
                place = f"T.address_of({name}[0])"
                found = self._called("lane_merged", place, tile, returns=out.value.type)
                if self.team > 1:
                    row = (self._sum_scratch(out.value), "lane", "merged", tile, *self._barrier)
                    found = self._called("lane_team_merged", found, *row, returns=out.value.type)
                self.writer.line(f"{name}[0] = {found}")
            # Every warp of a team has the sums.
            with self._guard(f"lane < {LANES}", self.team > 1):
                parts = tuple(f"{name}[0]" for name in names)
                self._store(self._argument(out.name), ["b", "t", "h"], "0", parts)

    def by_its_owner(self) -> AbstractContextManager[None]:
        """What one lane alone does for an element."""
        return self._by_its_owner(None)

    def _by_its_owner(self, type_: Type | None) -> AbstractContextManager[None]:
        """Lanes that repeat an element do not count, and all lanes have a scalar."""
        n, size = self.width, self.program.state_size
        if self.rows > 1:
            first = f"lane % {size} == 0 and " if isinstance(type_, Scalar) else ""
            there = f"team_row[0] + {self._side} < rows"
            return self._guard(f"{first}lane < {n} and {there}", True)
        if isinstance(type_, Scalar):
            return self._guard("lane == 0", True)
        return self._guard(f"e * {self.lanes} + lane < {n}", n % self.lanes != 0)

    def _accumulate(self, places: Parts, parts: Parts) -> None:
        """Nothing waits for it. An element is always added to by one lane, in the order of the
        tokens, so sums repeat bit by bit.
        """
        for place, part in zip(places, parts, strict=True):
            self.call("lane_add", f"T.address_of({place})", part)
