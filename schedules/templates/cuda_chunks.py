"""cuda-chunks: rows cut into chunks that many teams run at once, every token read once.

A *team* of warps, one element a lane, copies a chunk of tokens into shared memory, folds it into a
summary, waits for the carry before it and runs its tokens from there, all from the same copy.
While its tokens run, the next chunk's take their places.

Carries pass from team to team: through shared memory where both are in one block or one *cluster*
of blocks, otherwise through global memory, which takes several times as long. A row that many
blocks share is therefore cut into *windows* of neighbouring chunks: within one each team joins the
summaries before its own, while it waits for the one carry before the window. A team that passes a
carry on does so first and runs its tokens afterwards. Windows are fixed, so sums are made in the
same order whatever the timing: results are repeatable to the bit.

All that wait for one another run at the same time: the blocks of a cluster do, and without them
those of a launch (a cooperative one).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, Self

from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes import hoist
from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.chunking import (
    MOST_OF_A_CLUSTER,
    blocks_of_a_row,
    carry_window,
    cluster_of_a_row,
    cluster_passes,
    clusters_at_once,
    window_passes,
)
from pdssm_compiler.schedules.emit.chunk_bodies import ChunkBodies
from pdssm_compiler.schedules.emit.chunk_clusters import ClusterKernel
from pdssm_compiler.schedules.emit.chunk_windows import WindowKernel
from pdssm_compiler.schedules.emit.cuda_chunks import ChunkKernel
from pdssm_compiler.schedules.emit.cuda_kernel import (
    has_clusters,
    kernel,
    most_rows,
    registers_of,
    rows_refused,
    tile_refused,
    whole_team,
)
from pdssm_compiler.schedules.emit.lane_body import LANES, MOST_STATES
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.work import (
    RESERVED_BYTES,
    Work,
    blocks_at_once,
    bytes_in,
    bytes_out,
    collects,
    table_entries,
    values_of,
)

# Fewer tokens than this are too short a chain to cut.
_FEWEST_TOKENS = 512
# Chunks that a row has at least, if it is long.
_FEWEST_CHUNKS = 16
# Tokens of a chunk.
_TOKENS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
# Tokens of a tile, and of a chunk at least, that were fastest (docs/gpu-log.md): by whether
# targets collect, whether a team has several warps, and whether several blocks share a row: then
# what takes long is one carry after the other.
_BEST = {
    (False, False, False): (4, 32),
    (False, False, True): (8, 48),
    (False, True, False): (4, 20),
    (False, True, True): (8, 48),
    (True, False, False): (4, 32),
    (True, False, True): (4, 40),
    (True, True, False): (4, 20),
    (True, True, True): (4, 28),
}
# Short rows that several blocks share: what is waited for is one carry after the other, as many as
# there are chunks, and at both ends a chunk's tokens without the rest of the device. The sum is
# least where a chunk has so many times the root of a row's tokens (docs/gpu-log.md).
_ROOTS = 0.42
_SHORTEST = 16
# Tokens of a chunk that has several long tiles.
_LONG_TILES = 24
# Bytes of a token's inputs up to which a processor holds enough tokens to be busy.
_NARROW = 640
# What a token takes row by row where nothing else is waited for (docs/gpu-log.md).
_CHAIN_SECONDS = 60e-9
# Tokens of a processor's chunks from which on `early` is faster than rows in order
# (docs/gpu-log.md).
_EARLY_TOKENS = 384
# Warps of a team of which a processor has enough in two blocks of one team each.
_WIDE_TEAM = 3
# But where few blocks share a row of so many tokens and targets collect: then every carry would
# go from block to block, one after the other (docs/gpu-log.md).
_MANY_CARRIES = 4096
# Bytes that the device moves while a carry passes from one chunk to the next: chunks of so
# many, over all rows, keep the carries from being waited for.
_CARRY_BYTES = 2_500_000
# Blocks that share a row and are a cluster.
_NEAR_BLOCKS = 2
# The hardware's barriers, but for the block's own.
_MOST_TEAMS = 15
_MOST_WARPS = 32
# Registers that a lane takes, about, where it may.
_REGISTERS_OF_A_LANE = 128
# Warps that have 128 registers a lane.
_FREE_WARPS = 16


@dataclass(frozen=True)
class CudaChunksConfig(Config):
    """How chunks are run.

    Attributes:
        tile: tokens whose inputs are in registers together; even.
        tiles: tiles of a chunk.
        teams: teams of a block, each with a chunk of its own.
        rows: rows narrower than a warp that one holds, side by side.
        early: 1 to compute what a token needs no carry for once and keep it in shared memory, 0 to
            compute it for a chunk's summary and again for its run.
        clusters: 1 if the blocks that share a row are a cluster, which has at most eight and hands
            carries on through shared memory; 0 if all blocks run at once.
    """

    tile: int
    tiles: int
    teams: int
    rows: int = 1
    early: int = 0
    clusters: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of a chunk."""
        return self.tile * self.tiles

    def renewed(self, name: str, today: Any) -> Self | None:
        if name != "clusters":
            return None
        # The same tiles and teams are as good in clusters, or better (docs/gpu-log.md); but where
        # a block has one team, many share a row, which windows suit.
        return self if self.teams == 1 else replace(self, clusters=today)


