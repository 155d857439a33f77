"""The factors of the gradients of maps: what the dense surrogate of :mod:`.adjoint` computes.

Where a token multiplies a vector by the one-hot matrix of its map, the gradient of that matrix is
of rank one: entry ``[i, j]`` has ``Re(conj(l[i]) r[j])``. So the backward writes the two vectors
at every token, and whoever runs it sums and contracts them; no ``[N, N]`` a token is ever there.
"""

from collections.abc import Collection
from dataclasses import dataclass

from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.ops import OPS
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Map, is_numeric
from pdssm_compiler.ir.value import Value


@dataclass(frozen=True)
class Factors:
    """One use of the maps that an index chooses from a table, or of a map a token.

    With ``P_k`` the matrix of map ``k``, column one-hot, ``k_t`` the index of token ``t`` and
    ``∂P_t[i, j] = Re(conj(left_t[i]) right_t[j])``, this use gives

    - the table's entries ``∂P_k[i, j] = Σ_{t: k_t = k} ∂P_t[i, j]``,
    - the index's, of every ``k``, ``Σ_j ∂P_t[p_k[j], j]``.

    A map a token has the entries ``∂P_t`` themselves.

    Attributes:
        table: the head input with the maps; None where ``index`` is the map itself.
        index: the token input that chooses.
        left, right: token outputs of the backward program.
    """

    table: str | None
    index: str
    left: str
    right: str


def chosen_by(map_: Value) -> tuple[str, str] | None:
    """The table and the index that a map is chosen from and by; None if it is another map."""
    if map_.op != "select" or any(arg.op != "input" for arg in map_.args):
        return None
    table, index = map_.args
    return table.name, index.name


def refuse_unreached(program: Program, wanted: Collection[str]) -> None:
    """Refuse choices whose gradient is no sum of such factors.

    Raises:
        PassError: a wanted map, table or index that has another use.
    """
    roles = {input_.name: input_.role for input_ in program.inputs}
    inverted = {i.inverse_of for i in program.inputs if i.inverse_of is not None}
    choices = {i.name for i in program.inputs if i.name in wanted and not is_numeric(i.type)}
    if choices & inverted:
        raise PassError(
            f"%{min(choices & inverted)} is read by its inverse, whose gradient is not its own; "
            f"derive the adjoint before specialising"
        )
    for value in program.body:
        for arg in value.args:
            found = chosen_by(arg)
            if arg.op == "input" and arg.name in choices:
                pair = chosen_by(value)
                if isinstance(arg.type, Map):
                    moves = OPS[value.op].factors is not None and roles[arg.name] == "token"
                    if moves:
                        continue
                reached = pair is not None and [roles[name] for name in pair] == ["head", "token"]
                names = {arg.name}
            elif found is not None and choices.intersection(found):
                reached = OPS[value.op].factors is not None
                names = choices.intersection(found)
            else:
                continue
            if not reached:
                raise PassError(
                    f"the dense surrogate does not reach %{min(names)} through {value.op}: only "
                    f"maps a token, or that an index a token chooses from a table a head, and "
                    f"that move a vector; take 'active'"
                )
