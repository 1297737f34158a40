"""Sequences of several datasets in one: a training run over casks of several teachers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data.packed_dataset import SequenceDataset
from logitcask_consumer.data.sampler import EMPTY
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.format.manifest import CaskManifest

if TYPE_CHECKING:
    from logitcask_consumer.data.packing import Packing


class MixedDataset(SequenceDataset[list[Any]]):
    """Datasets one after the other; what is read of it is a list with the part of each.

    A part without a sequence among those asked for gives an empty one, so that every process of a run makes the same
    forward passes.
    """

    def __init__(self, parts: Sequence[SequenceDataset[Any]]) -> None:
        """Number the sequences of all parts.

        Args:
            parts: at least one; all with the same `seq_len`, `packing` and `seed`.
        """
        self.parts = list(parts)
        self.seq_len: int = parts[0].seq_len
        self.packing: Packing = parts[0].packing
        self.seed: int = parts[0].seed
        self._first = np.cumsum([0, *map(len, parts)])
        self.shares: tuple[float, ...] | None = None
        """Of the sequences of every step, for each part, where a phase of a run says so; None: as many as it has."""

    @property
    def casks(self) -> list[Cask]:
        """Of all parts."""
        return [cask for part in self.parts for cask in part.casks]

    @property
    def manifest(self) -> CaskManifest:
        """Of the first part."""
        return self.parts[0].manifest

    @property
    def sources(self) -> list[NDArray[np.int64]]:
        """Of all parts."""
        return [groups for part in self.parts for groups in part.sources]

    @property
    def num_documents(self) -> int:
        """Of all parts; one that two casks hold counts twice."""
        return sum(part.num_documents for part in self.parts)

    @property
    def num_positions(self) -> int:
        """Positions trained per epoch, of all parts."""
        return sum(part.num_positions for part in self.parts)

    @property
    def drawn_positions(self) -> list[float]:
        """Positions of each part, as far as they are drawn: of an epoch, or of one sequence where there are shares."""
        if self.shares is None:
            return [float(part.num_positions) for part in self.parts]
        return [share * part.num_positions / len(part) for share, part in zip(self.shares, self.parts, strict=True)]

    @property
    def fill(self) -> float:
        """Share of the sequences' slots that hold a window."""
        return sum(part.fill * len(part) for part in self.parts) / len(self)

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, sequences: Sequence[int]) -> list[Any]:
        """What each part makes of its sequences among these."""
        numbers_B = np.asarray(sequences, dtype=np.int64)
        part_B = np.searchsorted(self._first, numbers_B, side="right") - 1
        own = [numbers_B[part_B == number] - self._first[number] for number in range(len(self.parts))]
        return [part.read(numbers.tolist() or [EMPTY]) for part, numbers in zip(self.parts, own, strict=True)]
