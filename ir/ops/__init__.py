"""The ops: one table, filled by the modules imported here."""

from pdssm_compiler.ir.ops import elementwise, matrices, noise, structure
from pdssm_compiler.ir.ops.table import OPS, Op, apply

__all__ = ["OPS", "Op", "apply", "elementwise", "matrices", "noise", "structure"]
