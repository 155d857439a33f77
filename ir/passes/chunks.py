"""in_chunks: from one scan over a sequence to three scans over its chunks.

before → after: a program → ``fold``, ``carry`` and ``resume``, run one after the other, which
write what the program writes. A chunk is a stretch of neighbouring tokens.
reason: chunks are folded side by side and resumed side by side, so a few long rows fill a device.
Only ``carry`` runs in order, and it takes a step a chunk instead of one a token.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from pdssm_compiler.ir.passes.rewrite import prune, substitute
from pdssm_compiler.ir.passes.summarise import summarise
from pdssm_compiler.ir.program import FinalOutput, Input, Program, TokenOutput
from pdssm_compiler.ir.value import Value


@dataclass(frozen=True)
class InChunks:
    """The programs of a scan in chunks.

    Attributes:
        fold: tokens of a chunk → its summary, the final outputs ``chunk_…``.
        carry: summaries as tokens, ``chunk_…`` → the carry before each chunk, the token output
            ``incoming_…``. It starts where the program starts.
        resume: the program on one chunk, its carry starting from the row input ``incoming_…``.
            Only the chunk that is run last ends with the program's final outputs. Its sums are
            those of the chunk, ``partial_…``.
        combine: summaries as tokens, ``chunk_…`` → their summary, its carries named as ``fold``'s.
            With it neighbouring chunks are joined before the carry before them is known.
        partials: for each sum of the program, the name of a chunk's: a row's sum is theirs added
            up.
    """

    fold: Program
    carry: Program
    resume: Program
    combine: Program
    partials: dict[str, str]

    @property
    def incoming(self) -> str:
        """The name of the carry before each chunk."""
        return self.carry.token_outputs[0].name

    @property
    def summaries(self) -> tuple[str, ...]:
        """The names of a summary's parts."""
        return tuple(final.name for final in self.fold.final_outputs)


@lru_cache(maxsize=256)
def in_chunks(program: Program) -> InChunks:
    """Derive the programs.

    Raises:
        PassError: the program cannot be summarised; see
            :func:`~pdssm_compiler.ir.passes.summarise.summarise`.
    """
    summary = summarise(program)
    finals = tuple(replace(f, name=_summary_name(f)) for f in summary.fold.final_outputs)
    fold = prune(replace(summary.fold, final_outputs=finals))
    partials = {total.name: f"partial_{total.name}" for total in program.sum_outputs}
    carry = _carry(program, summary.apply)
    resume = _resume(program, partials)
    return InChunks(fold, carry, resume, _combine(summary.combine), partials)


def _summary_name(final: FinalOutput) -> str:
    return f"chunk_{final.name}"


def _incoming(program: Program) -> str:
    return f"incoming_{program.carries[0].name}"


def _carry(program: Program, apply: Program) -> Program:
    """``apply`` from the program's own start, writing the state before each summary."""
    (before,), (carry,) = program.carries, apply.carries
    inputs, leaves = _of_chunks(apply)
    leaves[carry.value] = before.value
    if before.start_input is not None:
        inputs.append(program.input(before.start_input))
    following = substitute([carry.next], leaves)[carry.next]
    return prune(
        replace(
            apply,
            inputs=tuple(inputs),
            carries=(replace(before, next=following),),
            token_outputs=(TokenOutput(_incoming(program), before.value),),
            final_outputs=(),
            chunk_length=None,
        )
    )


def _of_chunks(program: Program) -> tuple[list[Input], dict[Value, Value]]:
    """The token inputs of a program over summaries as ``chunk_…``, and what replaces what."""
    inputs = [i for i in program.inputs if i.role == "token"]
    renamed = [replace(i, name=f"chunk_{i.name}") for i in inputs]
    return renamed, {old.value: new.value for old, new in zip(inputs, renamed, strict=True)}


def _combine(combine: Program) -> Program:
    """``combine`` of summaries as ``chunk_…``."""
    inputs, leaves = _of_chunks(combine)
    nexts = substitute([carry.next for carry in combine.carries], leaves)
    return replace(
        combine,
        inputs=tuple(inputs),
        carries=tuple(replace(carry, next=nexts[carry.next]) for carry in combine.carries),
        chunk_length=None,
    )


def _resume(program: Program, partials: dict[str, str]) -> Program:
    (carry,) = program.carries
    incoming = Input(_incoming(program), carry.type, "row")
    return prune(
        replace(
            program,
            inputs=(*program.inputs, incoming),
            carries=(replace(carry, start=f"%{incoming.name}"),),
            sum_outputs=tuple(replace(s, name=partials[s.name]) for s in program.sum_outputs),
        )
    )
