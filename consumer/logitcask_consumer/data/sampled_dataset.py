"""Texts that a student sampled: their records, with how likely each token was when it was sampled.

Shape legend: P positions, N sampled tokens of a text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data.dataset import CaskDataset, SequenceRecords, slots_of
from logitcask_consumer.data.packing import Packing
from logitcask_consumer.weights import Weights
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import DocumentMismatchError
from logitcask_schemas.record.records import DocumentRecords

POLICY: Final = "policy"
"""Name of the column beside the stored ones, see `SparseTarget.policy_R3`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTexts:
    """What sampling knows of the documents of some casks."""

    logprobs: Mapping[bytes, NDArray[np.float32]] = field(repr=False)
    """Identity of a document -> log q of its sampled tokens, which are its last ones, [N], nats."""

    def __len__(self) -> int:
        return len(self.logprobs)


def policy_columns(document: DocumentRecords, logprobs_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """Columns of `SparseTarget.policy_R3` of a sampled document, [N, 3], for its last N positions.

    Args:
        document: whose last N positions, and no others, are recorded, each with its next token in the head.
        logprobs_N: log q of its last N tokens.

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
    rewards_N = np.full(count, np.nan)
    rewards_N[rows_H[is_next_H]] = np.asarray(records.head_logprobs_H, dtype=np.float64)[is_next_H]
    if np.isnan(rewards_N).any():
        raise DocumentMismatchError("a head of a sampled document lacks its next token: run `logitcask cask verify`")
    rewards_N -= logprobs_N
    later_N = np.cumsum(rewards_N[::-1])[::-1] - rewards_N
    columns: NDArray[np.float32] = np.stack([logprobs_N, later_N, np.arange(count)[::-1]], 1).astype(np.float32)
    return columns


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
        columns = [np.empty((0, 3), dtype=np.float32)]
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
            columns.append(policy_columns(document, logprobs_N)[own_P])
        records = windows.records
        records = replace(records, position_columns={**records.position_columns, POLICY: np.concatenate(columns)})
        return replace(read, windows=replace(windows, records=records))
