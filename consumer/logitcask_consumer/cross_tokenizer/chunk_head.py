"""Chunk losses through the LM head: a span of logits becomes the few values that formulas read, and their gradient.

Shape legend: T rows of a batch, R rows of a span, D hidden size, V the student's vocabulary, C chunks, P pairs, K most
likely tokens, E entries read.

With q = softmax z, an entry log q_j has the gradient onehot(j) - q, and the mass m = sum_M q_j of a set of tokens::

    d log m / d z_j = q_j [j in M] / m - q_j

so the gradient of any formula of these is q times a factor per row, one more on M, and a scatter at the entries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from logitcask_consumer.cross_tokenizer.chunk_loss import ChunkLoss, StudentSpan
from logitcask_consumer.cross_tokenizer.target import ChunkTarget
from logitcask_consumer.head.fused_head import ShapeError, fused_head, rows_of, wide_dtype
from logitcask_consumer.head.lm_head import LMHead
from logitcask_consumer.head.softmax import log_softmax_

ChunkTerms = Sequence[tuple[float, ChunkLoss]]
"""A mix of chunk losses, each with its weight."""

_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLossResult:
    """Loss of a batch, in nats, summed; divide by the number of counted rows outside."""

    loss: Tensor
    """Weighted sum of the terms, a differentiable scalar."""
    terms_K: Tensor
    """Each term, summed, without weights, detached."""
    ce: Tensor
    """Sum of -log p of the next token over the counted rows, detached."""


def chunk_distillation_loss(
    hidden_TD: Tensor,
    head: LMHead,
    target: ChunkTarget,
    terms: ChunkTerms,
    *,
    closing_V: Tensor,
    block_rows: int | None = None,
) -> ChunkLossResult:
    """Apply the LM head and a mix of chunk losses to the hidden states of T rows.

    Args:
        hidden_TD: last hidden states of the rows, any floating dtype.
        head: weight, bias and logit transform.
        target: T rows.
        terms: chunk losses with their weights.
        closing_V: bool: the student's tokens that begin a new word.
        block_rows: rows of logits held at a time, unless a chunk needs more; None chooses what fits the
            device, see `default_rows`.

    Raises:
        ShapeError: rows or vocabulary do not fit, or there is no term.
    """
    if len(hidden_TD) != target.num_rows or not terms or closing_V.shape != (head.vocab_size,):
        raise ShapeError(
            f"{len(hidden_TD)} hidden states for {target.num_rows} rows, {len(terms)} terms, a set of new words over "
            f"{len(closing_V)} ids for a head of {head.vocab_size}: rows and ids must agree, and a term is needed"
        )
    rows = rows_of(block_rows, head)
    closing = any(loss.reads_closing for _, loss in terms)
    spans = target.spans(rows)
    span = _Span(
        target=target,
        terms=terms,
        closing_V=closing_V if closing else None,
        top=any(loss.reads_top for _, loss in terms),
        stops=dict(spans),
        sums_K1=hidden_TD.new_zeros(len(terms) + 1, dtype=wide_dtype(hidden_TD)),
    )
    # What follows the last chunk of a span is said by one row more.
    seen = [(start, min(stop + closing, len(hidden_TD))) for start, stop in spans]
    total = fused_head(hidden_TD, head, seen, span)
    return ChunkLossResult(loss=total, terms_K=span.sums_K1[:-1], ce=span.sums_K1[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """The loss of a span; adds up the terms, and last the cross-entropy, of all spans."""

    target: ChunkTarget
    terms: ChunkTerms
    closing_V: Tensor | None
    top: bool
    stops: dict[int, int]
    """Of each span, by its start: one past its last row. It may be given the logits of one row more."""
    sums_K1: Tensor

    def __call__(self, logits_RV: Tensor, start: int, stop: int, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        del stop
        target = self.target.rows(start, self.stops[start])
        values = _Values.of(log_softmax_(logits_RV), target, self.closing_V, top=self.top)
        student, total = values.student(target, with_grad=with_grad), logits_RV.new_zeros(())
        with torch.set_grad_enabled(with_grad):
            for number, (weight, loss) in enumerate(self.terms):
                value = loss.values(student, target).sum()
                self.sums_K1[number] += value.detach()
                total = total + weight * value
        self.sums_K1[-1] -= (student.next_logprobs_R.detach() * target.counted_R).sum()
        return total.detach(), values.gradient_(total) if total.requires_grad else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Values:
    """What is read of a span's log-softmax, each a leaf of the formulas' graph, and where it was read."""

    log_q_RV: Tensor
    closing_V: Tensor | None
    next_at_R: Tensor
    next_R: Tensor
    pair_rows_P: Tensor
    top_at_PK: Tensor
    top_PK: Tensor
    closing_rows_E: Tensor
    """Rows of the chunks that have one after them."""
    closing_E: Tensor

    @classmethod
    def of(cls, log_q_RV: Tensor, target: ChunkTarget, closing_V: Tensor | None, *, top: bool) -> "_Values":
        """Read them."""
        width = log_q_RV.shape[1]
        next_at_R = torch.arange(target.num_rows, device=log_q_RV.device) * width + target.next_ids_R
        pairs_P, count = target.pair_rows_P, min(target.top_probs_PK.shape[1], width) if top else 0
        top_PK, ids_PK = _largest(log_q_RV, pairs_P, count)
        closing_rows_E = target.closing_rows_C[target.closes_C]
        if closing_V is None:
            closing_rows_E = closing_rows_E[:0]
            closing_E = log_q_RV.new_zeros(0)
        else:
            closing_E = _log_mass(log_q_RV, closing_rows_E, closing_V)
        return cls(
            log_q_RV=log_q_RV,
            closing_V=closing_V,
            next_at_R=next_at_R,
            next_R=log_q_RV.view(-1)[next_at_R],
            pair_rows_P=pairs_P,
            top_at_PK=pairs_P[:, None] * width + ids_PK,
            top_PK=top_PK,
            closing_rows_E=closing_rows_E,
            # The floor keeps a formula finite where a student gives new words no representable mass.
            closing_E=closing_E.clamp(min=torch.finfo(log_q_RV.dtype).min),
        )

    @property
    def leaves(self) -> list[Tensor]:
        """What formulas differentiate."""
        return [self.next_R, self.top_PK, self.closing_E]

    def student(self, target: ChunkTarget, *, with_grad: bool) -> StudentSpan:
        """What formulas read."""
        with torch.set_grad_enabled(with_grad):
            if with_grad:
                for leaf in self.leaves:
                    leaf.requires_grad_()
            closing_C = self.closing_E.new_zeros(target.num_chunks)
            if self.closing_V is not None:
                closing_C = closing_C.masked_scatter(target.closes_C, self.closing_E)
            return StudentSpan(next_logprobs_R=self.next_R, top_logprobs_PK=self.top_PK, closing_logmass_C=closing_C)

    def gradient_(self, total: Tensor) -> Tensor:
        """The gradient of a scalar formula for the logits, [R, V]; overwrites the buffer."""
        next_R, top_PK, closing_E = torch.autograd.grad(total, self.leaves, allow_unused=True, materialize_grads=True)
        buffer_RV = self.log_q_RV
        factor_R = buffer_RV.new_zeros(len(buffer_RV))
        factor_R[: len(next_R)] -= next_R
        factor_R.index_add_(0, self.pair_rows_P, -top_PK.sum(1))
        factor_R.index_add_(0, self.closing_rows_E, -closing_E)
        closing_R = None
        if self.closing_V is not None:
            closing_R = torch.zeros_like(factor_R)
            closing_R[self.closing_rows_E] = closing_E * torch.exp(-self.closing_E.detach())
        for block in _blocks(buffer_RV, len(buffer_RV)):
            q_BV = buffer_RV[block].exp_()
            if closing_R is None or self.closing_V is None:
                q_BV.mul_(factor_R[block, None])
            else:
                factor_BV = torch.outer(closing_R[block], self.closing_V.to(q_BV.dtype))
                q_BV.mul_(factor_BV.add_(factor_R[block, None]))
        flat = buffer_RV.view(-1)
        flat.index_add_(0, self.next_at_R, next_R)
        flat.index_add_(0, self.top_at_PK.flatten(), top_PK.flatten())
        return buffer_RV


def _largest(log_q_RV: Tensor, rows_P: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest values of some rows, in descending order, and their ids, [P, count]."""
    parts = [log_q_RV[rows_P[block]].topk(count, dim=1) for block in _blocks(log_q_RV, len(rows_P))]
    empty = log_q_RV[:0].topk(count, dim=1)
    values, ids = zip(empty, *parts, strict=True)
    return torch.cat(values), torch.cat(ids)


def _log_mass(log_q_RV: Tensor, rows_E: Tensor, tokens_V: Tensor) -> Tensor:
    """Log of the mass of a set of tokens in some rows, [E]."""
    outside_V = torch.zeros_like(log_q_RV[0]).masked_fill_(~tokens_V, -torch.inf)
    parts = [torch.logsumexp(log_q_RV[rows_E[block]] + outside_V, 1) for block in _blocks(log_q_RV, len(rows_E))]
    return torch.cat([log_q_RV.new_zeros(0), *parts])


def _blocks(buffer_RV: Tensor, count: int) -> Iterator[slice]:
    """Slices of so many rows, small enough for the cache on a CPU; other devices take all at once."""
    size = max(count, 1)
    if buffer_RV.device.type == "cpu":
        size = max(1, _BLOCK_BYTES // (buffer_RV.element_size() * buffer_RV.shape[1]))
    return (slice(start, start + size) for start in range(0, count, size))
