"""Sequences over casks, whatever is read of them: the plan of windows, and where their documents lie.

Shape legend: D documents of all casks, W windows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from logitcask_consumer.data.packing import Packing, pack_groups
from logitcask_consumer.data.recorded import RecordedPositions
from logitcask_consumer.data.windows import Windows
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.shard import Shard

S_co = TypeVar("S_co", covariant=True)


class SequenceDataset(Dataset[S_co], ABC):
    """Training sequences; a batch of them, as DataLoader asks for it, is read in one go."""

    seq_len: int
    """Slots of a sequence."""
    packing: Packing
    seed: int
    """Of packing."""

    @property
    @abstractmethod
    def casks(self) -> list[Cask]:
        """That the sequences are cut from."""

    @property
    @abstractmethod
    def manifest(self) -> CaskManifest:
        """Of the first cask."""

    @property
    @abstractmethod
    def sources(self) -> list[NDArray[np.int64]]:
        """How many sequences each group of shards has, [G], for every source; these are mixed evenly in training."""

    @property
    @abstractmethod
    def num_documents(self) -> int:
        """Number of documents, D."""

    @property
    @abstractmethod
    def num_positions(self) -> int:
        """Positions trained per epoch."""

    @property
    @abstractmethod
    def fill(self) -> float:
        """Share of the sequences' slots that hold a window."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, sequences: Sequence[int]) -> S_co:
        """Several sequences at once; the sampler's `EMPTY` gives one without windows."""

    def __getitem__(self, sequence: int) -> S_co:
        """One sequence; see `read`."""
        return self.read([sequence])

    def __getitems__(self, sequences: Sequence[int]) -> S_co:
        """What DataLoader asks for a batch; see `read`."""
        return self.read(sequences)


class PackedDataset(SequenceDataset[S_co], ABC):
    """Sequences of windows of documents of memory-mapped casks, all of one teacher and capture spec."""

    def __init__(
        self,
        casks: Sequence[Cask],
        positions_D: NDArray[np.int64],
        *,
        seq_len: int,
        overlap: int,
        packing: Packing,
        seed: int,
        documents_D: NDArray[np.int64] | None = None,
        recorded: RecordedPositions | None = None,
    ) -> None:
        """Cut windows and pack them.

        Args:
            casks: of one teacher and capture spec.
            positions_D: trained positions of each document.
            seq_len: slots of a sequence.
            overlap: context slots of the windows of longer documents.
            packing: `best_fit`, or `none` for one window per sequence.
            seed: of the order in which windows of equal length are packed.
            documents_D: the number in the casks of each document, ascending; None where all of them are used.
            recorded: which of the positions have records; None for all. Windows without any are left out.

        Raises:
            WindowError: seq_len and overlap do not fit.
            ValueError: packing is none of its choices.
        """
        if packing not in get_args(Packing):
            raise ValueError(f"packing must be {' or '.join(map(repr, get_args(Packing)))}, got {packing!r}")
        self._casks = list(casks)
        self.seq_len = seq_len
        self.packing = packing
        self.seed = seed
        shards = [entry.documents for cask in self.casks for entry in cask.entries]
        self._first_shard = np.concatenate([[0], np.cumsum([len(cask.entries) for cask in self.casks])])
        self._first_document = np.concatenate([[0], np.cumsum(shards, dtype=np.int64)])
        self.windows = Windows.cut(positions_D, seq_len=seq_len, overlap=overlap)
        if recorded is not None:
            self.windows = self.windows.with_records(recorded)
        used = np.arange(len(positions_D)) if documents_D is None else documents_D
        per_shard = np.diff(np.searchsorted(used, self._first_document))
        self.packs, self.sequences_per_group = pack_groups(self.windows, per_shard, seq_len, packing, seed)

    @property
    def casks(self) -> list[Cask]:
        """That the documents lie in."""
        return self._casks

    @property
    def manifest(self) -> CaskManifest:
        """Of the first cask; all have the same teacher and capture spec."""
        return self.casks[0].manifest

    @property
    def sources(self) -> list[NDArray[np.int64]]:
        """All casks are one source."""
        return [self.sequences_per_group]

    @property
    def num_positions(self) -> int:
        """Positions trained per epoch: all of every document that have a record."""
        return int(self.windows.records_W.sum())

    @property
    def fill(self) -> float:
        """Share of the sequences' slots that hold a window."""
        return float(self.windows.slots_W.sum()) / (len(self) * self.seq_len)

    def __len__(self) -> int:
        return len(self.packs)

    def rows_of(self, documents: NDArray[np.int64]) -> list[tuple[Shard, int]]:
        """Shard and row of some documents of the casks. A shard is asked for once: a cask may keep few of them open.

        Raises:
            CaskCorruptionError, CaskNotFoundError: a shard cannot be opened, or its file has another size by now.
        """
        shard_W = np.searchsorted(self._first_document, documents, side="right") - 1
        row_W = documents - self._first_document[shard_W]
        shards = {number: self._shard(number) for number in np.unique(shard_W).tolist()}
        for shard in shards.values():
            shard.require_size()
        return [(shards[number], row) for number, row in zip(shard_W.tolist(), row_W.tolist(), strict=True)]

    def _shard(self, number: int) -> Shard:
        cask = int(np.searchsorted(self._first_shard, number, side="right")) - 1
        return self.casks[cask].shard(number - int(self._first_shard[cask]))
