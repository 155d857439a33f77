"""Triton's kernels of the causal depthwise convolution and its SiLU, forward and backward.

A program takes a run of tokens of some channels, in order, so each token is read once and the few
before it stand in registers; the backward takes them from the last to the first, so what later
tokens want of one stands there as well, and the weights' gradients are summed where they are made.
Importing this file imports Triton; :mod:`pdssm_compiler.nn.convolution_op` does where it launches.

Four tokens are loaded together, by hand, since no load is moved over a store. ``WIDTH`` is 1 to 4;
tokens before the first are zero.
"""

# Triton's language has no types for a checker.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _token(row, t, length, stride, inside):
    """Token ``t`` of the channels; zero outside the sequence."""
    there = inside & (t >= 0) & (t < length)
    return tl.load(row + t.to(tl.int64) * stride, there, 0.0).to(tl.float32)


@triton.jit
def _arrived(row, more, t, length, stride, inside, HAS_MORE: tl.constexpr):
    """What arrives at a result, from the one place that reads it or from both."""
    found = _token(row, t, length, stride, inside)
    if HAS_MORE:
        found += _token(more, t, length, stride, inside)
    return found


@triton.jit
def _as_it_is(row, t, length, stride, inside):
    """Token ``t`` of the channels, in its own dtype."""
    return tl.load(row + t.to(tl.int64) * stride, inside & (t >= 0) & (t < length), 0.0)


@triton.jit
def _convolved(bias, w0, w1, w2, w3, x0, x1, x2, x3, WIDTH: tl.constexpr):
    """The sum over lags, in the order of the lags, as torch's way adds it up."""
    z = bias + x0 * w0
    if WIDTH > 1:
        z += x1 * w1
    if WIDTH > 2:
        z += x2 * w2
    if WIDTH > 3:
        z += x3 * w3
    return z


@triton.jit
def _weights(weight, bias, c, inside, WIDTH: tl.constexpr):
    """By lag: the last of a channel's weights is the token's own."""
    own = weight + c * WIDTH + (WIDTH - 1)
    w0 = tl.load(own, inside, 0.0).to(tl.float32)
    w1 = w0
    w2 = w0
    w3 = w0
    if WIDTH > 1:
        w1 = tl.load(own - 1, inside, 0.0).to(tl.float32)
    if WIDTH > 2:
        w2 = tl.load(own - 2, inside, 0.0).to(tl.float32)
    if WIDTH > 3:
        w3 = tl.load(own - 3, inside, 0.0).to(tl.float32)
    return tl.load(bias + c, inside, 0.0).to(tl.float32), w0, w1, w2, w3


