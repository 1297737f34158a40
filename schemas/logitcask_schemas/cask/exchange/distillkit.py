"""Reading DistillKit's caches: Parquet files of compressed log-probabilities, a row per text.

Columns: `input_ids` (list), `compressed_logprobs` and `bytepacked_indices` (lists of lists of bytes, one inner list per
position), and in packed data sets `attention_mask`, whose runs of equal numbers are documents and whose zeros are
padding. A row of L tokens has L - 1 positions; in packed data L, where the last one of each document predicts a token
that was cut off.

Shape legend: L tokens of a row, P positions of a batch of rows, B bytes of a position.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from logitcask_schemas.cask.exchange.distillkit_codec import CompressionConfig
from logitcask_schemas.cask.exchange.top_k_rows import TopKRows
from logitcask_schemas.errors import CaskError, InvalidRecordError

CONFIG_NAME: Final = "compression_config.yaml"
_TOKENS: Final = "input_ids"
_LOGPROBS: Final = "compressed_logprobs"
_IDS: Final = "bytepacked_indices"
_MASK: Final = "attention_mask"
_ROWS_AT_ONCE: Final = 16


class DistillKitSource:
    """A folder of DistillKit's Parquet files, or one such file."""

    tool: Final = "distillkit"
    version: Final = "compressed"

    def __init__(self, place: Path, *, config: Path | None = None, pad_id: int | None = None) -> None:
        """Find the files and read the compression config.

        Args:
            place: a folder with `*.parquet`, or a file.
            config: `compression_config.yaml` by default, in the folder.
            pad_id: a last token of this id was added by the capture and is left out with the position that predicts it;
                None where the tokenizer's padding cannot be told from an end of text.

        Raises:
            CaskError: there is no such file, or the config is not one.
        """
        self._files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
        if not self._files or not self._files[0].is_file():
            listing = sorted(path.name for path in place.iterdir())[:8] if place.is_dir() else []
            raise CaskError(
                f"{place} holds no *.parquet of DistillKit{f' but {listing}' if listing else ''}; name the folder that "
                "its sample_logits wrote (--output)"
            )
        folder = place if place.is_dir() else place.parent
        self.config = CompressionConfig.read(config or folder / CONFIG_NAME)
        self._pad_id = pad_id
        self.skipped: dict[str, int] = {"added_pad_tokens": 0, "documents_of_one_token": 0}

    @property
    def k(self) -> int:
        """Entries of a position."""
        return self.config.k

    @property
    def options(self) -> Mapping[str, Any]:
        """The compression, as `compression.<field>`."""
        return {f"compression.{name}": value for name, value in self.config.model_dump(mode="json").items()}

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self._files)

    def documents(self) -> Iterator[tuple[TopKRows, float]]:
        """See `TopKSource.documents`."""
        for path in self._files:
            yield from self._documents_of(path)

    def _documents_of(self, path: Path) -> Iterator[tuple[TopKRows, float]]:
        first = 0
        try:
            with pq.ParquetFile(path) as file:
                columns = self._columns(path, file.schema_arrow.names)
                bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                    documents = list(self._documents_in(path, first, batch))
                    first += batch.num_rows
                    for document in documents:
                        yield document, bytes_per_row * batch.num_rows / len(documents)
        except (pa.ArrowInvalid, OSError) as error:
            raise CaskError(
                f"{path}: row {first} or later cannot be read: {error}. DistillKit leaves a file without its end where "
                "it was stopped: take such a file away, or capture it again"
            ) from error

    def _columns(self, path: Path, names: list[str]) -> list[str]:
        if lacking := [name for name in (_TOKENS, _LOGPROBS, _IDS) if name not in names]:
            raise CaskError(
                f"{path} lacks the columns {', '.join(lacking)}; it has {', '.join(names)}. Only the compressed form "
                f"that DistillKit writes since 2025 ({_TOKENS}, {_LOGPROBS}, {_IDS}) can be taken over"
            )
        return [_TOKENS, _LOGPROBS, _IDS, *([_MASK] if _MASK in names else [])]

    def _documents_in(self, path: Path, first: int, batch: pa.RecordBatch) -> Iterator[TopKRows]:
        logprobs_PB, offsets = _bytes(batch, _LOGPROBS, self.config.logprob_bytes, path, first)
        ids_PB, id_offsets = _bytes(batch, _IDS, self.config.id_bytes, path, first)
        tokens, token_offsets = _numbers(batch, _TOKENS, path, first)
        masks = _numbers(batch, _MASK, path, first) if _MASK in batch.schema.names else None
        for row in range(batch.num_rows):
            where = f"{path}: row {first + row}"
            tokens_L = tokens[token_offsets[row] : token_offsets[row + 1]]
            positions = int(offsets[row + 1] - offsets[row])
            if positions != id_offsets[row + 1] - id_offsets[row]:
                raise InvalidRecordError(
                    f"{where}: {positions} positions in {_LOGPROBS}, {int(np.diff(id_offsets)[row])} in {_IDS}; leave "
                    "this row out, or capture it again"
                )
            if positions not in (len(tokens_L) - 1, len(tokens_L)):
                raise InvalidRecordError(
                    f"{where}: {len(tokens_L)} tokens have {len(tokens_L) - 1} positions (or {len(tokens_L)} where the "
                    f"last token was cut off), got {positions}. Tokens and rows do not belong together: leave this row "
                    "out, or capture it again"
                )
            runs_R2 = np.array([[0, len(tokens_L)]])
            if masks is not None:
                mask_L = masks[0][masks[1][row] : masks[1][row + 1]]
                if len(mask_L) != len(tokens_L):
                    raise InvalidRecordError(
                        f"{where}: {_MASK} has {len(mask_L)} values for {len(tokens_L)} tokens; leave this row out"
                    )
                runs_R2 = _runs(mask_L)
            start = int(offsets[row])
            for number, (begin, end) in enumerate(runs_R2.tolist()):
                part = where if len(runs_R2) == 1 else f"{where}, document {number} of it"
                if (document := self._document(tokens_L, begin, end, logprobs_PB, ids_PB, start, part)) is not None:
                    yield document

    def _document(
        self,
        tokens_L: NDArray[np.int64],
        begin: int,
        end: int,
        logprobs_PB: NDArray[np.uint8],
        ids_PB: NDArray[np.uint8],
        start: int,
        where: str,
    ) -> TopKRows | None:
        """The document of tokens [begin, end) of a row whose positions begin at `start`; None where it has none."""
        if end - begin > 1 and self._pad_id is not None and tokens_L[end - 1] == self._pad_id:
            end -= 1
            self.skipped["added_pad_tokens"] += 1
        if end - begin < 2:
            self.skipped["documents_of_one_token"] += 1
            return None
        positions = slice(start + begin, start + end - 1)
        return TopKRows(
            token_ids_L=tokens_L[begin:end],
            ids_PK=self.config.ids(ids_PB[positions]),
            logprobs_PK=self.config.logprobs(logprobs_PB[positions]),
            where=where,
        )


