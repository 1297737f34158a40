"""Texts that a student, or its teacher in its place, sampled: their records, with how likely each token was.

Shape legend: P positions, N sampled tokens of a text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data.dataset import CaskDataset
from logitcask_consumer.data.packing import Packing
from logitcask_consumer.data.sequence_records import SequenceRecords, slots_of
from logitcask_consumer.weights import Weights
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import DocumentMismatchError
from logitcask_schemas.record.records import DocumentRecords

POLICY: Final = "policy"
"""Name of the column beside the stored ones, see `SparseTarget.policy_R4`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTexts:
    """What sampling knows of the documents of some casks."""

    logprobs: Mapping[bytes, NDArray[np.float32]] = field(repr=False)
    """Identity of a document -> log q of its sampled tokens, which are its last ones, [N], nats; q is the student that
    sampled, also where the teacher wrote."""
    teacher_share: float = 0.0
    """alpha: how likely the teacher was to write each text in the student's place; below 1."""

    def __len__(self) -> int:
        return len(self.logprobs)


def policy_values(
    log_t_N: NDArray[np.float64], log_q_N: NDArray[np.float64], *, teacher_share: float
) -> NDArray[np.float64]:
    """Columns of `SparseTarget.policy_R4` of a sampled text, [N, 4].

    A text is the teacher's with probability alpha, else the student's, so a prefix is sampled with density
    m(y_<=j) = alpha t(y_<=j) + (1 - alpha) q(y_<=j), whoever wrote this one (the balance heuristic, Veach and Guibas
    1995). An expectation over the student's prefixes is that over the sampled ones with the weight
    W_j = q(y_<=j) / m(y_<=j) = 1 / (1 - alpha + alpha exp(sum_{k<=j} r_k)) <= 1 / (1 - alpha), r_k = log t - log q of
    token k. A reward r_j is known once y_<=j is: it counts W_j times. What is computed at position i, before its token,
    counts W_(i-1) times, W_0 = 1.

    Args:
        log_t_N: the teacher's log-probability of each sampled token, nats.
        log_q_N: and the student's.
        teacher_share: alpha, 0 <= alpha < 1.

    Returns:
        log q_i; sum_{j > i} W_j r_j; how many these j are; W_(i-1).
    """
    rewards_N = log_t_N - log_q_N
    weights_N, before_N = np.ones_like(rewards_N), np.ones_like(rewards_N)
    if teacher_share:
        weights_N = np.exp(-np.logaddexp(np.log1p(-teacher_share), np.log(teacher_share) + np.cumsum(rewards_N)))
        before_N[1:] = weights_N[:-1]
    weighted_N = weights_N * rewards_N
    later_N = np.cumsum(weighted_N[::-1])[::-1] - weighted_N
    return np.stack([log_q_N, later_N, np.arange(len(rewards_N))[::-1], before_N], 1)


def policy_columns(
    document: DocumentRecords, logprobs_N: NDArray[np.float32], *, teacher_share: float = 0.0
) -> NDArray[np.float32]:
    """Columns of `SparseTarget.policy_R4` of a sampled document, [N, 4], for its last N positions.

    Args:
        document: whose last N positions, and no others, are recorded, each with its next token in the head.
        logprobs_N: log q of its last N tokens.
        teacher_share: see `policy_values`.

    Raises:
        DocumentMismatchError: another number of positions is recorded, or a head lacks its next token.
    """
    records, count = document.records, len(logprobs_N)
    if records.num_positions != count:
        raise DocumentMismatchError(
            f"{count} tokens of a document were sampled, {records.num_positions} of its positions are recorded. The "
            "cask is not the one that was captured of these texts"
        )
    next_P = np.asarray(document.token_ids_L)[-count:]
    rows_H = np.repeat(np.arange(count), records.head_counts_P)
    is_next_H = records.head_ids_H == next_P[rows_H]
    log_t_N = np.full(count, np.nan)
    log_t_N[rows_H[is_next_H]] = np.asarray(records.head_logprobs_H, dtype=np.float64)[is_next_H]
    if np.isnan(log_t_N).any():
        raise DocumentMismatchError("a head of a sampled document lacks its next token: run `logitcask cask verify`")
    values = policy_values(log_t_N, logprobs_N.astype(np.float64), teacher_share=teacher_share)
    return values.astype(np.float32)


class SampledDataset(CaskDataset):
    """A `CaskDataset` of texts that a student sampled; its records have the column `policy`."""

    def __init__(
        self,
        casks: Sequence[Cask],
        *,
        samples: SampledTexts,
        seq_len: int,
        overlap: int = 0,
        packing: Packing = "best_fit",
        seed: int = 0,
        weights: Weights | None = None,
        hints: bool = False,
    ) -> None:
        """As `CaskDataset`, with what is known of the texts: of each document of the casks."""
        super().__init__(
            casks, seq_len=seq_len, overlap=overlap, packing=packing, seed=seed, weights=weights, hints=hints
        )
        self.samples = samples

    def read(self, sequences: Sequence[int]) -> SequenceRecords:
        """As `CaskDataset.read`.

        Raises:
            DocumentMismatchError: a document is none of the samples, or its records are not of the sampled tokens.
        """
        read = super().read(sequences)
        windows = read.windows
        counts_W, slots_P = np.diff(windows.position_offsets_B1), slots_of(windows)
        columns = [np.empty((0, 4), dtype=np.float32)]
        places = self.rows_of(read.documents_W)
        starts_W = self.windows.start_W[self.packs.take(sequences).windows_W]
        edges = zip(
            places, starts_W.tolist(), windows.position_offsets_B1[:-1].tolist(), counts_W.tolist(), strict=True
        )
        for (shard, row), start, first, positions in edges:
            document = shard.read(row)
            logprobs_N = self.samples.logprobs.get(document.id)
            if logprobs_N is None:
                raise DocumentMismatchError(
                    f"{shard.path}: document {row} (identity {document.id.hex()}) is none of the {len(self.samples)} "
                    "texts that the student sampled"
                )
            # Position i of the document predicts token i + 1; the last N positions those of the last N tokens.
            own_P = start + slots_P[first : first + positions] - (len(document.token_ids_L) - 1 - len(logprobs_N))
            policy_N4 = policy_columns(document, logprobs_N, teacher_share=self.samples.teacher_share)
            columns.append(policy_N4[own_P])
        records = windows.records
        records = replace(records, position_columns={**records.position_columns, POLICY: np.concatenate(columns)})
        return replace(read, windows=replace(windows, records=records))
