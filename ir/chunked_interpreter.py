"""The oracle for long sequences: chunks side by side instead of one token after the other.

:func:`~pdssm_compiler.ir.interpreter.interpret` takes a turn of Python a token, whatever the rows:
seconds for a hundred thousand tokens, which a tuner would wait for. Here the three programs of
:func:`~pdssm_compiler.ir.passes.chunks.in_chunks` run instead, with a chunk a row: three turns for
each token of a chunk and one for each chunk.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pdssm_compiler.ir.interpreter import Arrays, interpret
from pdssm_compiler.ir.passes.chunks import in_chunks
from pdssm_compiler.ir.program import Input, Program


def interpret_in_chunks(
    program: Program, inputs: Mapping[str, np.ndarray], length: int | None = None
) -> Arrays:
    """What ``interpret`` gives, to rounding: float64 and complex128.

    Args:
        program: one whose carry can be summarised.
        inputs: see ``interpret``.
        length: tokens of a chunk, the last of which may have fewer; None for as many as there are
            chunks.

    Raises:
        PassError: the program cannot be summarised.
        IRError: see ``interpret``.
    """
    program, arrays = _without_lags(program, inputs)
    parts = in_chunks(program)
    given = [i for i in program.inputs if i.inverse_of is None]
    tokens = next(arrays[i.name].shape[1] for i in given if i.role == "token")
    each = length or max(1, math.isqrt(tokens))
    chunks = tokens // each
    if not chunks:
        return interpret(program, arrays)
    spans = [(0, chunks * each, chunks)]
    if tokens % each:
        spans.append((chunks * each, tokens, 1))
    folded = [
        _apart(interpret(parts.fold, _side_by_side(parts.fold, arrays, *span)), span[2])
        for span in spans
    ]
    summaries = {name: np.concatenate([f[name] for f in folded], axis=1) for name in folded[0]}
    starts = {i.name: arrays[i.name] for i in parts.carry.inputs if i.role == "row"}
    incoming = interpret(parts.carry, summaries | starts)[parts.incoming]
    found = []
    for begin, end, count in spans:
        first = begin // each
        mine = incoming[:, first : first + count]
        reads = _side_by_side(parts.resume, arrays, begin, end, count)
        reads[parts.incoming] = mine.reshape(-1, *mine.shape[2:])
        found.append(_apart(interpret(parts.resume, reads), count))
    return _together(program, parts.partials, found)


def _side_by_side(
    program: Program, arrays: Mapping[str, np.ndarray], begin: int, end: int, chunks: int
) -> Arrays:
    """What a program reads of some chunks of equal length, each a sequence of its own."""
    found = {}
    for input_ in program.inputs:
        if input_.inverse_of is not None or input_.name not in arrays:
            continue
        array = arrays[input_.name]
        if input_.role == "token":
            part = array[:, begin:end]
            array = part.reshape(len(part) * chunks, (end - begin) // chunks, *part.shape[2:])
        elif input_.role == "row":
            array = np.repeat(array, chunks, axis=0)
        found[input_.name] = array
    return found


def _apart(results: Arrays, chunks: int) -> Arrays:
    """Results of chunks side by side with an axis of chunks: ``[B, C, ...]``."""
    return {name: r.reshape(-1, chunks, *r.shape[1:]) for name, r in results.items()}


def _together(program: Program, partials: Mapping[str, str], found: list[Arrays]) -> Arrays:
    """Results of the chunks as those of the whole."""
    written = {}
    for output in program.token_outputs:
        stretches = [f[output.name] for f in found]
        joined = [s.reshape(len(s), -1, *s.shape[3:]) for s in stretches]
        written[output.name] = np.concatenate(joined, axis=1)
    last = found[-1] if program.direction == "forward" else found[0]
    place = -1 if program.direction == "forward" else 0
    for final in program.final_outputs:
        written[final.name] = last[final.name][:, place]
    for name, partial in partials.items():
        written[name] = sum(f[partial].sum(axis=1) for f in found)
    return written


def _without_lags(program: Program, inputs: Mapping[str, np.ndarray]) -> tuple[Program, Arrays]:
    """A program that reads the value of its following step as one of its token's own."""
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    changed: list[Input] = []
    for input_ in program.inputs:
        if input_.role == "lagged":
            array = arrays[input_.name]
            edge = np.zeros_like(array[:, :1])
            if input_.boundary is not None:
                edge = arrays[input_.boundary][:, None].astype(array.dtype)
            forward = program.direction == "forward"
            parts = [array[:, 1:], edge] if forward else [edge, array[:, :-1]]
            # Of no tokens none has a following one.
            arrays[input_.name] = np.concatenate(parts, axis=1)[:, : array.shape[1]]
            input_ = replace(input_, role="token", boundary=None)
        changed.append(input_)
    return replace(program, inputs=tuple(changed)), arrays
