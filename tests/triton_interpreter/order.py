"""Whether programs of one launch read only what they were told is there.

The interpreter runs one program after the other, so nothing is ever read too early. What a program
may count on is kept here instead: what it wrote itself, and what others had written, or counted
on, when they told a bit that it waited for. Another load or store of an element that an earlier
program wrote is an error, whatever the interpreter found there.
"""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from triton.runtime import interpreter


class Watch:
    """Follows every program of the launches of one module, until the monkeypatch is undone.

    Args:
        module: generated source that tells by ``publish`` and waits by ``wait_for``.
        monkeypatch: what undoes it.
    """

    def __init__(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program = -1
        self.told = 0
        # For each program: what it counts on, programs and how many stores of each.
        self.known: dict[int, dict[int, int]] = {}
        self.writers: dict[int, tuple[int, int]] = {}
        self.released: dict[tuple[int, int], dict[int, int]] = {}
        builder: Any = interpreter.interpreter_builder
        load, store = builder.create_masked_load, builder.create_masked_store
        place = builder.set_grid_idx
        wait_for, publish = module.wait_for, module.publish

        def placed(x: int, y: int, z: int) -> None:
            self._begin(first=(x, y, z) == (0, 0, 0))
            place(x, y, z)

        def loaded(pointers: Any, mask: Any, *more: Any) -> Any:
            self._touch(pointers, mask)
            return load(pointers, mask, *more)

        def stored(pointers: Any, value: Any, mask: Any, *more: Any) -> Any:
            self._touch(pointers, mask)
            self._write(pointers, mask)
            return store(pointers, value, mask, *more)

        def waited(word: Any, bits: Any) -> None:
            self._acquire(_number(word), _number(bits))
            wait_for(word, bits)

        def published(word: Any, bit: Any) -> None:
            self.told += 1
            self.released[_number(word), _number(bit)] = dict(self.known[self.program])
            publish(word, bit)

        monkeypatch.setattr(builder, "set_grid_idx", placed)
        monkeypatch.setattr(builder, "create_masked_load", loaded)
        monkeypatch.setattr(builder, "create_masked_store", stored)
        monkeypatch.setattr(module, "wait_for", waited)
        monkeypatch.setattr(module, "publish", published)

    def _begin(self, first: bool) -> None:
        if first:
            # A launch counts on all that the one before it did.
            self.writers, self.released = {}, {}
        self.program += 1
        self.known[self.program] = {self.program: 0}

    def _acquire(self, word: int, bits: int) -> None:
        mine = self.known[self.program]
        for bit in (1 << place for place in range(bits.bit_length()) if bits >> place & 1):
            for program, stores in self.released[word, bit].items():
                mine[program] = max(mine.get(program, 0), stores)

    def _touch(self, pointers: Any, mask: Any) -> None:
        mine = self.known[self.program]
        for address in _addresses(pointers, mask):
            writer, store = self.writers.get(address, (self.program, 0))
            assert mine.get(writer, -1) >= store, f"program {self.program} reads too early"

    def _write(self, pointers: Any, mask: Any) -> None:
        mine = self.known[self.program]
        mine[self.program] += 1
        for address in _addresses(pointers, mask):
            self.writers[address] = (self.program, mine[self.program])


def _number(value: Any) -> int:
    return value if isinstance(value, int) else int(value.handle.data.item())


def _addresses(pointers: Any, mask: Any) -> list[int]:
    where, on = np.broadcast_arrays(pointers.data, mask.data)
    return [int(address) for address in where[on.astype(bool)]]
