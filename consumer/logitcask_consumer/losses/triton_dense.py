# mypy: disable-error-code="import-untyped, import-not-found"
"""The passes over [rows, vocabulary] with Triton's kernels: each logit is read twice and written once.

Shape legend: R rows of a chunk, V vocabulary size, N tiles of a row, K exponents.

The buffer keeps the logits until the gradient takes their place. Entries are gathered and scattered by torch. Numbers
are those of `softmax.EagerRest` to the rounding of the dtype; the first use on a device proves it on a few rows. A case
that is not supported is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor

from logitcask_consumer.losses.dense import TritonPassesError
from logitcask_consumer.losses.softmax import Entries, Rest, eager_rest_, flattened
from logitcask_consumer.losses.triton_kernels import rest_gradient, row_sums, tile_sums

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
        """See `Rest.gradient_`."""
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
    """Reduce a chunk; overwrites the logits. Arguments are those of `softmax.eager_rest_`; rows may be strided.

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
        found = []
        for make in (_rest_, eager_rest_):
            rest = make(logits_RV.clone(), entries, exponents, **options)
            leaves = [*rest.entry_logits, *rest.log_powers.values()]
            rest.gradient_(1.0 + first_R.to(dtype), {c: c - first_R.to(dtype) for c in exponents})
            found.append(torch.cat([*leaves, rest.buffer_RV.view(-1)]))
        gap = float((found[0] - found[1]).abs().max())
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
