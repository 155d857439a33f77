"""Carries of cuda-chunks where the blocks that share a row are a cluster.

Blocks of a cluster reach one another's shared memory, so every carry passes from one chunk to the
next through the shared memory of whoever waits for it, and nothing is left in global memory.
"""

from pdssm_compiler.schedules.emit.cuda_chunks import ChunkKernel


class ClusterKernel(ChunkKernel):
    """See the module's text."""

    def _share_rows(self) -> str:
        # Blocks of a cluster are neighbours.
        self.writer.line("sharing: T.let = blocks // abreast")
        self.writer.line("part: T.let = block % sharing")
        return "block // sharing"

    def _meet(self) -> None:
        self.bodies.scan.call("lane_cluster_sync")

    def _carry(self) -> None:
        self.bodies.scan.load_constants()
        with self.writer.block("if number == 0:"):
            self.bodies.scan.start_carries()
        with self.writer.block("else:"):
            self._hand_near("lane_take_near", "team", self._mark("number"))
        with self.writer.block("if number + 1 < chunks:"), self._carry_behind():
            self._pass_on()

    def _pass_on(self) -> None:
        """Pass the carry behind this chunk on before its tokens are run."""
        teams, mark = self.config.teams, self._mark("number + 1")
        self._apply("fold_", 1)
        with self.writer.block(f"if team + 1 < {teams}:"):
            self._hand_near("lane_post_near", "(team + 1)", mark)
        with self.writer.block("else:"):
            self._hand_near("lane_post_across", "0", mark, "(part + 1) % sharing")
