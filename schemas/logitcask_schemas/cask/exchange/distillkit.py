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
import pyarrow.compute as pc
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
_LISTS: Final = {_TOKENS: 1, _LOGPROBS: 2, _IDS: 2, _MASK: 1}
"""Columns, and how deep their lists are."""
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
        self.skipped: dict[str, int] = {"added_pad_tokens": 0, "documents_of_one_token": 0, "rows_of_padding": 0}

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
        for batch, size in _batches(path):
            documents = list(self._documents_in(path, first, batch))
            first += batch.num_rows
            for document in documents:
                yield document, size / len(documents)

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
                self.skipped["rows_of_padding"] += len(runs_R2) == 0
            start = int(offsets[row])
            for number, (begin, end) in enumerate(runs_R2.tolist()):
                part = where if len(runs_R2) == 1 else f"{where}, document {number} of it"
                if (document := self._document(tokens_L, begin, end, logprobs_PB, ids_PB, start, part)) is not None:
                    yield document

    def _document(
        self,
        tokens_L: NDArray[np.integer[Any]],
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


def _runs(mask_L: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """First token and end of the runs of equal numbers other than 0, [R, 2]."""
    changes = np.flatnonzero(mask_L[1:] != mask_L[:-1]) + 1
    edges = np.unique(np.concatenate([[0], changes, [len(mask_L)]])).astype(np.int64)
    runs_R2 = np.stack([edges[:-1], edges[1:]], axis=1)
    documents_R2: NDArray[np.int64] = runs_R2[mask_L[runs_R2[:, 0]] != 0]
    return documents_R2


def _batches(path: Path) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Rows of a file, a few at a time, with the bytes they take, about; their columns have the types of the format."""
    first = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow)
            bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                yield batch, bytes_per_row * batch.num_rows
                first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CaskError(
            f"{path}: row {first} or later cannot be read: {error}. DistillKit leaves a file without its end where "
            "it was stopped: take such a file away, or capture it again"
        ) from error


def _columns(path: Path, schema: pa.Schema) -> list[str]:
    """The names to read."""
    names = schema.names
    if lacking := [name for name in _LISTS if name not in names and name != _MASK]:
        raise CaskError(
            f"{path} lacks the columns {', '.join(lacking)}; it has {', '.join(names)}. Only the compressed form "
            f"that DistillKit writes since 2025 ({_TOKENS}, {_LOGPROBS}, {_IDS}) can be taken over"
        )
    columns = [name for name in _LISTS if name in names]
    for name in columns:
        if names.count(name) > 1:
            raise CaskError(f"{path} has {names.count(name)} columns {name}, expected one")
        kind: Any = schema.field(name).type
        for _ in range(_LISTS[name]):
            kind = kind.value_type if _is_list(kind) else None
        if kind is None or not (pa.types.is_integer(kind) or (name == _MASK and pa.types.is_boolean(kind))):
            expected = "list of lists of bytes" if _LISTS[name] > 1 else "list of integers"
            raise CaskError(
                f"{path}: column {name} is of type {schema.field(name).type!s:.80}, expected {expected}; only the "
                "compressed form that DistillKit writes since 2025 can be taken over"
            )
    return columns


def _is_list(kind: Any) -> bool:
    return kind is not None and (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _numbers(
    batch: pa.RecordBatch, name: str, path: Path, first: int
) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64]]:
    """Values and row offsets of a list of integers."""
    values, offsets = _unfolded(batch.column(name), name, path, first)
    if values.null_count:
        row, token = _place(_first_null(values), offsets)
        raise InvalidRecordError(
            f"{path}: row {first + row}: token {token} has no {name}; leave this row out, or capture it again"
        )
    return values.to_numpy(zero_copy_only=False), offsets


def _bytes(
    batch: pa.RecordBatch, name: str, width: int, path: Path, first: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Bytes of each position, [P, width], and row offsets, of a list of lists of equal length."""
    positions, offsets = _unfolded(batch.column(name), name, path, first)

    def position(at: int) -> str:
        row, number = _place(at, offsets)
        return f"{path}: row {first + row}: position {number}"

    if positions.null_count:
        raise InvalidRecordError(
            f"{position(_first_null(positions))} has no {name}; leave this row out, or capture it again"
        )
    widths_P = pc.list_value_length(positions).to_numpy(zero_copy_only=False)
    if (wrong_P := widths_P != width).any():
        at = int(np.argmax(wrong_P))
        raise InvalidRecordError(
            f"{position(at)} has {widths_P[at]} bytes in {name}, the compression config says {width}. This config is "
            "another run's; name the right one with --compression-config"
        )
    values = positions.flatten()
    if values.null_count:
        at, byte = divmod(_first_null(values), width)
        raise InvalidRecordError(
            f"{position(at)} has no byte {byte} in {name}; leave this row out, or capture it again"
        )
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype != np.uint8 and (wrong := (numbers < 0) | (numbers > 255)).any():
        at, byte = divmod(int(np.argmax(wrong)), width)
        raise InvalidRecordError(
            f"{position(at)} has {numbers[at * width + byte]} as byte {byte} of {name}, expected 0 to 255; leave this "
            "row out, or capture it again"
        )
    return numbers.astype(np.uint8, copy=False).reshape(len(widths_P), width), offsets


def _unfolded(column: Any, name: str, path: Path, first: int) -> tuple[Any, NDArray[np.int64]]:
    """The elements of a column of lists, one after the other, and where the rows begin and end among them."""
    if column.null_count:
        row = first + _first_null(column)
        raise InvalidRecordError(f"{path}: row {row} has no {name}; leave this row out, or capture it again")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    return column.flatten(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _first_null(column: Any) -> int:
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))


def _place(at: int, offsets: NDArray[np.int64]) -> tuple[int, int]:
    """Row, and number in it, of an element."""
    row = int(np.searchsorted(offsets, at, side="right")) - 1
    return row, at - int(offsets[row])
