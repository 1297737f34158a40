"""The softmax of each row over the rest, in place on one block of logits, with torch's own operators.

Shape legend: R rows of a block, V vocabulary size, E entries.

The rest is the whole vocabulary, or what is outside the heads. `Rest` is what any way of computing it hands over;
`EagerRest` here serves every device, `triton_passes` has one with fewer passes for CUDA. With q the softmax of the
logits z over the rest and leaves that are functions of z::

    lse = logsumexp z        d lse / d z_j     = q_j
    c   = log sum q^a        d c / d z_j       = a (q_j^a / sum q^a - q_j)

so the gradient of any formula is q times a factor per row, and a term for every c that is read. Passes over the rows
go in blocks that fit the processor's cache.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, log_softmax

from logitcask_schemas.errors import LogitcaskError

_BLOCK_BYTES = 2**20


class TritonPassesError(LogitcaskError, RuntimeError):
    """Triton was asked for passes that it cannot make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Places that a block's formulas read: head entries, draws, next tokens, in this order."""

    rows: tuple[Tensor | slice, ...]
    """Row of each entry, as an index into [R]."""
    at: tuple[Tensor, ...]
    """Position of each entry in the flattened buffer; see `flattened`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest(ABC):
    """The softmax q of R rows over the rest, and the buffer that it was computed in."""

    buffer_RV: Tensor
    """Belongs to whoever computed it, until `gradient_` has filled it."""
    entry_logits: tuple[Tensor, ...]
    """Logits at the entries, less the row's log-sum-exp over the rest (0 where the rest is empty)."""
    empty_R: Tensor | None
    """Rows whose head holds the whole vocabulary; None where there cannot be one."""
    log_powers: dict[float, Tensor]
    """c -> log sum q^c, [R]; the smallest number where the rest is empty."""

    @abstractmethod
    def gradient_(self, grad_lse_R: Tensor, grad_powers_R: Mapping[float, Tensor]) -> None:
        """Overwrite the buffer with the gradient for the logits, but for that of the entries.

        Args:
            grad_lse_R: gradient for the rows' log-sum-exp over the rest.
            grad_powers_R: c -> gradient for the log of the power sum.
        """


class EagerRest(Rest):
    """Its buffer holds log q, and -inf where the rest has no token."""

    __slots__ = ()

    def gradient_(self, grad_lse_R: Tensor, grad_powers_R: Mapping[float, Tensor]) -> None:
        """Overwrite the buffer with the gradient for the logits, block by block."""
        for block in _blocks(self.buffer_RV):
            log_q_BV, factor_B = self.buffer_RV[block], grad_lse_R[block]
            parts_BV = []
            for c, grad_R in grad_powers_R.items():
                part_BV = log_q_BV.mul(c).sub_(self.log_powers[c].detach()[block, None]).exp_()
                parts_BV.append(part_BV.mul_(c * grad_R[block, None]))
                factor_B = factor_B - c * grad_R[block]
            log_q_BV.exp_().mul_(factor_B[:, None])
            for part_BV in parts_BV:
                log_q_BV.add_(part_BV)


def eager_rest_(
    logits_RV: Tensor, entries: Entries, exponents: tuple[float, ...], *, outside_heads: bool, may_be_empty: bool
) -> EagerRest:
    """Reduce a block of rows; overwrites the logits.

    Args:
        logits_RV: contiguous, float32 or float64.
        entries: what to read; the first are the head's.
        exponents: of the power sums.
        outside_heads: the rest is what lies outside the heads; else it is the whole vocabulary.
        may_be_empty: a row's head may hold the whole vocabulary.
    """
    empty_R = None
    if outside_heads:
        # log s from the logits outside the head: 1 - sum_H p would lose every digit of a small tail.
        flat = flattened(logits_RV)
        logits = [flat[at] for at in entries.at]
        flat[entries.at[0]] = -torch.inf
        best_R, best_ids_R = logits_RV.max(-1)
        log_q_RV = log_softmax_(logits_RV)
        top_R = log_q_RV.gather(1, best_ids_R[:, None])[:, 0]
        if may_be_empty:
            empty_R = best_R.isneginf()
            log_q_RV.masked_fill_(empty_R[:, None], -torch.inf)
            best_R, top_R = best_R.masked_fill(empty_R, 0.0), top_R.masked_fill(empty_R, 0.0)
        # In two steps: the log-sum-exp as one number would round away the digits of log q where logits are large.
        values = [(z - best_R[row]) + top_R[row] for z, row in zip(logits, entries.rows, strict=True)]
    else:
        log_q_RV = log_softmax_(logits_RV)
        values = [flattened(log_q_RV)[at] for at in entries.at]
    return EagerRest(
        buffer_RV=log_q_RV,
        entry_logits=tuple(values),
        empty_R=empty_R,
        log_powers={c: _log_power_sum(log_q_RV, c) for c in exponents},
    )


def log_softmax_(logits_RV: Tensor) -> Tensor:
    """Log-probabilities; reuses the logits' memory on the CPU.

    The CPU kernel reads a row before it writes it, which a test holds it to; other devices get a buffer of their own.
    """
    if logits_RV.device.type == "cpu":
        return log_softmax(logits_RV, -1, out=logits_RV)
    return log_softmax(logits_RV, -1)


def flattened(buffer_RV: Tensor) -> Tensor:
    """The buffer as one dimension, row i at i times its row stride, without a copy.

    One 64-bit index is faster than a pair, and R·V may exceed 2^31.
    """
    rows, width = buffer_RV.shape
    stride = buffer_RV.stride(0)
    return buffer_RV.as_strided(((rows - 1) * stride + width if rows else 0,), (1,))


def _blocks(buffer_RV: Tensor) -> Iterator[slice]:
    """Slices of rows, small enough for the cache on a CPU; other devices take all at once."""
    size = len(buffer_RV)
    if buffer_RV.device.type == "cpu":
        size = max(1, _BLOCK_BYTES // (buffer_RV.element_size() * buffer_RV.shape[1]))
    return (slice(start, start + size) for start in range(0, len(buffer_RV), size))


def _log_power_sum(log_q_RV: Tensor, exponent: float) -> Tensor:
    """Log sum q^exponent, [R]."""
    sums = [torch.logsumexp(exponent * log_q_RV[block], -1) for block in _blocks(log_q_RV)]
    # The floor, for an empty rest, keeps the difference from log q^exponent = -inf a number.
    return torch.cat(sums).clamp(min=torch.finfo(log_q_RV.dtype).min)