@triton.jit(do_not_specialize=["length", "runs"])
def convolve(
    x,
    weight,
    bias,
    out,
    length,
    runs,
    channels,
    x_batch,
    x_token,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out = silu(convolution(x))``.

    ``x`` is ``[B, T, d]``, its last axis dense; ``out`` is dense. Programs: ``runs`` of ``TOKENS``
    tokens of each sequence, blocks of channels.
    """
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    batch = (tl.program_id(0) // runs).to(tl.int64)
    row = x + batch * x_batch + c
    to = out + batch * length * channels + c
    b, w0, w1, w2, w3 = _weights(weight, bias, c, inside, WIDTH)
    first = tl.program_id(0) % runs * TOKENS
    p1 = _token(row, first - 1, length, x_token, inside)
    p2 = _token(row, first - 2, length, x_token, inside)
    p3 = _token(row, first - 3, length, x_token, inside)
    for group in range(0, TOKENS, 4):
        t = first + group
        n0 = _token(row, t, length, x_token, inside)
        n1 = _token(row, t + 1, length, x_token, inside)
        n2 = _token(row, t + 2, length, x_token, inside)
        n3 = _token(row, t + 3, length, x_token, inside)
        z0 = _convolved(b, w0, w1, w2, w3, n0, p1, p2, p3, WIDTH)
        z1 = _convolved(b, w0, w1, w2, w3, n1, n0, p1, p2, WIDTH)
        z2 = _convolved(b, w0, w1, w2, w3, n2, n1, n0, p1, WIDTH)
        z3 = _convolved(b, w0, w1, w2, w3, n3, n2, n1, n0, WIDTH)
        at = to + t.to(tl.int64) * channels
        tl.store(at, z0 * tl.sigmoid(z0), inside & (t < length))
        tl.store(at + channels, z1 * tl.sigmoid(z1), inside & (t + 1 < length))
        tl.store(at + 2 * channels, z2 * tl.sigmoid(z2), inside & (t + 2 < length))
        tl.store(at + 3 * channels, z3 * tl.sigmoid(z3), inside & (t + 3 < length))
        p1 = n3
        p2 = n2
        p3 = n1


@triton.jit
def _of_sum(grad, z, t, length):
    """The gradient of the sum before the SiLU, zero behind the sequence."""
    s = tl.sigmoid(z)
    return tl.where(t < length, grad * s * (1 + z * (1 - s)), 0.0)


@triton.jit
def _of_token(w0, w1, w2, w3, z0, z1, z2, z3, WIDTH: tl.constexpr):
    """A token's gradient, from those of the sums that read it, by lag."""
    found = z0 * w0
    if WIDTH > 1:
        found += z1 * w1
    if WIDTH > 2:
        found += z2 * w2
    if WIDTH > 3:
        found += z3 * w3
    return found


@triton.jit(do_not_specialize=["length", "runs"])
def convolve_backward(
    grad,
    more,
    gate,
    x,
    weight,
    bias,
    grad_x,
    sums,
    length,
    runs,
    channels,
    x_batch,
    x_token,
    into_batch,
    into_token,
    HAS_MORE: tl.constexpr,
    HAS_GATE: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients: of the tokens, and of weights and bias, summed over a program's own tokens.

    ``grad`` and ``more``, which are added, are dense ``[B, T, d]``, as is ``gate``, which is
    copied behind the channels of ``grad_x``; ``x`` and ``grad_x`` have dense last axes; ``sums``
    is ``[B, runs, 5, d]``, by lag and then the bias. Programs as of :func:`convolve`.
    """
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    batch = (tl.program_id(0) // runs).to(tl.int64)
    row = x + batch * x_batch + c
    own = batch * length * channels + c
    come = grad + own
    also = more + own
    to = grad_x + batch * into_batch + c
    b, w0, w1, w2, w3 = _weights(weight, bias, c, inside, WIDTH)
    first = tl.program_id(0) % runs * TOKENS
    end = first + TOKENS
    # Tokens by how far they stand before `end`, and what three later sums want of ours.
    q1 = _token(row, end - 1, length, x_token, inside)
    q2 = _token(row, end - 2, length, x_token, inside)
    q3 = _token(row, end - 3, length, x_token, inside)
    f0 = _token(row, end, length, x_token, inside)
    f1 = _token(row, end + 1, length, x_token, inside)
    f2 = _token(row, end + 2, length, x_token, inside)
    g0 = _arrived(come, also, end, length, channels, inside, HAS_MORE)
    g1 = _arrived(come, also, end + 1, length, channels, inside, HAS_MORE)
    g2 = _arrived(come, also, end + 2, length, channels, inside, HAS_MORE)
    h1 = _of_sum(g0, _convolved(b, w0, w1, w2, w3, f0, q1, q2, q3, WIDTH), end, length)
    h2 = _of_sum(g1, _convolved(b, w0, w1, w2, w3, f1, f0, q1, q2, WIDTH), end + 1, length)
    h3 = _of_sum(g2, _convolved(b, w0, w1, w2, w3, f2, f1, f0, q1, WIDTH), end + 2, length)
    s0 = tl.zeros([BLOCK], tl.float32)
    s1 = tl.zeros([BLOCK], tl.float32)
    s2 = tl.zeros([BLOCK], tl.float32)
    s3 = tl.zeros([BLOCK], tl.float32)
    sb = tl.zeros([BLOCK], tl.float32)
    for group in range(0, TOKENS, 4):
        t = end - group - 1
        q4 = _token(row, t - 3, length, x_token, inside)
        q5 = _token(row, t - 4, length, x_token, inside)
        q6 = _token(row, t - 5, length, x_token, inside)
        q7 = _token(row, t - 6, length, x_token, inside)
        g0 = _arrived(come, also, t, length, channels, inside, HAS_MORE)
        g1 = _arrived(come, also, t - 1, length, channels, inside, HAS_MORE)
        g2 = _arrived(come, also, t - 2, length, channels, inside, HAS_MORE)
        g3 = _arrived(come, also, t - 3, length, channels, inside, HAS_MORE)
        if HAS_GATE:
            a0 = _as_it_is(gate + own, t, length, channels, inside)
            a1 = _as_it_is(gate + own, t - 1, length, channels, inside)
            a2 = _as_it_is(gate + own, t - 2, length, channels, inside)
            a3 = _as_it_is(gate + own, t - 3, length, channels, inside)
        z0 = _of_sum(g0, _convolved(b, w0, w1, w2, w3, q1, q2, q3, q4, WIDTH), t, length)
        z1 = _of_sum(g1, _convolved(b, w0, w1, w2, w3, q2, q3, q4, q5, WIDTH), t - 1, length)
        z2 = _of_sum(g2, _convolved(b, w0, w1, w2, w3, q3, q4, q5, q6, WIDTH), t - 2, length)
        z3 = _of_sum(g3, _convolved(b, w0, w1, w2, w3, q4, q5, q6, q7, WIDTH), t - 3, length)
        at = to + t.to(tl.int64) * into_token
        if HAS_GATE:
            beside = at + channels
            tl.store(beside, a0, inside & (t < length))
            tl.store(beside - into_token, a1, inside & (t - 1 < length))
            tl.store(beside - 2 * into_token, a2, inside & (t - 2 < length))
            tl.store(beside - 3 * into_token, a3, inside & (t - 3 < length))
        tl.store(at, _of_token(w0, w1, w2, w3, z0, h1, h2, h3, WIDTH), inside & (t < length))
        at -= into_token
        tl.store(at, _of_token(w0, w1, w2, w3, z1, z0, h1, h2, WIDTH), inside & (t - 1 < length))
        at -= into_token
        tl.store(at, _of_token(w0, w1, w2, w3, z2, z1, z0, h1, WIDTH), inside & (t - 2 < length))
        at -= into_token
        tl.store(at, _of_token(w0, w1, w2, w3, z3, z2, z1, z0, WIDTH), inside & (t - 3 < length))
        sb += (z0 + z1) + (z2 + z3)
        s0 += (z0 * q1 + z1 * q2) + (z2 * q3 + z3 * q4)
        if WIDTH > 1:
            s1 += (z0 * q2 + z1 * q3) + (z2 * q4 + z3 * q5)
        if WIDTH > 2:
            s2 += (z0 * q3 + z1 * q4) + (z2 * q5 + z3 * q6)
        if WIDTH > 3:
            s3 += (z0 * q4 + z1 * q5) + (z2 * q6 + z3 * q7)
        h1 = z3
        h2 = z2
        h3 = z1
        q1 = q5
        q2 = q6
        q3 = q7
    total = sums + tl.program_id(0).to(tl.int64) * 5 * channels + c
    tl.store(total, s0, inside)
    tl.store(total + channels, s1, inside)
    tl.store(total + 2 * channels, s2, inside)
    tl.store(total + 3 * channels, s3, inside)
    tl.store(total + 4 * channels, sb, inside)


@triton.jit
def convolve_step(
    x,
    window,
    weight,
    bias,
    out,
    after,
    channels,
    x_batch,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token ``[B, d]`` after a window ``[B, WIDTH - 1, d]``, and the next window."""
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    batch = tl.program_id(0).to(tl.int64)
    b, w0, w1, w2, w3 = _weights(weight, bias, c, inside, WIDTH)
    n = tl.load(x + batch * x_batch + c, inside, 0.0).to(tl.float32)
    # The last of the window is the token before.
    before = window + batch * (WIDTH - 1) * channels + c
    to = after + batch * (WIDTH - 1) * channels + c
    p1 = n
    p2 = n
    p3 = n
    if WIDTH > 1:
        p1 = tl.load(before + (WIDTH - 2) * channels, inside, 0.0).to(tl.float32)
        tl.store(to + (WIDTH - 2) * channels, n, inside)
    if WIDTH > 2:
        p2 = tl.load(before + (WIDTH - 3) * channels, inside, 0.0).to(tl.float32)
        tl.store(to + (WIDTH - 3) * channels, p1, inside)
    if WIDTH > 3:
        p3 = tl.load(before + (WIDTH - 4) * channels, inside, 0.0).to(tl.float32)
        tl.store(to + (WIDTH - 4) * channels, p2, inside)
    z = _convolved(b, w0, w1, w2, w3, n, p1, p2, p3, WIDTH)
    tl.store(out + batch * channels + c, z * tl.sigmoid(z), inside)
