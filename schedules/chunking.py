"""How long the chunks of a row are.

It is decided at each launch, so that no length compiles anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

# How long a carry is on its way from block to block, where one takes from team to team.
FAR = 7

# And from a block to another of its cluster: assumed, between the two.
ACROSS = 2
# Blocks of a cluster, on every device that has them.
MOST_OF_A_CLUSTER = 8
# Its processors are of one group of so many: an H200 has groups of 16 and 18, and runs 30
# clusters of four where 32 are assumed.
_NEIGHBOURS = 16

# What a row takes beside its chunks, in chunks of a team: its tables, its first and last ones.
# Assumed, so that rows do not follow one another for a little less work each.
_OF_A_TURN = 2

# A launch's second axis has at most this many programs.
_MOST_CHUNKS = 2**16 - 1


@dataclass(frozen=True)
class Chunking:
    """A rule for the length of chunks.

    Attributes:
        programs: how many programs shall run side by side.
        least: tokens of a chunk, at least.
        multiple: tokens that are loaded together; chunks are whole groups of them.
        fixed: the length of every chunk, where something fixed it; None to apply the rule.
        window: chunks whose programs share a word of signals, where they wait for one another.
    """

    programs: int
    least: int
    multiple: int
    fixed: int | None = None
    window: int = 1

    def length(self, blocks: int, tokens: int) -> int:
        """Tokens of a chunk, at least 1.

        Args:
            blocks: programs that there are without chunks.
            tokens: tokens of a row.
        """
        if self.fixed is not None:
            return self.fixed
        # A chunk's tokens are run twice and the chunks' summaries once, one after the other:
        # 2C + T/C steps, fewest where C = √(T/2).
        shortest = max(self.least, isqrt(tokens // 2), -(-tokens // _MOST_CHUNKS))
        wanted = max(1, self.programs // max(1, blocks))
        length = max(shortest, -(-tokens // wanted))
        return -(-length // self.multiple) * self.multiple

    def chunks(self, length: int, tokens: int) -> int:
        """How many chunks of that length a row has, at least 1: a row without tokens still has a
        beginning and an end.
        """
        return max(1, -(-tokens // length))

    def signals(self, blocks: int, chunks: int) -> int:
        """Words of signals: the next ticket, and one for each window of a block of rows."""
        return 1 + blocks * -(-chunks // self.window)


def blocks_of_a_row(rows: int, chunks: int, teams: int, most_blocks: int) -> tuple[int, int]:
    """Where all blocks run at once and several may share a row: how many rows are abreast, and how
    many blocks share each.

    Args:
        rows: rows.
        chunks: of a row.
        teams: of a block, each with a chunk at a time.
        most_blocks: that run at once.
    """
    abreast = min(rows, most_blocks)
    return abreast, max(1, min(most_blocks // abreast, -(-chunks // teams)))


def cluster_of_a_row(
    rows: int, chunks: int, teams: int, at_once: Callable[[int], int]
) -> tuple[int, int]:
    """Where the blocks that share a row are a cluster: how many rows are abreast, and how many
    blocks share each, which is what a row takes least time with.

    Args:
        rows: rows.
        chunks: of a row.
        teams: of a block, each with a chunk at a time.
        at_once: how many clusters of so many blocks run at once.
    """
    most = max(1, min(MOST_OF_A_CLUSTER, -(-chunks // teams)))
    abreast = {size: min(rows, at_once(size)) for size in range(1, most + 1)}

    def steps(size: int) -> int:
        return -(-rows // abreast[size]) * (-(-chunks // (size * teams)) + _OF_A_TURN)

    size = min((size for size in abreast if abreast[size]), key=steps)
    return abreast[size], size


def carry_window(sharing: int, teams: int) -> int:
    """Chunks of a window, where so many blocks of so many teams share a row. One, if carries
    pass from chunk to chunk sooner than from window to window.
    """
    window = max(1, min(32, sharing * teams // 12))
    return 1 if (teams - 1 + FAR) * window <= FAR * teams else window


def window_passes(chunks: int, teams: int, sharing: int) -> float:
    """Carries of a row, in series; one from team to team counts one. All blocks run at once."""
    if sharing == 1:
        return chunks
    window = carry_window(sharing, teams)
    if window == 1:
        return chunks / teams * (teams - 1 + FAR)
    # Two summaries are applied between one carry and the next.
    return chunks / window * (2 + FAR)


def cluster_passes(chunks: int, teams: int, size: int) -> float:
    """The same, where the blocks that share a row are a cluster."""
    return chunks / teams * (teams - 1 + (ACROSS if size > 1 else 1))


def clusters_at_once(processors: int, each: int, size: int) -> int:
    """Clusters of so many blocks that a device has room for, about; it says itself how many.

    Args:
        processors: the device's.
        each: blocks that a processor runs at once.
        size: blocks of a cluster.
    """
    if size <= 2:
        return processors * each // size
    return max(1, processors // _NEIGHBOURS) * (_NEIGHBOURS * each // size)
