"""Triton's kernels of hard choices along an axis, and of their surrogates' gradients.

Importing this file imports Triton; :mod:`pdssm_compiler.runtime.choices` does where it launches.
Rows are those of ``[B, T, H, K]``: row ``r`` is head ``r % heads`` of token ``r // heads``, tokens
of all sequences one after the other; its ``K`` logits are ``of_map`` apart, or dense.
"""

# Triton's language has no types for a checker.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _places(logits, rows, length, heads, of_batch, of_token, of_head):
    """Where rows begin."""
    token = rows // heads
    head = (rows % heads).to(tl.int64)
    batch = (token // length).to(tl.int64)
    return logits + batch * of_batch + (token % length).to(tl.int64) * of_token + head * of_head


@triton.jit(do_not_specialize=["count", "length"])
def choose(
    logits,
    chosen,
    count,
    length,
    heads,
    of_batch,
    of_token,
    of_head,
    of_map,
    maps,
    ROWS: tl.constexpr,
    MAPS: tl.constexpr,
):
    """The place of each row's largest logit, the first of equal ones; -1 where one is a NaN."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, MAPS)
    at = _places(logits, rows, length, heads, of_batch, of_token, of_head)
    inside = (rows < count)[:, None] & (k < maps)[None, :]
    x = tl.load(at[:, None] + k[None, :] * of_map, inside, float("-inf")).to(tl.float32)
    wrong = tl.max((x != x).to(tl.int32), 1)
    largest = tl.max(x, 1)
    first = tl.min(tl.where(x == largest[:, None], k[None, :], MAPS), 1)
    tl.store(chosen + rows, tl.where(wrong > 0, -1, first), rows < count)


@triton.jit(do_not_specialize=["count", "length"])
def surrogate(
    grad,
    logits,
    chosen,
    temperature,
    into,
    count,
    length,
    heads,
    of_batch,
    of_token,
    of_head,
    into_batch,
    into_token,
    into_head,
    maps,
    ROWS: tl.constexpr,
    MAPS: tl.constexpr,
    DENSE: tl.constexpr,
):
    """Of each row, ``c`` its choice and ``π`` its softmax, ``grad · π_c (δ_{k, c} - π_k) / τ``, or
    dense, where a gradient arrives at every map, ``π_k (grad_k - Σ π grad) / τ``. ``grad`` is
    contiguous.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, MAPS)
    at = _places(logits, rows, length, heads, of_batch, of_token, of_head)
    to = _places(into, rows, length, heads, into_batch, into_token, into_head)
    there = rows < count
    inside = there[:, None] & (k < maps)[None, :]
    tau = tl.load(temperature).to(tl.float32)
    x = tl.load(at[:, None] + k[None, :], inside, float("-inf")).to(tl.float32) / tau
    raised = tl.exp(x - tl.max(x, 1)[:, None])
    soft = raised / tl.sum(raised, 1)[:, None]
    if DENSE:
        arrived = tl.load(grad + rows.to(tl.int64)[:, None] * maps + k[None, :], inside, 0.0)
        found = soft * (arrived - tl.sum(soft * arrived, 1)[:, None]) / tau
    else:
        is_chosen = k[None, :] == tl.load(chosen + rows, there, 0)[:, None]
        of_chosen = tl.sum(tl.where(is_chosen, soft, 0.0), 1)
        scale = tl.load(grad + rows, there, 0.0) * of_chosen / tau
        found = scale[:, None] * (tl.where(is_chosen, 1.0, 0.0) - soft)
    tl.store(to[:, None] + k[None, :], found, inside)