@lru_cache(maxsize=4096)
def _shared_bytes(program: Program, config: CudaChunksConfig) -> int | str:
    """Shared memory of a block, or why the program has no chunks. Kept, for one choice after
    another asks for the same few configs.
    """
    try:
        return ChunkBodies(in_text_names(program), Writer(), config).shared.bytes
    except PassError as error:
        return f"chunks have no summary: {error}"


def _short(tile: int, tokens: int, problem: Problem) -> tuple[int, int]:
    """Tokens of a tile, and of a chunk at least, of rows that may be short."""
    if problem.length is None:
        return tile, tokens
    wanted = max(_SHORTEST, min(tokens, int(_ROOTS * problem.length**0.5)))
    fewer = max(each for each in _TOKENS if each <= wanted)
    return (tile if fewer >= _LONG_TILES else 4), fewer


def _long(program: Program, problem: Problem) -> int:
    """Tokens of a chunk where what collects waits for carries: as many as the device moves
    meanwhile, but for rows too short for many chunks.
    """
    most = _TOKENS[-1]
    if problem.length is not None:
        most = min(most, problem.length // _FEWEST_CHUNKS)
    return min(most, _while_a_carry_passes(program, problem))


class CudaChunks(Template[CudaChunksConfig]):
    """The template; see the module's text."""

    name = "cuda-chunks"
    backend = "tvm-cuda"
    kinds = ("cuda",)
    config_type = CudaChunksConfig

    def suits(self, program: Program, target: Target, problem: Problem) -> bool:
        if problem.rows is None or problem.length is None:
            return False
        if problem.length < _FEWEST_TOKENS:
            return False
        rows = _rows(program, problem)
        teams = -(-problem.rows // rows)
        if 2 * teams <= target.processors:
            return True
        if _early(program):
            # A chunk that keeps what it computed for its summary is faster than helpers row by
            # row, if as many tokens are under way as plain scans have.
            config = self.heuristic(program, target, problem)
            if config.teams * config.tokens < _EARLY_TOKENS:
                return False
        elif hoist(program) and not collects(program):
            # Row by row helpers compute once what a chunk computes for its summary and again;
            # what collects in several warps waits for itself longer than that takes.
            return False
        warps = teams * whole_team(program)
        # What keeps lanes busy beside the memory is better spread over more of them.
        if collects(program) or rows * bytes_in(program) <= _NARROW:
            return warps <= (2 if whole_team(program) > 1 else 4) * target.processors
        if program.sum_outputs or teams > target.processors:
            return False
        # Alone on its processor, a row in order is timed by its chain.
        moved = problem.rows * (bytes_in(program) + bytes_out(program))
        return moved < _CHAIN_SECONDS * target.bandwidth

    def space(self, program: Program, target: Target) -> Iterator[CudaChunksConfig]:
        for tile in (2, 4, 8):
            for tokens in _TOKENS:
                for teams in range(1, _MOST_TEAMS + 1):
                    for rows in sorted({1, most_rows(program)}):
                        for early in (0, 1) if hoist(program) else (0,):
                            for clusters in (0, 1) if has_clusters(target) else (0,):
                                if tokens % tile == 0:
                                    yield CudaChunksConfig(
                                        tile, tokens // tile, teams, rows, early, clusters
                                    )

    def worthwhile(
        self, program: Program, target: Target, problem: Problem, config: CudaChunksConfig
    ) -> bool:
        if problem.rows is None or not has_clusters(target):
            return True
        sharing = _sharing(program, target, problem)
        # Of a block a row windows are clusters and more; larger clusters leave processors idle.
        return sharing <= MOST_OF_A_CLUSTER if config.clusters else sharing > 1

    def heuristic(self, program: Program, target: Target, problem: Problem) -> CudaChunksConfig:
        several = whole_team(program) > 1
        rows = _rows(program, problem)
        clusters = _in_clusters(program, target, problem)
        sharing = _sharing(program, target, problem)
        # Whether carries pass from block to block through global memory.
        shared = sharing > 1 and not clusters
        tile, tokens = _BEST[collects(program), several, shared]
        if sharing > 1 and several and not collects(program):
            tile, tokens = _short(tile, tokens, problem)
        elif shared and several:
            tokens = max(tokens, _long(program, problem))
        if rows > 1 and not shared:
            tile = max(tile, 4)
        if rows * program.state_size <= LANES // 2:
            # Lanes without an element leave room for teams, and for longer tiles and chunks.
            tile, tokens = (8, 64) if shared else (max(tile, 4), tokens)
        if (
            shared
            and whole_team(program) >= _WIDE_TEAM
            and not _in_series(program, target, problem)
        ):
            # What one block waits for does not hold the other up, as it would a second team.
            room = (target.shared_memory - RESERVED_BYTES) // 2
            alone = [CudaChunksConfig(tile, n // tile, 1) for n in _TOKENS if n % tile == 0]
            two = [c for c in alone if self._refused(program, target, c, room) is None]
            # Longer ones only take the place of other blocks.
            least = _while_a_carry_passes(program, problem)
            longest = two[-1] if two else CudaChunksConfig(2, 4, 1)
            return next((config for config in two if config.tokens >= least), longest)
        fitting = [
            config
            for length in _TOKENS
            if length % tile == 0
            if (config := self._most_teams(program, target, tile, length, rows, clusters))
        ]
        if not fitting:
            return CudaChunksConfig(2, 4, 1, clusters=clusters)
        # Two teams at least, where there is memory for them; then chunks that are long enough, of
        # as many teams as that leaves room for.
        found = [config for config in fitting if config.teams > 1] or fitting
        enough = [config for config in found if config.tokens >= tokens]
        if enough:
            return max(enough, key=lambda config: config.teams)
        return max(found, key=lambda config: (config.tokens, config.teams))

    def _most_teams(
        self,
        program: Program,
        target: Target,
        tile: int,
        tokens: int,
        rows: int,
        clusters: int,
    ) -> CudaChunksConfig | None:
        """As many teams as there is memory for, None if not even one."""
        most = max(1, min(_MOST_TEAMS, _FREE_WARPS // whole_team(program)))
        least = tokens * rows * max(1, bytes_in(program))
        for teams in range(min(most, target.shared_memory // least), 0, -1):
            config = CudaChunksConfig(tile, tokens // tile, teams, rows, _early(program), clusters)
            if self.feasible(program, target, config) is None:
                return config
        return None

    def feasible(self, program: Program, target: Target, config: CudaChunksConfig) -> str | None:
        return self._refused(program, target, config, target.shared_memory)

    def _refused(
        self, program: Program, target: Target, config: CudaChunksConfig, most: int
    ) -> str | None:
        """Why a config cannot work with so many bytes of shared memory; None if it can."""
        refused = tile_refused(self.name, target, config.tile)
        if refused:
            return refused
        if config.tiles < 1:
            return f"tiles is at least 1, not {config.tiles}"
        if not 1 <= config.teams <= _MOST_TEAMS:
            return f"teams is from 1 to {_MOST_TEAMS}, not {config.teams}"
        if program.state_size > MOST_STATES:
            return f"a state size of {program.state_size} is more than {MOST_STATES}"
        refused = rows_refused(program, config.rows, whole_team(program))
        if refused:
            return refused
        warps = config.teams * whole_team(program)
        if warps > _MOST_WARPS:
            return f"{warps} warps are more than a block has"
        if config.early not in (0, 1):
            return f"early is 0 or 1, not {config.early}"
        if config.early and hoist(program) is None:
            return "there is nothing that could be computed early"
        if config.clusters not in (0, 1):
            return f"clusters is 0 or 1, not {config.clusters}"
        if config.clusters and not has_clusters(target):
            return f"{target} has no clusters of blocks; devices from sm_90 on have"
        shared = _shared_bytes(program, config)
        if isinstance(shared, str):
            return shared
        if shared > most:
            return f"{shared} bytes of shared memory are more than {most}"
        return None

    def work(
        self, program: Program, target: Target, config: CudaChunksConfig, rows: int, length: int
    ) -> Work:
        team, loaded = whole_team(program), bytes_in(program)
        threads = team * config.teams * LANES
        registers = min(registers_of(target, threads), _REGISTERS_OF_A_LANE)
        shared = _shared_bytes(program, config)
        assert isinstance(shared, int)
        chunks = -(-length // config.tokens)
        each = blocks_at_once(target, threads, shared, registers)
        together = -(-rows // config.rows)
        if config.clusters:
            at_once = partial(clusters_at_once, target.processors, each)
            abreast, sharing = cluster_of_a_row(together, chunks, config.teams, at_once)
            passes = cluster_passes(chunks, config.teams, sharing)
        else:
            most = target.processors * each
            abreast, sharing = blocks_of_a_row(together, chunks, config.teams, most)
            passes = window_passes(chunks, config.teams, sharing)
        # Rows that follow one another, and of each the chunks that one team runs.
        turns = -(-together // abreast)
        mine = turns * -(-chunks // (sharing * config.teams))
        tokens = mine * config.tokens
        return Work(
            moved=rows * length * (loaded + bytes_out(program)),
            blocks=abreast * sharing,
            threads=threads,
            shared_bytes=shared,
            registers=registers,
            ahead=config.teams * config.tokens * loaded * config.rows,
            # Folded, then run; the head's tables are prepared before each row.
            steps=2 * tokens + turns * config.rows * table_entries(program) / threads,
            collecting=2 * tokens * collects(program),
            exchanges=2 * tokens * (team > 1),
            tiles=2 * tokens / config.tile,
            waits=mine,
            issued=together * length * team * _values(program, config),
            # What collects takes a carry about as long again.
            passes=(1 + collects(program)) * turns * passes,
        )

    def lower(self, program: Program, target: Target, config: CudaChunksConfig) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        bodies = ChunkBodies(program, writer, config)
        writer.comment(f"{self.name} {config}\n{program.text}")
        if bodies.early is not None:
            writer.comment(bodies.early.program.text)
            writer.comment(bodies.scan.program.text)
        for body in bodies.all[1:]:
            writer.comment(body.program.text)
        threads, windows = bodies.warps * LANES, bodies.windows
        if windows is None:
            skeleton: ChunkKernel = ClusterKernel(writer, bodies, config)
        else:
            skeleton = WindowKernel(writer, bodies, config, windows)
        grid = ("block", "blocks")
        with kernel(writer, bodies.whole, skeleton.sizes, grid, threads, bodies.scratch):
            skeleton.block()
        return KernelSource(
            "tvm-cuda",
            writer.text,
            "scan",
            program,
            self.name,
            asdict(config),
            target,
            {
                "shared_bytes": bodies.shared.bytes,
                "threads": threads,
                "chunk_tokens": config.tokens,
                "teams": config.teams,
                "rows_together": config.rows,
                **({"clusters": True} if config.clusters else {}),
            },
            scratch=bodies.scratch,
            inverts=bool(bodies.whole.inverted_tables),
        )


def _values(program: Program, config: CudaChunksConfig) -> int:
    """Numbers that an element of a token is computed by, in fold and scan together."""
    hoisted = hoist(program) if config.early else None
    if hoisted is None:
        return 2 * values_of(program)
    return values_of(hoisted.early) + 2 * values_of(hoisted.late)


def _early(program: Program) -> int:
    """Whether chunks keep what they computed for their summaries: where what follows is long
    enough, targets that collect in one warp.
    """
    return int(whole_team(program) == 1 and collects(program) and hoist(program) is not None)


def _sharing(program: Program, target: Target, problem: Problem) -> int:
    """Blocks that share a row, if each processor has one; 1 if the rows are not known."""
    if problem.rows is None:
        return 1
    return max(1, target.processors // -(-problem.rows // _rows(program, problem)))


def _in_clusters(program: Program, target: Target, problem: Problem) -> int:
    """Whether blocks that share a row are a cluster: where two do at most, but for what moves in
    one warp, which windows suit better. Larger ones must find their processors beside each other,
    and leave some over (docs/gpu-log.md).
    """
    if problem.rows is None or not has_clusters(target):
        return 0
    sharing = _sharing(program, target, problem)
    waits = collects(program) or whole_team(program) > 1
    return int(sharing <= (_NEAR_BLOCKS if waits else 1))


def _rows(program: Program, problem: Problem) -> int:
    """Rows that share a warp: as many as it holds, and no more than there are."""
    if problem.rows is None:
        return 1
    teams = -(-problem.rows // most_rows(program))
    return -(-problem.rows // teams)


def _in_series(program: Program, target: Target, problem: Problem) -> bool:
    """Whether a long row's carries would pass from chunk to chunk between two blocks a processor,
    of one team each: too few share a row for windows.
    """
    if problem.rows is None or problem.length is None or not collects(program):
        return False
    sharing = 2 * target.processors // problem.rows
    return problem.length >= _MANY_CARRIES and carry_window(sharing, 1) == 1


def _while_a_carry_passes(program: Program, problem: Problem) -> int:
    """Tokens of each row that the device moves meanwhile."""
    assert problem.rows is not None
    moved = max(1, bytes_in(program) + bytes_out(program))
    return _CARRY_BYTES // (problem.rows * moved)
