"""What stands for a coefficient, an entry or a vector of a program where a function goes through
matrices: in a tile of tokens and lanes (:class:`Tokens`), or of entries (:class:`Entries`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pdssm_compiler.ir.types import Coefficients, is_complex
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.triton_matrix_text import MatrixText


class Place:
    """What stands for the values of a program where a function is."""

    def __init__(self, text: MatrixText) -> None:
        self.text = text
        self.shape = text.shape
        self.write = text.writer.line
        self.made: dict[tuple[Value, int], str] = {}
        # Names of what a turn of the loop loads, and what they begin with while it is loaded.
        self._loaded: list[str] = []
        self._before = ""

    def keep_loaded(self, name: str, load: str) -> None:
        """Name what is loaded in a turn of the loop."""
        self.write(f"{self._before}{name} = {load}")
        if self._before:
            self._loaded.append(name)

    @contextmanager
    def loading_ahead(self) -> Iterator[None]:
        """What is loaded is of the next turn, up to :meth:`advance`."""
        self._before, self._loaded = "next_", []
        yield
        self._before = ""

    def advance(self) -> None:
        """Take what was loaded ahead."""
        for name in self._loaded:
            self.write(f"{name} = next_{name}")

    def matrix(self, value: Value, row: int) -> str:
        """The name of a tile with the entries of a matrix; written where it is first asked for."""
        key = (value, row)
        if key not in self.made:
            self.made[key] = RULES[value.op](self, value, row)
        return self.made[key]

    def outer(self, value: Value, row: int, start: str) -> str:
        """A product of two vectors, one along the loop and one along the lanes."""
        along_loop, along_lanes = self.text.sides(value)
        for part in range(2 if is_complex(along_loop.type) else 1):
            pair = (
                f"{self.along_loop(along_loop, part, row)}, {self.along_lanes(along_lanes, part)}"
            )
            start = f"fused({pair}, {start})"
        return start

    def reached(self, soft: Value, row: int, start: str) -> str:
        """What arrives at a softmax, added to something."""
        reached = soft.args[2]
        parts = self.text.parts_across(soft)
        if not parts:
            return f"({self.matrix(reached, row)} + {start})"
        along_loop, _ = self.text.sides(reached)
        for part in range(parts):
            pair = f"{self.along_loop(along_loop, part, row)}, {self.stat(soft, 2 + part)}"
            start = f"fused({pair}, {start})"
        return start

    def straight_through(self, value: Value, row: int) -> str:
        """``e (G - mean)``; what :meth:`later` says is multiplied later."""
        matrix = value.args[0]
        less_top, less_mean = (self.stat(value, part) for part in range(2))
        entry = self.matrix(matrix, row)
        sharp = "sharp"
        self.write(f"e = tl.exp2(fused({sharp}, {entry}, {less_top}))")
        self.write(f"x = e * {self.reached(value, row, less_mean)}")
        return "x"

    def later(self, value: Value) -> str:
        """A factor of a softmax's that is the same for a column, and is not in its numbers."""
        if value.op != "straight_through" or self.text.parts_across(value):
            return ""
        return f" * {self.stat(value, 2)}"

    def noisy(self, value: Value, tile: str, looped: str) -> str:
        """A tile with its noise.

        Args:
            value: the op.
            tile: its numbers.
            looped: where they are on the looped axis.
        """
        _, scale, seed, draw = (arg.name if arg.is_leaf else "" for arg in value.args)
        at = f"({looped} // 4) * {self.shape.size} + lane[None, :]"
        return f"gumbel({tile}, {scale}_all, {seed}_all, {self.draw(draw)}, {at}, ({looped}) % 4)"

    def gumbel(self, value: Value, row: int) -> str:
        """A matrix and its noise."""
        name = self.matrix(value.args[0], row)
        self.write(f"{name} = {self.noisy(value, name, self.looped(row))}")
        return name

    def draw(self, name: str) -> str:
        """The numbers of the tokens' draws."""
        raise NotImplementedError

    def looped(self, row: int) -> str:
        """Where entries are on the looped axis."""
        raise NotImplementedError

    def prepare_noise(self, values: Sequence[Value]) -> None:
        """What all tokens of a head have."""
        for value in self.text.needed(values):
            if value.op == "gumbel":
                for leaf in value.args[1:3]:
                    at = f"{leaf.name} + h * {leaf.name}_sH"
                    self.write(f"{leaf.name}_all = tl.load({at})")

    def draws(self, values: Sequence[Value]) -> list[str]:
        """The inputs that number draws."""
        return [v.args[3].name for v in self.text.needed(values) if v.op == "gumbel"]

    def coefficient(self, value: Value, k: int) -> str:
        raise NotImplementedError

    def loaded_coefficient(self, value: Value) -> str:
        raise NotImplementedError

    def entry(self, row: int, k: int) -> str:
        raise NotImplementedError

    def along_loop(self, value: Value, part: int, row: int) -> str:
        raise NotImplementedError

    def along_lanes(self, value: Value, part: int) -> str:
        raise NotImplementedError

    def stat(self, value: Value, part: int) -> str:
        raise NotImplementedError

    def mix(self, value: Value, row: int) -> str:
        raise NotImplementedError

    def vectors(self, values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """Vectors along the loop and along the lanes that values need."""
        needed = self.text.needed(values)
        sides = [self.text.sides(v) for v in needed if v.op == "outer"]
        laid_out = [v.args[2] for v in needed if self.is_laid_out(v)]
        loop = [s[0] for s in sides] + [self.text.sides(outer)[0] for outer in laid_out]
        return list(dict.fromkeys(loop)), [s[1] for s in sides]

    def is_laid_out(self, value: Value) -> bool:
        """Whether it is a softmax at which a product of vectors arrives, of which one is laid out
        beside the softmax's numbers.
        """
        return value.op == "straight_through" and self.text.parts_across(value) > 0

    def softs(self, values: Sequence[Value]) -> list[Value]:
        return [v for v in self.text.needed(values) if v.op == "straight_through"]

    def coefficients(self, values: Sequence[Value]) -> list[Value]:
        return [v for v in self.text.needed(values) if isinstance(v.type, Coefficients)]


class Tokens(Place):
    """A tile of tokens and lanes, going through rows."""

    def prepare(self, values: Sequence[Value], known: Sequence[int] | None = None) -> None:
        """What stays the same in all rows.

        Args:
            values: what is needed.
            known: which parts of what is known of a softmax; all, where it is None.
        """
        text, shape = self.text, self.shape
        self.prepare_noise(values)
        for name in self.draws(values):
            at = f"{name} + {text.token_at(text.arguments[name])}"
            self.write(f"{name}_draw = tl.load({at}, mask=inside, other=0)")
        for value in self.coefficients(values):
            argument = text.arguments[value.name]
            self.write(f"{value.name}_at = {value.name} + {text.token_at(argument)}")
            if text.in_registers:
                for k in range(shape.entries):
                    load = f"tl.load({value.name}_at + {k}, mask=inside, other=0.0)"
                    self.write(f"{value.name}_{k} = {load}")
        along_loop, along_lanes = self.vectors(values)
        for value in along_loop:
            step = 2 if is_complex(value.type) else 1
            at = text.token_at(text.arguments[value.name])
            self.write(f"{value.name}_at = {value.name} + {at} * {step}")
        for value in along_lanes:
            for part in range(2 if is_complex(value.type) else 1):
                self.write(f"{value.name}_lanes_{part} = {self.loaded_lanes(value, part)}")
        for value in self.softs(values):
            text.inverse_temperature(value)
            self.write(f"at = {text.stats_at(value, 'n')}")
            for part in range(text.parts_of(value)) if known is None else known:
                at = f"{text.stats_of(value).name} + at + {part * shape.padded}"
                load = f"tl.load({at}, mask=inside[:, None], other=0.0)"
                self.write(f"{self.stat(value, part)} = {load}")

    def keep(self, soft: Value, part: int, value: str) -> None:
        """Store a part of what is known of a softmax's columns."""
        text = self.text
        at = f"{text.stats_at(soft, 'n')} + {part * self.shape.padded}"
        self.write(f"tl.store({text.stats_of(soft).name} + {at}, {value}, mask=inside[:, None])")

    def loaded_lanes(self, value: Value, part: int) -> str:
        """A vector along the lanes, as callers have it."""
        step = 2 if is_complex(value.type) else 1
        at = self.text.token_at(self.text.arguments[value.name])
        where = f"({at}[:, None] + lane[None, :]) * {step} + {part}"
        mask = f"inside[:, None] & (lane < {self.shape.size})[None, :]"
        return f"tl.load({value.name} + {where}, mask={mask}, other=0.0)"

    def rows(self, values: Sequence[Value], entries: bool = False) -> None:
        """What is loaded of the rows of a step, and their mixtures."""
        text, shape = self.text, self.shape
        step = shape.row_step
        mixes = [v for v in self.text.needed(values) if v.op == "mix"]
        if text.in_registers:
            for row in range(text.rows):
                for k in range(shape.entries):
                    load = f"tl.load(at_row + {row * step + k * shape.entry_step} + beside)"
                    self.keep_loaded(f"d_{row}_{k}", load)
        else:
            for number, mix in enumerate(mixes):
                for row in range(text.rows):
                    text.tile(f"m_{number}_{row}", "0.0")
                with text.writer.block(f"for k in range(0, {shape.entries}):"):
                    self.write(f"w = {self.loaded_coefficient(mix.args[1])}")
                    for row in range(text.rows):
                        load = f"tl.load(at_row + {row * step} + k * {shape.entry_step} + beside)"
                        name = f"m_{number}_{row}"
                        self.write(f"{name} = fused(w, {load}[None, :], {name})")
                for row in range(text.rows):
                    self.made[mix, row] = f"m_{number}_{row}"
            if entries:
                for row in range(text.rows):
                    for k in range(shape.chunk):
                        at = f"at_row + {row * step} + (first + {k}) * {shape.entry_step} + beside"
                        known = f", mask=(first + {k} < {shape.entries}) & (lane >= 0), other=0.0"
                        known = known if shape.entries % shape.chunk else ""
                        self.write(f"d_{row}_{k} = tl.load({at}{known})")
        for value in self.vectors(values)[0]:
            parts = 2 if is_complex(value.type) else 1
            for row in range(text.rows):
                for part in range(parts):
                    at = f"{value.name}_at + ({text.turn} + {row}) * {parts} + {part}"
                    mask = f"inside{text.within(row)}"
                    load = f"tl.load({at}, mask={mask}, other=0.0)"
                    self.keep_loaded(f"{value.name}_loop_{part}_{row}", load)
        self.write(f"at_row += {text.rows * step}")

    def chunk_entry(self, row: int, k: int) -> str:
        """The entry of a matrix of the chunk."""
        return f"d_{row}_{k}[None, :]"

    def coefficient(self, value: Value, k: int) -> str:
        return f"{value.name}_{k}[:, None]"

    def loaded_coefficient(self, value: Value) -> str:
        return f"tl.load({value.name}_at + k, mask=inside, other=0.0)[:, None]"

    def mix(self, value: Value, row: int) -> str:
        name = f"m_{row}"
        self.write(f"{name} = {self.coefficient(value.args[1], 0)} * d_{row}_0[None, :]")
        for k in range(1, self.shape.entries):
            pair = f"{self.coefficient(value.args[1], k)}, d_{row}_{k}[None, :]"
            self.write(f"{name} = fused({pair}, {name})")
        return name

    def draw(self, name: str) -> str:
        return f"{name}_draw[:, None]"

    def looped(self, row: int) -> str:
        return f"({self.text.turn} + {row})"

    def along_loop(self, value: Value, part: int, row: int) -> str:
        return f"{value.name}_loop_{part}_{row}[:, None]"

    def along_lanes(self, value: Value, part: int) -> str:
        return f"{value.name}_lanes_{part}"

    def stat(self, value: Value, part: int) -> str:
        return f"{self.text.stats_of(value).name}_{part}"


class Entries(Place):
    """A tile of every matrix, going through tokens."""

    slot = "_0"

    def prepare(self, values: Sequence[Value]) -> None:
        """What stays the same for all tokens."""
        text, shape = self.text, self.shape
        self.prepare_noise(values)
        if text.in_registers:
            for k in range(shape.entries):
                self.write(f"d_{k} = tl.load(table + here + {k * shape.entry_step})")
        for value in self.softs(values):
            text.inverse_temperature(value)

    def load(self, values: Sequence[Value], together: int, first: str) -> None:
        """What is loaded of some tokens, from the first on."""
        for number in range(together):
            self._load(values, number, f"{first} + {number}" if number else first)

    def _load(self, values: Sequence[Value], number: int, token: str) -> None:
        text, shape, slot = self.text, self.shape, f"_{number}"
        self.write(f"t = {token}")
        for value in self.coefficients(values):
            argument = text.arguments[value.name]
            self.write(f"{value.name}_at{slot} = {value.name} + {text.token_at(argument)}")
            if text.in_registers:
                for k in range(shape.entries):
                    self.keep_loaded(
                        f"{value.name}_{k}{slot}", f"tl.load({value.name}_at{slot} + {k})"
                    )
        for name in self.draws(values):
            at = f"{name} + {text.token_at(text.arguments[name])}"
            self.keep_loaded(f"{name}_draw{slot}", f"tl.load({at})")
        along_loop, along_lanes = self.vectors(values)
        for axis, index, vectors in (("loop", "i", along_loop), ("lanes", "lane", along_lanes)):
            mask = f", mask={index} < {shape.size}, other=0.0" if self._ends(axis) else ""
            for value in vectors:
                step = 2 if is_complex(value.type) else 1
                at = f"({text.token_at(text.arguments[value.name])} + {index}) * {step}"
                for part in range(step):
                    load = f"tl.load({value.name} + {at} + {part}{mask})"
                    self.keep_loaded(f"{value.name}_{axis}_{part}{slot}", load)
        for value in self.softs(values):
            self.write(f"at = {text.stats_at(value, 't')}")
            name = text.stats_of(value).name
            for part in range(text.parts_of(value)):
                load = f"tl.load({name} + at + {part * shape.padded})"
                self.keep_loaded(f"{name}_{part}{slot}", load)

    def _ends(self, axis: str) -> bool:
        """Whether tiles go beyond the end of an axis, ``loop`` or ``lanes``."""
        return self.shape.size < (self.shape.looped if axis == "loop" else self.shape.padded)

    def turn_to(self, number: int) -> None:
        """What follows is of this one of the tokens that were loaded."""
        self.slot = f"_{number}"
        self.made = {}

    def coefficient(self, value: Value, k: int) -> str:
        return f"{value.name}_{k}{self.slot}"

    def loaded_coefficient(self, value: Value) -> str:
        return f"tl.load({value.name}_at{self.slot} + k)"

    def weight(self, value: Value, k: int) -> str:
        """The coefficient of the chunk that a sum is weighed by."""
        if self.text.in_registers:
            return self.coefficient(value, k)
        at, known = f"{value.name}_at{self.slot} + first + {k}", ""
        if self.shape.entries % self.shape.chunk:
            known = f", mask=first + {k} < {self.shape.entries}, other=0.0"
        return f"tl.load({at}{known})"

    def mix(self, value: Value, row: int) -> str:
        shape = self.shape
        self.write(f"m = tl.zeros(({shape.tile}, {shape.lanes}), {self.text.dtype})")
        if self.text.in_registers:
            for k in range(shape.entries):
                self.write(f"m = fused({self.coefficient(value.args[1], k)}, d_{k}, m)")
        else:
            with self.text.writer.block(f"for k in range(0, {shape.entries}):"):
                self.write(f"d = tl.load(table + here + k * {shape.entry_step})")
                self.write(f"m = fused({self.loaded_coefficient(value.args[1])}, d, m)")
        return "m"

    def draw(self, name: str) -> str:
        return f"{name}_draw{self.slot}"

    def looped(self, row: int) -> str:
        return "i[:, None]"

    def along_loop(self, value: Value, part: int, row: int) -> str:
        return f"{value.name}_loop_{part}{self.slot}[:, None]"

    def along_lanes(self, value: Value, part: int) -> str:
        return f"{value.name}_lanes_{part}{self.slot}[None, :]"

    def stat(self, value: Value, part: int) -> str:
        size = f"({self.shape.tile}, {self.shape.lanes})"
        name = f"{self.text.stats_of(value).name}_{part}{self.slot}"
        return f"tl.broadcast_to({name}[None, :], {size})"


def _outer(place: Place, value: Value, row: int) -> str:
    shape = place.shape
    size = shape.tokens if isinstance(place, Tokens) else shape.tile
    return place.outer(value, row, f"tl.zeros(({size}, {shape.lanes}), {place.text.dtype})")


# How the entries of a matrix come about.
RULES: dict[str, Callable[[Place, Value, int], str]] = {
    "mix": lambda place, value, row: place.mix(value, row),
    "outer": _outer,
    "gumbel": lambda place, value, row: place.gumbel(value, row),
    "straight_through": lambda place, value, row: place.straight_through(value, row),
}
SUPPORTED_OPS = frozenset(RULES) | {"argmax", "inner", "weigh"}
