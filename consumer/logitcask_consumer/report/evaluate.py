"""What is measured at every position: student logits against the teacher's sparse record.

Shape legend: R rows of a block, V vocabulary size, H head entries, N tail draws. All values in nats or probabilities.
Sums over the student's whole distribution are exact; sums over the teacher's tail are unbiased estimates from its
draws, or bounds where there are none (`bounds`). Acceptance in speculative decoding: Leviathan et al., arXiv
2211.17192. Without log t of the draws it has no estimate, only a bracket.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.data import Batch, CaskDataset, Collator, target_of
from logitcask_consumer.data.vocabulary import ExtraIds, StudentVocabulary
from logitcask_consumer.head import LMHead
from logitcask_consumer.head.fused_head import default_rows
from logitcask_consumer.held_out.estimates import kl_estimate, kl_of_buckets
from logitcask_consumer.held_out.reading import document_order
from logitcask_consumer.losses import SparseTarget
from logitcask_consumer.report.bounds import (
    HeadRule,
    acceptance_bound,
    acceptance_doubt,
    among_first,
    probability_bounds,
)
from logitcask_consumer.student.forward import hidden_states

Kind: TypeAlias = Literal["exact", "unbiased", "lower bound", "upper bound"]


def metric_kinds(*, sampled_tail: bool, tail_logprobs: bool, ordered_head: bool) -> dict[str, Kind]:
    """What each metric is an estimate of, for records of this kind; metrics that cannot be had are left out."""
    drawn = sampled_tail and tail_logprobs
    kinds: dict[str, Kind] = {
        "kl_bound": "lower bound",
        "nll": "exact",
        "entropy": "exact",
        "tail_error": "exact",
        "confidence": "exact",
        "correct": "exact",
    }
    if drawn:
        kinds |= {"acceptance": "unbiased", "tvd": "unbiased"}
    kinds["greedy_acceptance"] = "unbiased" if sampled_tail else "lower bound"
    if sampled_tail:
        kinds["kl"] = "unbiased"
    if ordered_head:
        kinds["agreement"] = "exact"
    return kinds


def measure(
    logits_RV: Tensor, target: SparseTarget, entropy_R: Tensor, tail_logprobs_N: Tensor | None, *, rule: HeadRule
) -> dict[str, Tensor]:
    """Every metric of every row, each [R], float32.

    kl: KL(t || p), see `kl_estimate`.
    kl_bound: the KL of head and tail bucket, never above the KL, see `kl_of_buckets`.
    nll: -log p_y.
    entropy: H(p) of the student; beside the teacher's H(t) it shows a student that is too sure or in too much doubt.
    agreement: whether the student's most likely token is the teacher's (the head's first entry).
    acceptance: sum_j min(t_j, p_j), the chance that a token that the student samples as a draft is kept in speculative
        decoding; with log t of the draws, sum_H min(t, p) + (r/n) sum_draws min(1, p/t). Absent without.
    acceptance_low, acceptance_high: sum_H min(t, p), and that plus min(r, sum of min(b, p) outside H), no token outside
        H having more than b: they enclose the acceptance. Both go as far outwards as the codec's rounding may have
        moved them (`acceptance_doubt`), so that those of a position may lie beyond 0 and 1.
    greedy_acceptance: t of the student's most likely token, the chance that a greedy draft is kept. The estimate t̂ of
        a token that does not depend on the draws is unbiased; without draws, the head's t alone.
    greedy_acceptance_low, greedy_acceptance_high: they enclose it, and are equal where the record holds the token.
    top5_agreement_low, top5_agreement_high: whether the student's most likely token is among the teacher's five most
        likely; 0 and 1 where the record does not say.
    tvd: total variation distance, sum_j |t_j - p_j| / 2 = 1 - acceptance. Absent without log t of the draws.
    tail_error: s - r, the student's mass outside the head less the teacher's; negative where a student learned from a
        truncated teacher.
    confidence, correct: the student's largest probability, and whether that token is y (for calibration).

    Args:
        logits_RV: student logits, float32; overwritten.
        target: R rows.
        entropy_R: H(t).
        tail_logprobs_N: log t of the draws, where the records have them.
        rule: how the heads were chosen.
    """
    width, flat = logits_RV.shape[1], logits_RV.view(-1)
    rows_R = torch.arange(target.num_rows, device=logits_RV.device)
    head_at_H = target.head_rows_H * width + target.head_ids_H
    log_z_R = torch.logsumexp(logits_RV, -1)
    best_R, best_ids_R = logits_RV.max(-1)
    entropy_p_R = torch.special.entr(torch.softmax(logits_RV, -1)).sum(-1)
    head_logp_H = flat[head_at_H] - log_z_R[target.head_rows_H]
    tail_logp_N = flat[target.tail_rows_N * width + target.tail_ids_N] - log_z_R[target.tail_rows_N]
    next_logp_R = flat[rows_R * width + target.next_ids_R] - log_z_R
    # The student's mass outside the head from the logits outside it: one minus the head would be rounding noise.
    flat[head_at_H] = -torch.inf
    s_R = (torch.logsumexp(logits_RV, -1) - log_z_R).exp()
    t_H, r_R = target.head_weights_H, target.tail_mass_R
    accepted_R = target.head_sum(torch.minimum(t_H, head_logp_H.exp()))
    greedy_R = target.head_sum(t_H * (target.head_ids_H == best_ids_R[target.head_rows_H]))
    greedy_R = greedy_R + target.tail_sum(target.tail_weights_N * (target.tail_ids_N == best_ids_R[target.tail_rows_N]))
    outside_p_RV = logits_RV.sub_(log_z_R[:, None]).exp_()
    greedy_low_R, greedy_high_R = probability_bounds(target, best_ids_R, rule, tail_logprobs_N)
    top5_low_R, top5_high_R = among_first(target, best_ids_R, rule)
    doubt_R = acceptance_doubt(target, rule)
    enclosing = {
        "acceptance_low": accepted_R - doubt_R,
        "acceptance_high": acceptance_bound(outside_p_RV, accepted_R, target, rule) + doubt_R,
        "greedy_acceptance_low": greedy_low_R,
        "greedy_acceptance_high": greedy_high_R,
        "top5_agreement_low": top5_low_R,
        "top5_agreement_high": top5_high_R,
    }
    kl_R = kl_estimate(target, head_logp_H, tail_logp_N, entropy_R=entropy_R, tail_logprobs_N=tail_logprobs_N)
    drawn: dict[str, Tensor] = {}
    if tail_logprobs_N is not None:
        gap_N = tail_logprobs_N.to(tail_logp_N.dtype) - tail_logp_N
        accepted_R = accepted_R + target.tail_sum(target.tail_weights_N * (-gap_N).exp().clamp(max=1.0))
        drawn = {"acceptance": accepted_R, "tvd": 1.0 - accepted_R}
    first_at_R = torch.from_numpy(target.head_offsets_R1[:-1]).to(logits_RV.device)
    return {
        "kl": kl_R,
        "kl_bound": kl_of_buckets(target, head_logp_H, s_R),
        "nll": -next_logp_R,
        "entropy": entropy_p_R,
        "agreement": (target.head_ids_H[first_at_R] == best_ids_R).to(kl_R.dtype),
        **drawn,
        **enclosing,
        "greedy_acceptance": greedy_R,
        "tail_error": s_R - r_R,
        "confidence": (best_R - log_z_R).exp(),
        "correct": (best_ids_R == target.next_ids_R).to(kl_R.dtype),
    }


def teacher_columns(target: SparseTarget, entropy_R: Tensor, head_logprobs_H: Tensor) -> dict[str, Tensor]:
    """The teacher's own figures at every row, from the record alone, each [R].

    nll: -log t_y, exact up to the codec (y is always in the head). confidence, correct: of its most likely token.
    entropy: H(t). captured: mass of the head, 1 - r. entries: head entries plus draws.

    Both probabilities are those of the record, not of the target, whose heads have the mass that r leaves: where r was
    rounded to 1, as coarse codecs do with an unlikely y alone in its head, they would be 0.

    Args:
        target: R rows of the teacher.
        entropy_R: H(t).
        head_logprobs_H: log t of the head's entries as stored.
    """
    head_t_H = head_logprobs_H.to(target.head_weights_H.dtype).exp()
    is_next_H = target.head_ids_H == target.next_ids_R[target.head_rows_H]
    first_at_R = torch.from_numpy(target.head_offsets_R1[:-1]).to(target.head_ids_H.device)
    entries = target.head_offsets_R1[1:] - target.head_offsets_R1[:-1]
    entries = entries + target.tail_offsets_R1[1:] - target.tail_offsets_R1[:-1]
    next_R = target.head_sum(head_t_H * is_next_H)
    return {
        "nll": -next_R.clamp(min=torch.finfo(next_R.dtype).tiny).log(),
        "confidence": head_t_H[first_at_R],
        "correct": (target.head_ids_H[first_at_R] == target.next_ids_R).to(next_R.dtype),
        "entropy": entropy_R.to(next_R.dtype),
        "captured": 1.0 - target.tail_mass_R,
        "entries": torch.from_numpy(entries).to(next_R.dtype),
    }


Column = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Measured values of P positions, by document, then by position: comparable whatever windows they were read in."""

    documents_P: NDArray[np.int32]
    """Number of the document."""
    values: dict[str, Column]
    """Metric name -> [P]."""


def evaluate_model(
    model: Any,
    dataset: CaskDataset,
    *,
    batch_sequences: int,
    extra_ids: ExtraIds = "keep",
    progress: Callable[[int], None] = lambda positions: None,
) -> Columns:
    """Measure a model at every position of the dataset.

    Args:
        model: a causal LM, on the device it shall run on.
        dataset: held-out documents.
        batch_sequences: sequences per forward pass.
        extra_ids: what becomes of its ids beyond the teacher's, as in its training run.
        progress: is told the number of positions of each batch done.
    """
    device = next(model.parameters()).device
    model.eval()
    parts, documents = list[dict[str, Column]](), list[NDArray[np.int32]]()
    vocabulary = StudentVocabulary.of(model, dataset.manifest.teacher.vocab_size)
    head = LMHead.from_model(model).narrowed(vocabulary.masked_width(extra_ids))
    for batch in _batches(dataset, batch_sequences, vocabulary):
        with torch.inference_mode():
            moved = _move(batch, device)
            hidden = hidden_states(model, moved["input_ids"], moved["position_ids"])
            hidden_TD = hidden.flatten(0, 1).index_select(0, moved["slots"])
            parts.extend(_measure_in_row_blocks(hidden_TD, head, moved, dataset))
        documents.append(batch["documents"].numpy())
        progress(len(batch["slots"]))
    return _ordered(dataset, documents, parts)


def evaluate_teacher(
    dataset: CaskDataset, *, batch_sequences: int, progress: Callable[[int], None] = lambda positions: None
) -> Columns:
    """The teacher's own figures at every position, from the records alone.

    `occurrences`: at how many of the positions the realised next token is the same, in whole numbers up to 2^24.

    Args:
        dataset: held-out documents.
        batch_sequences: sequences that are read at a time.
        progress: is told the number of positions of each batch done.
    """
    parts, documents, next_ids = [], [], []
    for batch in _batches(dataset, batch_sequences):
        columns = teacher_columns(
            target_of(batch, sampled_tail=_sampled(dataset)),
            batch["position_columns"]["entropy"],
            batch["head_logprobs"],
        )
        parts.append({name: value.numpy() for name, value in columns.items()})
        documents.append(batch["documents"].numpy())
        next_ids.append(batch["next_ids"].numpy())
        progress(len(batch["slots"]))
    ordered = _ordered(dataset, documents, parts)
    next_ids_P = np.concatenate(next_ids)[document_order(dataset)]
    occurrences_P = np.bincount(next_ids_P)[next_ids_P].astype(np.float32)
    return replace(ordered, values=ordered.values | {"occurrences": occurrences_P})


def _ordered(dataset: CaskDataset, documents: list[NDArray[np.int32]], parts: list[dict[str, Column]]) -> Columns:
    """What was measured in the order of the sequences, in the order of the documents."""
    order_P = document_order(dataset)
    values = {name: value[order_P] for name, value in _concatenated(parts).items()}
    return Columns(documents_P=np.concatenate(documents)[order_P], values=values)


def _sampled(dataset: CaskDataset) -> bool:
    return dataset.manifest.capture.mode != "topk"


def _batches(
    dataset: CaskDataset, batch_sequences: int, vocabulary: StudentVocabulary | None = None
) -> Iterator[Batch]:
    collate = Collator(seq_len=dataset.seq_len, vocabulary=vocabulary)
    for start in range(0, len(dataset), batch_sequences):
        yield collate(dataset.read(range(start, min(start + batch_sequences, len(dataset)))))


def _measure_in_row_blocks(
    hidden_TD: torch.Tensor, head: LMHead, batch: Batch, dataset: CaskDataset
) -> Iterator[dict[str, Column]]:
    target, tail = target_of(batch, sampled_tail=_sampled(dataset)), batch["tail_logprobs"]
    rule = HeadRule.of(dataset.manifest.capture)
    rows = default_rows(head)
    for start in range(0, len(hidden_TD), rows):
        stop = min(start + rows, len(hidden_TD))
        draws = slice(int(target.tail_offsets_R1[start]), int(target.tail_offsets_R1[stop]))
        measured = measure(
            head.logits(hidden_TD[start:stop]).float(),
            target.rows(start, stop),
            batch["position_columns"]["entropy"][start:stop],
            None if tail is None else tail[draws],
            rule=rule,
        )
        yield {name: value.cpu().numpy() for name, value in measured.items()}


def _move(batch: Batch, device: torch.device) -> Batch:
    moved: Any = {name: _moved(value, device) for name, value in batch.items()}
    return moved  # type: ignore[no-any-return]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: column.to(device) for name, column in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _concatenated(parts: list[dict[str, Column]]) -> dict[str, Column]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
