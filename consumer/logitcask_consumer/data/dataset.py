"""Training sequences over memory-mapped casks: a map-style dataset that reads a whole batch at once and proves it.

Shape legend: D documents of all casks, W windows, B sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data.bin_packing import Packs
from logitcask_consumer.data.packed_dataset import PackedDataset
from logitcask_consumer.data.packing import Packing
from logitcask_consumer.data.recorded import RecordedPositions
from logitcask_consumer.data.sequence_records import SequenceRecords
from logitcask_consumer.weights import Positions, Weights
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.batches import CollatedRecords, collate
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.errors import CaskCorruptionError, CaskError, DocumentMismatchError, IdentityMismatchError
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.identity import tokenizer_fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedShare:
    """How many positions the weights of a dataset leave to be trained."""

    positions: int
    """Looked at."""
    trained: int
    """With a weight above 0."""
    whole: bool
    """Whether these are all positions of the dataset."""

    @property
    def share(self) -> float:
        """Of the positions looked at, those that are trained."""
        return self.trained / max(self.positions, 1)


class EmptyCaskError(CaskError):
    """There is nothing to train on, or to measure."""


def open_casks(
    places: Sequence[Path | str] | Path | str,
    *,
    tokenizer_fingerprint: str | None,
    cache: Path | None = None,
    cache_bytes: int | None = None,
) -> list[Cask]:
    """Open casks that may be trained on together.

    Args:
        places: folders, or URLs of object stores; a single one may stand alone.
        tokenizer_fingerprint: of the student's tokenizer; None skips the check.
        cache: for URLs: local folder for fetched shards.
        cache_bytes: for URLs: most bytes that each cask keeps there.

    Raises:
        EmptyCaskError: no path was given.
        IdentityMismatchError: tokenizer, teacher or capture spec differ.
        CaskNotFoundError, CaskCorruptionError: a cask cannot be opened.
    """
    if isinstance(places, Path | str):
        places = [places]
    if not places:
        raise EmptyCaskError("no cask was named; give at least one")
    casks = [
        Cask.open(place, tokenizer_fingerprint=tokenizer_fingerprint, cache=cache, cache_bytes=cache_bytes)
        for place in places
    ]
    for cask in casks[1:]:
        casks[0].manifest.require_same(cask.manifest.teacher, cask.manifest.capture, where=str(casks[0].path))
    return casks


class CaskDataset(PackedDataset[SequenceRecords]):
    """Packed training sequences; a batch of them, as DataLoader asks for it, is read in one go.

    Sequences are packed once, from documents shuffled by `seed` within groups of shards: their number is the same in
    every epoch, and a sequence touches the shards of one group. Works in forked and in spawned DataLoader workers:
    casks pickle by path and map lazily in each process.

    Each document is proved the first time a process touches it: the cask compares its checksum, this class the SHA-256
    of its token ids with the identity under which it was stored.
    """

    def __init__(
        self,
        casks: Sequence[Cask],
        *,
        seq_len: int,
        overlap: int = 0,
        packing: Packing = "best_fit",
        seed: int = 0,
        weights: Weights | None = None,
        hints: bool = False,
        documents: NDArray[np.int64] | None = None,
    ) -> None:
        """Plan the sequences; reads document lengths only, and a row of hints where these are asked for.

        Args:
            casks: from `open_casks`.
            seq_len: slots of a sequence.
            overlap: context slots of the windows of longer documents.
            packing: `best_fit`, or `none` for one window per sequence.
            seed: of the order in which documents of equal length are packed.
            weights: of the positions, bound to the tokenizer; None for 1. Packing does not depend on them.
            hints: read the rows of hints beside the records. Otherwise their files are never opened.
            documents: numbers, over all casks, of those to read; None for all.

        Raises:
            CaskError: hints are asked for that a cask has not, or no longer has.
            EmptyCaskError: no document has a position.
            WindowError: seq_len and overlap do not fit.
        """
        positions_D = np.concatenate([cask.document_lengths() for cask in casks]) - 1
        if documents is not None:
            positions_D[np.isin(np.arange(len(positions_D)), documents, invert=True)] = 0
        recorded = RecordedPositions.of(casks)
        if not (positions_D > 0).any():
            raise EmptyCaskError(
                f"no position in {', '.join(cask.place for cask in casks)}: {len(positions_D)} documents, none of two "
                "tokens or more. If it is still being written, wait for its first shard"
            )
        super().__init__(
            casks,
            positions_D,
            seq_len=seq_len,
            overlap=overlap,
            packing=packing,
            seed=seed,
            recorded=recorded if recorded.is_partial_D.any() else None,
        )
        self.weights = weights or Weights()
        self.weights.require(casks[0].manifest.capture, where=str(casks[0].place))
        self.share: TrainedShare | None = None
        """How much of it is trained, once that was found out; see `trained_share`."""
        self._proved_D = np.zeros(len(positions_D), dtype=np.bool_)
        self._first_of_cask = np.cumsum([0, *map(len, self.casks)])
        self._no_hints = self._first_hint_row() if hints else None

    @classmethod
    def open(
        cls,
        places: Sequence[Path | str] | Path | str,
        *,
        tokenizer: Any,
        seq_len: int,
        overlap: int = 0,
        packing: Packing = "best_fit",
        seed: int = 0,
        hints: bool = False,
    ) -> Self:
        """Open casks and plan sequences over them; `open_casks` and `CaskDataset(...)` take more options.

        Args:
            places: folders, or URLs of object stores; a single one may stand alone.
            tokenizer: the student's, which must be the teacher's.
            seq_len: slots of a sequence.
            overlap: context slots of the windows of longer documents.
            packing: `best_fit`, or `none` for one window per sequence.
            seed: of the order in which documents of equal length are packed.
            hints: read the rows of hints beside the records.

        Raises:
            IdentityMismatchError: the tokenizer is not the teacher's, or teachers or capture specs differ.
            EmptyCaskError, CaskNotFoundError, CaskCorruptionError, WindowError: as `open_casks` and `CaskDataset`.
        """
        if not hasattr(tokenizer, "get_vocab"):
            raise TypeError(
                f"tokenizer must be a transformers tokenizer (AutoTokenizer.from_pretrained(...)), got {tokenizer!r}"
            )
        casks = open_casks(places, tokenizer_fingerprint=tokenizer_fingerprint(tokenizer))
        return cls(casks, seq_len=seq_len, overlap=overlap, packing=packing, seed=seed, hints=hints)

    @property
    def num_documents(self) -> int:
        """Number of documents, D."""
        return len(self._proved_D)

    def read(self, sequences: Sequence[int]) -> SequenceRecords:
        """Several sequences at once; the sampler's `EMPTY` gives one without windows.

        Raises:
            CaskCorruptionError, CaskNotFoundError: a shard is missing or its bytes changed.
            DocumentMismatchError: the stored token ids are not those of the document's identity.
        """
        packs, documents_W, collated, positions = self._read(sequences)
        return SequenceRecords(
            window_offsets_B1=packs.offsets_B1,
            documents_W=documents_W,
            windows=collated,
            weights_P=None if positions is None else self.weights.of(positions),
            hints=None if self._no_hints is None else self._hints(packs.windows_W, collated),
            head_holds_next=self.casks[0].layout.head_holds_next,
        )

    @property
    def reads_hints(self) -> bool:
        """Whether it was asked for hints."""
        return self._no_hints is not None

    @property
    def hint_width(self) -> int:
        """Numbers of one of the teacher's vectors, D; of a dataset that was asked for hints."""
        assert self._no_hints is not None, "asked for without hints"
        return self._no_hints.width

    def _first_hint_row(self) -> HintRows:
        """No rows, of the width that the casks have; every shard of them must still have its hints.

        Raises:
            CaskError: a cask has none, or its files are gone; says what to do.
            IdentityMismatchError: two casks have vectors of different widths.
        """
        for cask in self.casks:
            cask.require_hints()
        lengths = [cask.document_lengths() for cask in self.casks]
        firsts = [
            cask.hints(int(np.argmax(lengths_D > 1)))
            for cask, lengths_D in zip(self.casks, lengths, strict=True)
            if (lengths_D > 1).any()
        ]
        if len(widths := {first.width for first in firsts}) > 1:
            raise IdentityMismatchError(
                f"the casks {', '.join(str(cask.place) for cask in self.casks)} hold hints of widths {sorted(widths)}: "
                "they are of different teachers. Train on those of one teacher"
            )
        return firsts[0].slice(slice(0, 0))

    def _hints(self, windows_W: NDArray[np.int64], collated: CollatedRecords) -> HintRows:
        """The rows of the positions of some windows.

        Raises:
            CaskCorruptionError: a window has not as many rows as records, or a document vectors of another width.
        """
        assert self._no_hints is not None, "asked for without hints"
        parts, counts_W = [self._no_hints], np.diff(collated.position_offsets_B1)
        for window, count in zip(windows_W.tolist(), counts_W.tolist(), strict=True):
            number = int(self.windows.document_W[window])
            at = int(np.searchsorted(self._first_of_cask, number, side="right")) - 1
            document = number - int(self._first_of_cask[at])
            start, stop = int(self.windows.trained_W[window]), int(self.windows.stop_W[window])
            rows = self.casks[at].hints(document, start, stop)
            if rows.num_rows != count:
                raise CaskCorruptionError(
                    f"{self.casks[at].place}: document {document}: {count} records of positions {start} to {stop - 1}, "
                    f"but {rows.num_rows} rows of hints. Run `logitcask cask verify`"
                )
            if rows.width != self.hint_width:
                raise CaskCorruptionError(
                    f"{self.casks[at].place}: document {document}: hints of width {rows.width}, the others have "
                    f"{self.hint_width}: they are of different teachers. Capture into a new cask"
                )
            parts.append(rows)
        return HintRows.join(parts)

    def positions(self, sequences: Sequence[int]) -> Positions:
        """What the weights of several sequences follow from; errors as `read`."""
        _, _, _, positions = self._read(sequences)
        assert positions is not None, "only asked for with weights"
        return positions

    def _read(self, sequences: Sequence[int]) -> tuple[Packs, NDArray[np.int64], CollatedRecords, Positions | None]:
        packs = self.packs.take(sequences)
        windows_W = packs.windows_W
        documents_W = self.windows.document_W[windows_W]
        rows = self.rows_of(documents_W)
        for at in np.flatnonzero(~self._proved_D[documents_W]).tolist():
            if not self._proved_D[documents_W[at]]:  # else by another of its windows
                _prove(*rows[at])
                self._proved_D[documents_W[at]] = True
        collated = collate(
            rows,
            self.casks[0].layout,
            self.windows.trained_W[windows_W],
            self.windows.stop_W[windows_W],
            self.windows.start_W[windows_W],
        )
        positions = self._positions(collated, rows, windows_W) if self.weights.factors else None
        return packs, documents_W, collated, positions

    def _positions(
        self, collated: CollatedRecords, rows: Sequence[tuple[Shard, int]], windows_W: NDArray[np.int64]
    ) -> Positions:
        """What weights read: a later window's document is read from its start, where a mask may have begun."""
        tokens = np.split(collated.token_ids_L, collated.token_offsets_B1[1:-1]) if rows else []
        for at in np.flatnonzero(self.windows.start_W[windows_W]).tolist():
            shard, row = rows[at]
            tokens[at] = shard.read(row).token_ids_L[: int(self.windows.stop_W[windows_W[at]]) + 1]
        return Positions(
            records=collated.records,
            token_ids_L=np.concatenate([collated.token_ids_L[:0], *tokens]),
            token_offsets_W1=np.cumsum([0, *map(len, tokens)], dtype=np.int64),
            counts_W=np.diff(collated.position_offsets_B1),
            positions_P=self._document_positions(collated, windows_W),
            document_ids_W=np.array([shard.document_ids[row] for shard, row in rows], dtype=np.uint8).reshape(-1, 32),
            vocab_size=self.manifest.teacher.vocab_size,
            answers_W=[shard.answer_ranges(row) for shard, row in rows],
        )

    def _document_positions(self, collated: CollatedRecords, windows_W: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Number within its document of each position; None where windows have the records of their last positions."""
        if collated.slots_P is None:
            return None
        return collated.slots_P + np.repeat(self.windows.start_W[windows_W], np.diff(collated.position_offsets_B1))


def _prove(shard: Shard, row: int) -> None:
    """SHA-256 of a document's token ids against the identity it is stored under."""
    stored, computed = shard.document_ids[row].tobytes(), shard.read(row).id
    if stored != computed:
        raise DocumentMismatchError(
            f"{shard.path}: document {row}: stored under identity {stored.hex()}, its token ids give {computed.hex()}. "
            "Its records may belong to another text: run `logitcask cask verify`."
        )
