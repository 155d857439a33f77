"""The shared memory of a block, laid out once for all the bodies that a kernel runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from pdssm_compiler.schedules.signature import width_of
from pdssm_compiler.schedules.source import Writer

# Name, dtype and elements.
SharedBuffer = tuple[str, str, int]


def shared_size(buffers: Iterable[SharedBuffer]) -> int:
    """Bytes of buffers one behind the other."""
    return sum(padded(size * width_of(dtype)) for _, dtype, size in buffers)


@dataclass(frozen=True)
class SharedMemory:
    """What the shared memory of a block holds.

    Attributes:
        block: buffers of the whole block.
        own: buffers that each team has its own of.
        turns: groups of such buffers that a team uses in turns, one group at a time; they share a
            place.
        teams: how many teams there are.
    """

    block: tuple[SharedBuffer, ...]
    own: tuple[SharedBuffer, ...] = ()
    turns: tuple[tuple[SharedBuffer, ...], ...] = ()
    teams: int = 1

    @property
    def team_bytes(self) -> int:
        """Bytes of one team."""
        return shared_size(self.own) + max(map(shared_size, self.turns), default=0)

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return shared_size(self.block) + self.teams * self.team_bytes

    def write(self, writer: Writer) -> None:
        """Declare it: one allocation, which TVM allows, cut into buffers. Those of a team are
        declared as the first team's; another's lie ``team_bytes`` further.
        """
        writer.line(f'pool = T.alloc_buffer(({self.bytes},), "uint8", scope="shared.dyn")')
        teams = shared_size(self.block)
        turns = teams + shared_size(self.own)
        self._cut(writer, 0, self.block, 0)
        further = (self.teams - 1) * self.team_bytes
        self._cut(writer, teams, self.own, further)
        for group in self.turns:
            self._cut(writer, turns, group, further)

    def _cut(self, writer: Writer, at: int, buffers: Iterable[SharedBuffer], further: int) -> None:
        for name, dtype, size in buffers:
            each = width_of(dtype)
            writer.line(
                f'{name} = T.decl_buffer(({size + further // each},), "{dtype}", data=pool.data, '
                f'elem_offset={at // each}, scope="shared.dyn")'
            )
            at += padded(size * each)


def padded(size: int) -> int:
    """The next multiple of what the widest copy is aligned to."""
    return -(-size // 16) * 16
