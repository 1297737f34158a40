# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"
"""Triton kernels over a chunk of logits: one reading pass for all its sums, one pass in place for its gradient.

Shape legend: R rows, V vocabulary size, N tiles of a row, K exponents.

Every program takes one tile of one row, so that few long rows fill a device as well as many short ones. A tile's
largest logit m is known before its sums are made, and they need no second reading::

    S_c = sum exp(c (z - m))          of each tile, for the exponents c; c = 1 gives the softmax
    best = max m,   total_c = sum over tiles of exp(c (m - best)) S_c
    log sum q^c = log total_c - c log total_1      since q = exp(z - best) / total_1

The logits stay where they are: the gradient makes q from them again, as exp((z - best) - log total_1). Two numbers,
since their sum, the log-sum-exp, would round away digits of log q where logits are large. NaN and +inf in a row make
its sums NaN, as log_softmax does. (Online normaliser: Milakov and Gimelshein, arXiv 1805.02867.)

`EXPONENTS` is a tuple known at compile time, so every set of exponents has kernels of its own, and starts with 1.
Columns of [K, R] and [K, R, N] are contiguous.
"""

import triton
import triton.language as tl


@triton.jit
def tile_sums(
    logits_ptr: tl.tensor,
    best_RN_ptr: tl.tensor,
    sums_KRN_ptr: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    EXPONENTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Largest logit and sums of each tile; grid (R, N)."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    tile, tiles = tl.program_id(1), tl.num_programs(1)
    at = tile * TILE + tl.arange(0, TILE)
    z = tl.load(logits_ptr + row * stride + at, mask=at < width, other=-float("inf"))
    best = tl.max(z, 0)
    # A tile of nothing but -inf: its sums are 0, not exp(-inf + inf).
    shifted = z - tl.where(best == -float("inf"), 0.0, best)
    tl.store(best_RN_ptr + row * tiles + tile, best)
    for k in tl.static_range(len(EXPONENTS)):
        total = tl.sum(tl.exp(EXPONENTS[k] * shifted), 0)
        tl.store(sums_KRN_ptr + (k * rows + row) * tiles + tile, total)


@triton.jit
def row_sums(
    best_RN_ptr: tl.tensor,
    sums_KRN_ptr: tl.tensor,
    best_R_ptr: tl.tensor,
    logs_KR_ptr: tl.tensor,
    tiles: tl.tensor,
    EXPONENTS: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    """Over the tiles of each row: the largest logit, log total_1, and log sum q^c for every further c; grid (R,).

    TILES is a power of two that holds the row's tiles.
    """
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    at = tl.arange(0, TILES)
    there = at < tiles
    best_of_tiles = tl.load(best_RN_ptr + row * tiles + at, mask=there, other=-float("inf"))
    best = tl.max(best_of_tiles, 0)
    shift = best_of_tiles - tl.where(best == -float("inf"), 0.0, best)
    sums = tl.load(sums_KRN_ptr + row * tiles + at, mask=there, other=0.0)
    log_total = tl.log(tl.sum(sums * tl.exp(shift), 0))
    tl.store(best_R_ptr + row, best)
    tl.store(logs_KR_ptr + row, log_total)
    for k in tl.static_range(1, len(EXPONENTS)):
        powers = tl.load(sums_KRN_ptr + (k * rows + row) * tiles + at, mask=there, other=0.0)
        log_power = tl.log(tl.sum(powers * tl.exp(EXPONENTS[k] * shift), 0))
        tl.store(logs_KR_ptr + k * rows + row, log_power - EXPONENTS[k] * log_total)


@triton.jit
def rest_gradient(
    buffer_ptr: tl.tensor,
    best_R_ptr: tl.tensor,
    logs_KR_ptr: tl.tensor,
    grads_KR_ptr: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    EXPONENTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """From logits to their gradient, in place; grid (R, N).

    `grads_KR` holds the gradients for the log-sum-exp and for every log sum q^c.
    """
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    z = tl.load(buffer_ptr + row * stride + at, mask=at < width, other=-float("inf"))
    log_q = (z - tl.load(best_R_ptr + row)) - tl.load(logs_KR_ptr + row)
    factor = tl.load(grads_KR_ptr + row)
    powers = tl.zeros_like(z)
    for k in tl.static_range(1, len(EXPONENTS)):
        slope = EXPONENTS[k] * tl.load(grads_KR_ptr + k * rows + row)
        log_power = tl.load(logs_KR_ptr + k * rows + row)
        powers += slope * tl.exp(EXPONENTS[k] * log_q - log_power)
        factor -= slope
    tl.store(buffer_ptr + row * stride + at, factor * tl.exp(log_q) + powers, mask=at < width)
