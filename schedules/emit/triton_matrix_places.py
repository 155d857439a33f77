"""What stands for a coefficient, an entry or a vector of a program where a function goes through
matrices: in a tile of tokens and lanes (:class:`Tokens`), or of entries (:class:`Entries`).
"""

from collections.abc import Callable, Sequence

from pdssm_compiler.ir.types import Coefficients, is_complex
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.schedules.emit.triton_matrix_text import MatrixText


class Place:
    """What stands for the values of a program where a function is."""

    def __init__(self, text: MatrixText) -> None:
        self.text = text
        self.shape = text.shape
        self.write = text.writer.line
        self.made: dict[tuple[Value, int], str] = {}

    def matrix(self, value: Value, row: int) -> str:
        """The name of a tile with the entries of a matrix; written where it is first asked for."""
        key = (value, row)
        if key not in self.made:
            self.made[key] = RULES[value.op](self, value, row)
        return self.made[key]

    def outer(self, value: Value, row: int, start: str) -> str:
        """A product of two vectors, one along the loop and one along the lanes."""
        along_loop, along_lanes = self._sides(value)
        for part in range(2 if is_complex(along_loop.type) else 1):
            pair = (
                f"{self.along_loop(along_loop, part, row)}, {self.along_lanes(along_lanes, part)}"
            )
            start = f"fused({pair}, {start})"
        return start

    def _sides(self, value: Value) -> tuple[Value, Value]:
        left, right = value.args
        return (left, right) if self.shape.orientation == "column" else (right, left)

    def reached(self, value: Value, row: int, start: str) -> str:
        """What arrives at a softmax, added to something."""
        if value.op == "outer":
            return self.outer(value, row, start)
        return f"({self.matrix(value, row)} + {start})"

    def straight_through(self, value: Value, row: int) -> str:
        """``e (G - mean)``; what :meth:`later` says is multiplied later."""
        matrix, _, reached, _ = value.args
        top, mean, _ = (self.stat(value, part) for part in range(3))
        entry = self.matrix(matrix, row)
        sharp = "sharp"
        self.write(f"e = tl.exp2(fused({sharp}, {entry}, {self.negative(top)}))")
        self.write(f"x = e * {self.reached(reached, row, self.negative(mean))}")
        return "x"

    def later(self, value: Value) -> str:
        """A factor of a softmax's that is the same for a column."""
        return f" * {self.stat(value, 2)}" if value.op == "straight_through" else ""

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
        for value in topological(values):
            if value.op == "gumbel":
                for leaf in value.args[1:3]:
                    at = f"{leaf.name} + h * {leaf.name}_sH"
                    self.write(f"{leaf.name}_all = tl.load({at})")

    def draws(self, values: Sequence[Value]) -> list[str]:
        """The inputs that number draws."""
        return [v.args[3].name for v in topological(values) if v.op == "gumbel"]

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

    def negative(self, name: str) -> str:
        """A tile of the negative."""
        raise NotImplementedError

    def mix(self, value: Value, row: int) -> str:
        raise NotImplementedError

    def vectors(self, values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """Vectors along the loop and along the lanes that values need."""
        sides = [self._sides(v) for v in topological(values) if v.op == "outer"]
        return [s[0] for s in sides], [s[1] for s in sides]

    def softs(self, values: Sequence[Value]) -> list[Value]:
        return [v for v in topological(values) if v.op == "straight_through"]

    def coefficients(self, values: Sequence[Value]) -> list[Value]:
        return [v for v in topological(values) if isinstance(v.type, Coefficients)]


class Tokens(Place):
    """A tile of tokens and lanes, going through rows."""

    def prepare(self, values: Sequence[Value]) -> None:
        """What stays the same in all rows."""
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
            step = 2 if is_complex(value.type) else 1
            at = text.token_at(text.arguments[value.name])
            where = f"({at}[:, None] + lane[None, :]) * {step}"
            mask = f"inside[:, None] & (lane < {shape.size})[None, :]"
            for part in range(step):
                load = f"tl.load({value.name} + {where} + {part}, mask={mask}, other=0.0)"
                self.write(f"{value.name}_lanes_{part} = {load}")
        for value in self.softs(values):
            text.inverse_temperature(value)
            self.write(f"at = {text.stats_at('n')}")
            for argument in text.stats_of(value):
                load = f"tl.load({argument.name} + at, mask=inside[:, None], other=0.0)"
                self.write(f"{argument.name}_tile = {load}")

    def rows(self, values: Sequence[Value], entries: bool = False) -> None:
        """What is loaded of the rows of a step, and their mixtures."""
        text, shape = self.text, self.shape
        self.made = {}
        step = shape.entries * shape.padded
        mixes = [v for v in topological(values) if v.op == "mix"]
        if text.in_registers:
            for row in range(shape.rows):
                for k in range(shape.entries):
                    load = f"tl.load(at_row + {row * step + k * shape.padded} + lane)"
                    self.write(f"d_{row}_{k} = {load}")
        else:
            for number, mix in enumerate(mixes):
                for row in range(shape.rows):
                    text.tile(f"m_{number}_{row}", "0.0")
                with text.writer.block(f"for k in range(0, {shape.entries}):"):
                    self.write(f"w = {self.loaded_coefficient(mix.args[1])}")
                    for row in range(shape.rows):
                        load = f"tl.load(at_row + {row * step} + k * {shape.padded} + lane)"
                        name = f"m_{number}_{row}"
                        self.write(f"{name} = fused(w, {load}[None, :], {name})")
                for row in range(shape.rows):
                    self.made[mix, row] = f"m_{number}_{row}"
            if entries:
                for row in range(shape.rows):
                    for k in range(shape.chunk):
                        at = f"at_row + {row * step} + (first + {k}) * {shape.padded} + lane"
                        known = f", mask=(first + {k} < {shape.entries}) & (lane >= 0), other=0.0"
                        known = known if shape.entries % shape.chunk else ""
                        self.write(f"d_{row}_{k} = tl.load({at}{known})")
        for value in self.vectors(values)[0]:
            parts = 2 if is_complex(value.type) else 1
            for row in range(shape.rows):
                for part in range(parts):
                    at = f"{value.name}_at + (i + {row}) * {parts} + {part}"
                    mask = f"inside{text.within(row)}"
                    load = f"tl.load({at}, mask={mask}, other=0.0)"
                    self.write(f"{value.name}_loop_{part}_{row} = {load}")
        self.write(f"at_row += {shape.rows * step}")

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
        return f"(i + {row})"

    def along_loop(self, value: Value, part: int, row: int) -> str:
        return f"{value.name}_loop_{part}_{row}[:, None]"

    def along_lanes(self, value: Value, part: int) -> str:
        return f"{value.name}_lanes_{part}"

    def stat(self, value: Value, part: int) -> str:
        return f"{self.text.stats_of(value)[part].name}_tile"

    def negative(self, name: str) -> str:
        return f"-{name}"


class Entries(Place):
    """A tile of every matrix, going through tokens."""

    slot = "_0"

    def prepare(self, values: Sequence[Value]) -> None:
        """What stays the same for all tokens."""
        text, shape = self.text, self.shape
        self.prepare_noise(values)
        if text.in_registers:
            for k in range(shape.entries):
                self.write(f"d_{k} = tl.load(table + here + {k * shape.padded})")
        for value in self.softs(values):
            text.inverse_temperature(value)

    def load(self, values: Sequence[Value], number: int) -> None:
        """What is loaded of a token, the ``number``-th of those together; zeros behind the last,
        which add nothing.
        """
        text, shape = self.text, self.shape
        slot, known = f"_{number}", "True"
        self.write(f"t = step + {number}" if number else "t = step")
        if shape.together > 1:
            known = f"known{slot}"
            self.write(f"{known} = t < end")
        for value in self.coefficients(values):
            argument = text.arguments[value.name]
            self.write(f"{value.name}_at{slot} = {value.name} + {text.token_at(argument)}")
            if text.in_registers:
                for k in range(shape.entries):
                    load = self._masked(f"{value.name}_at{slot} + {k}", known)
                    self.write(f"{value.name}_{k}{slot} = {load}")
        for name in self.draws(values):
            at = f"{name} + {text.token_at(text.arguments[name])}"
            self.write(f"{name}_draw{slot} = {self._masked(at, known, '0')}")
        along_loop, along_lanes = self.vectors(values)
        for kind, index, vectors in (("loop", "i", along_loop), ("lanes", "lane", along_lanes)):
            for value in vectors:
                step = 2 if is_complex(value.type) else 1
                at = f"({text.token_at(text.arguments[value.name])} + {index}) * {step}"
                for part in range(step):
                    mask = f"({index} < {shape.size})"
                    mask = mask if known == "True" else f"{mask} & {known}"
                    load = self._masked(f"{value.name} + {at} + {part}", mask)
                    self.write(f"{value.name}_{kind}_{part}{slot} = {load}")
        for value in self.softs(values):
            self.write(f"at = {text.stats_at('t')}")
            for argument in text.stats_of(value):
                mask = known if known == "True" else f"(lane >= 0) & {known}"
                load = self._masked(f"{argument.name} + at", mask)
                self.write(f"{argument.name}_lanes{slot} = {load}")

    @staticmethod
    def _masked(at: str, mask: str, other: str = "0.0") -> str:
        return f"tl.load({at})" if mask == "True" else f"tl.load({at}, mask={mask}, other={other})"

    def turn_to(self, number: int) -> None:
        """What follows is of this one of the tokens that were loaded."""
        self.slot = f"_{number}"
        self.made = {}

    def coefficient(self, value: Value, k: int) -> str:
        return f"{value.name}_{k}{self.slot}"

    def loaded_coefficient(self, value: Value) -> str:
        return self._loaded(value, "k", "")

    def weight(self, value: Value, k: int) -> str:
        """The coefficient of the chunk that a sum is weighed by."""
        if self.text.in_registers:
            return self.coefficient(value, k)
        known = f"(first + {k} < {self.shape.entries})"
        return self._loaded(
            value, f"first + {k}", known if self.shape.entries % self.shape.chunk else ""
        )

    def _loaded(self, value: Value, k: str, mask: str) -> str:
        masks = [mask] if mask else []
        if self.shape.together > 1:
            masks.append(f"known{self.slot}")
        return self._masked(f"{value.name}_at{self.slot} + {k}", " & ".join(masks) or "True")

    def mix(self, value: Value, row: int) -> str:
        shape = self.shape
        self.write(f"m = tl.zeros(({shape.tile}, {shape.lanes}), {self.text.dtype})")
        if self.text.in_registers:
            for k in range(shape.entries):
                self.write(f"m = fused({self.coefficient(value.args[1], k)}, d_{k}, m)")
        else:
            with self.text.writer.block(f"for k in range(0, {shape.entries}):"):
                self.write(f"d = tl.load(table + here + k * {shape.padded})")
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
        return f"{self.text.stats_of(value)[part].name}_lanes{self.slot}[None, :]"

    def negative(self, name: str) -> str:
        return f"tl.broadcast_to(-{name}, ({self.shape.tile}, {self.shape.lanes}))"


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
