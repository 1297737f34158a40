"""The passes over [rows, vocabulary] with Triton's kernels: each logit is read twice and written once.

Shape legend: R rows of a block, V vocabulary size, N tiles of a row, K exponents.

The buffer keeps the logits until the gradient takes their place. Entries are gathered and scattered by torch. Numbers
are those of `softmax.EagerRest` to the rounding of the dtype; the first use on a device proves it on a few rows. A case
that is not supported is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitcask_consumer.head.softmax import Entries, Rest, TritonPassesError, eager_rest_, flattened

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"


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


# mypy: disable-error-code="import-untyped, import-not-found"


TILE = 4096
"""Logits of a program."""
_WARPS = 8
# Fused c·z - b rounds once. Said at each launch, since the default changes between Triton's versions.
_FUSED = {"enable_fp_fusion": True}
_AGREE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference that the proof on a device allows; broken kernels are off by more, rounding by far less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonRest(Rest):
    """Its buffer holds the logits, and -inf where the rest has no token."""

    best_R: Tensor
    """Largest logit of the rest."""
    logs_KR: Tensor
    """Log sum exp(z - best), then log sum q^c per exponent."""

    def gradient_(self, grad_lse_R: Tensor, grad_powers_R: Mapping[float, Tensor]) -> None:
        """Overwrite the buffer with the gradient for the logits, with one kernel."""
        grads_KR = torch.stack([grad_lse_R, *(grad_powers_R[c] for c in self.log_powers)])
        with torch.cuda.device_of(self.buffer_RV):  # type: ignore[no-untyped-call]
            rest_gradient[_grid(self.buffer_RV)](
                self.buffer_RV,
                self.best_R,
                self.logs_KR,
                grads_KR,
                self.buffer_RV.shape[1],
                self.buffer_RV.stride(0),
                EXPONENTS=(1.0, *self.log_powers),
                TILE=TILE,
                num_warps=_WARPS,
                **_FUSED,
            )


def triton_rest_(
    logits_RV: Tensor, entries: Entries, exponents: tuple[float, ...], *, outside_heads: bool, may_be_empty: bool
) -> TritonRest:
    """Reduce a block of rows; overwrites the logits. Arguments are those of `softmax.eager_rest_`; rows may be strided.

    Raises:
        TritonPassesError: the logits' dtype, device or layout, or an exponent, is not supported; or the kernels give
            other numbers than torch's operators on this device.
    """
    _check(logits_RV, exponents)
    if logits_RV.is_cuda:
        prove(logits_RV.device, logits_RV.dtype)
    return _rest_(logits_RV, entries, exponents, outside_heads=outside_heads, may_be_empty=may_be_empty)


@cache
def prove(device: torch.device, dtype: torch.dtype) -> None:
    """Compare with torch's operators on a few rows; once per process, device and dtype.

    Raises:
        TritonPassesError: they differ by more than rounding.
    """
    rows, width = 3, 2 * TILE + 37
    logits_RV = 9.0 * torch.arange(rows * width, dtype=dtype, device=device).mul_(0.7).sin_().view(rows, width)
    first_R = torch.arange(rows, device=device)
    entries = Entries(rows=(first_R, slice(None)), at=(first_R * (width + 1), first_R * width + TILE))
    for exponents, outside_heads in (((), False), ((0.7, 2.0), True)):
        options = {"outside_heads": outside_heads, "may_be_empty": False}
        buffers = []
        for make in (_rest_, eager_rest_):
            rest = make(logits_RV.clone(), entries, exponents, **options)
            leaves = [*rest.entry_logits, *rest.log_powers.values()]
            rest.gradient_(1.0 + first_R.to(dtype), {c: c - first_R.to(dtype) for c in exponents})
            buffers.append(torch.cat([*leaves, rest.buffer_RV.view(-1)]))
        gap = float((buffers[0] - buffers[1]).abs().max())
        if not gap <= _AGREE[dtype]:
            raise TritonPassesError(
                f"Triton {triton.__version__} and torch's operators differ by {gap:.3g} on {device} in {dtype}, "
                f"expected at most {_AGREE[dtype]:g}; wrap the training in dense_passes('eager'), and report it"
            )


def _rest_(
    logits_RV: Tensor, entries: Entries, exponents: tuple[float, ...], *, outside_heads: bool, may_be_empty: bool
) -> TritonRest:
    flat = flattened(logits_RV)
    logits = [flat[at] for at in entries.at]
    if outside_heads:
        flat[entries.at[0]] = -torch.inf
    best_R, logs_KR = _reduce(logits_RV, (1.0, *exponents))
    empty_R = None
    if may_be_empty:
        empty_R = best_R.isneginf()
        best_R.masked_fill_(empty_R, 0.0)
        logs_KR[0].masked_fill_(empty_R, 0.0)
        logs_KR[1:].masked_fill_(empty_R, -torch.inf)
    logs_KR[1:].clamp_(min=torch.finfo(logits_RV.dtype).min)
    values = [(z - best_R[row]) - logs_KR[0][row] for z, row in zip(logits, entries.rows, strict=True)]
    return TritonRest(
        buffer_RV=logits_RV,
        entry_logits=tuple(values),
        empty_R=empty_R,
        log_powers=dict(zip(exponents, logs_KR[1:].clone().unbind(), strict=True)),
        best_R=best_R,
        logs_KR=logs_KR,
    )


def _reduce(logits_RV: Tensor, exponents: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Largest logit, [R]; log sum exp(z - best) and log sum q^c per further exponent, [K, R]."""
    rows, tiles = _grid(logits_RV)
    best_RN = logits_RV.new_empty((rows, tiles))
    sums_KRN = logits_RV.new_empty((len(exponents), rows, tiles))
    best_R, logs_KR = logits_RV.new_empty(rows), logits_RV.new_empty((len(exponents), rows))
    # Triton launches on the current device, which need not be the tensor's.
    with torch.cuda.device_of(logits_RV):  # type: ignore[no-untyped-call]
        tile_sums[(rows, tiles)](
            logits_RV,
            best_RN,
            sums_KRN,
            logits_RV.shape[1],
            logits_RV.stride(0),
            EXPONENTS=exponents,
            TILE=TILE,
            num_warps=_WARPS,
            **_FUSED,
        )
        row_sums[(rows,)](
            best_RN,
            sums_KRN,
            best_R,
            logs_KR,
            tiles,
            EXPONENTS=exponents,
            TILES=triton.next_power_of_2(tiles),
            num_warps=1,
            **_FUSED,
        )
    return best_R, logs_KR


def _grid(buffer_RV: Tensor) -> tuple[int, int]:
    rows, width = buffer_RV.shape
    return rows, triton.cdiv(width, TILE)


def _check(logits_RV: Tensor, exponents: tuple[float, ...]) -> None:
    if logits_RV.dtype not in (torch.float32, torch.float64):
        raise TritonPassesError(f"Triton's passes take float32 or float64 logits, got {logits_RV.dtype}")
    if not logits_RV.is_cuda and isinstance(tile_sums, triton.JITFunction):
        raise TritonPassesError(
            f"Triton's passes need a CUDA device, got logits on {logits_RV.device}; "
            "only its interpreter (TRITON_INTERPRET=1 before the first import) takes others"
        )
    if logits_RV.stride(1) != 1 or logits_RV.stride(0) < logits_RV.shape[1]:
        raise TritonPassesError(f"Triton's passes need rows that are contiguous, got strides {logits_RV.stride()}")
    if min(exponents, default=1.0) <= 0.0:
        raise TritonPassesError(f"Triton's passes take power sums of positive exponents, got {exponents}")