def _runs(mask_L: NDArray[np.int64]) -> NDArray[np.int64]:
    """First token and end of the runs of equal numbers other than 0, [R, 2]."""
    edges = np.flatnonzero(np.diff(mask_L, prepend=np.nan, append=np.nan))
    runs_R2 = np.stack([edges[:-1], edges[1:]], axis=1)
    documents_R2: NDArray[np.int64] = runs_R2[mask_L[runs_R2[:, 0]] != 0]
    return documents_R2


def _numbers(batch: pa.RecordBatch, name: str, path: Path, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Values and row offsets of a list of integers."""
    column = batch.column(name)
    _require_no_nulls(column, name, path, first)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    values = column.flatten().cast(pa.int64()).to_numpy(zero_copy_only=False)
    return values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _bytes(
    batch: pa.RecordBatch, name: str, width: int, path: Path, first: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Bytes of each position, [P, width], and row offsets, of a list of lists of equal length."""
    column = batch.column(name)
    _require_no_nulls(column, name, path, first)
    positions = column.flatten()
    offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))]).astype(np.int64)
    widths_P = positions.value_lengths().to_numpy(zero_copy_only=False)
    if (wrong_P := widths_P != width).any():
        at = int(np.argmax(wrong_P))
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise InvalidRecordError(
            f"{path}: row {first + row}: position {at - int(offsets[row])} has {widths_P[at]} bytes in {name}, the "
            f"compression config says {width}. This config is another run's; name the right one with "
            "--compression-config"
        )
    values = positions.flatten().cast(pa.uint8()).to_numpy(zero_copy_only=False)
    return values.reshape(len(widths_P), width), offsets


def _require_no_nulls(column: Any, name: str, path: Path, first: int) -> None:
    if column.null_count:
        row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise InvalidRecordError(f"{path}: row {row} has no {name}; leave this row out, or capture it again")
