"""A cask as Parquet files of target rows, for trainers that read tables: K ids and K weights per token.

The files lie in a folder, one for each shard of the cask, beside a README.md that tells the Hub and `datasets` what
they are. The folder is made under a hidden name beside its own, each file appears there whole, and it gets its name
when all are there: a folder of that name is complete. Stopped early, the next run goes on after the files that it
finds.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.cask.batches import collate
from logitcask_schemas.cask.exchange.hub_card import heading_name
from logitcask_schemas.cask.exchange.row_schema import FORMS, NO_LABEL, RowBlock, row_batch, row_schema
from logitcask_schemas.cask.exchange.target_table import TargetEntries
from logitcask_schemas.cask.format.codec_u8 import random_words
from logitcask_schemas.cask.format.layout import LOCK_NAME
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.files import LocalFiles, clear_errors, publish_file, publish_path
from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.errors import (
    CaskCorruptionError,
    CaskError,
    DocumentMismatchError,
    InvalidRecordError,
    OptionError,
)
from logitcask_schemas.record.extent import document_id, spread
from logitcask_schemas.terminal import installed_version

SETTINGS_NAME: Final = "rows.json"
_README_NAME: Final = "README.md"
_STREAM: Final = 0x726F7773
"""Of random words: "rows". Far from those of the codec and of the draws of capture, which share the generator."""
_BLOCK_SLOTS: Final = 1 << 22
"""Slots of a block of documents, which becomes a row group: 32 MiB of ids and weights."""
_SUM_ERROR: Final = 1e-6
"""By which the weights of a position may miss 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """What the rows are to be."""

    width: int
    """K, from 1."""
    form: str = "rows"
    """A name of `row_schema.FORMS`."""
    seed: int = 0
    """Of the draws at positions with more than K ids."""
    answers_only: bool = False
    """Whether tokens outside the answers weigh nothing."""
    renormalize: bool = False
    """Whether a cask of mode `topk` is taken, with its head renormalised to 1."""

    def __post_init__(self) -> None:
        """Raise OptionError where they cannot be meant."""
        if self.form not in FORMS:
            raise OptionError(f"form of rows: expected one of {', '.join(FORMS)}, got {self.form!r}")
        if not 1 <= self.width <= 1 << 16:
            raise OptionError(f"slots per token: expected 1 to 65,536, got {self.width}")
        if not 0 <= self.seed < 1 << 64:
            raise OptionError(f"seed of rows: expected 0 to 2**64 - 1, got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStep:
    """One shard of the source, now a file of rows."""

    name: str
    """Of the file."""
    bytes: int
    skipped: bool
    """Whether an earlier run had made it."""


def largest_width(cask: Cask, progress: Callable[[int], None] | None = None) -> int:
    """The most distinct ids that a position of the cask has: with so many slots nothing needs to be drawn.

    Args:
        cask: Every shard of it is read.
        progress: Called with the bytes of every shard that is done.
    """
    largest = 1
    for number, entry in enumerate(cask.entries):
        shard = cask.shard(number)
        for rows in _blocks(shard, 64):
            records = collate([(shard, row) for row in rows], cask.layout).records
            entries = TargetEntries.of(records, sampled_tail=_samples(cask.manifest))
            largest = max(largest, int(entries.counts_P.max(initial=1)))
        if progress is not None:
            progress(entry.bytes)
    return largest


def export_rows(cask: Cask, folder: Path, options: RowOptions) -> Generator[RowStep, None, None]:
    """Write the rows of every document of a cask.

    Args:
        cask: An open cask.
        folder: A new folder, or one whose rows an earlier run did not finish.
        options: What the rows are to be. An unfinished run goes on only with the same.

    Yields:
        One step per shard, when its file is durable; the folder gets its name after the last.

    Raises:
        CaskError: The folder is there already, its unfinished form has other rows, or the cask has no draws or no
            documents.
        CaskCorruptionError, CaskNotFoundError: A shard of the cask is damaged or missing.
        DocumentMismatchError: With `answers_only`, a document does not say which of its tokens are answers.
        InvalidRecordError: The weights of a position do not add up to 1.
        CaskLockedError: Another process writes these rows.
        CaskWriteError: The disk refuses.
    """
    if not _samples(cask.manifest) and not options.renormalize:
        raise CaskError(
            f"{cask.place}: capture mode {cask.manifest.capture.mode!r} keeps no draws of the tail, so no weights of "
            "its ids expect the teacher's distribution. Capture in mode threshold; or ask for the head renormalised "
            "to 1 (--renormalize), which is biased"
        )
    if not cask.entries:
        raise CaskError(f"{cask.place}: has no documents, so there are no rows to write. Capture some first")
    settings = _settings(cask, options)
    if folder.exists() or folder.is_symlink():
        raise CaskError(f"{folder}: is there already. Name a new folder, or remove it to make the rows again")
    unfinished = folder.parent / f".{folder.name}.unfinished"
    with clear_errors(unfinished):
        unfinished.mkdir(parents=True, exist_ok=True)
    with writers_lock(unfinished, holder=secrets.token_hex(8), timeout_seconds=0.0):
        _require_same_rows(unfinished, settings)
        schema = row_schema(options.form, options.width, {"logitcask.rows": settings})
        for number, entry in enumerate(cask.entries):
            path = unfinished / f"train-{entry.name}.parquet"
            skipped = path.exists()
            if not skipped:
                _publish_rows(cask, number, path, schema, options)
            yield RowStep(name=path.name, bytes=path.stat().st_size, skipped=skipped)
        _publish_text(unfinished, _README_NAME, _readme(cask, options))
        with clear_errors(folder.parent):
            (unfinished / LOCK_NAME).unlink()
            publish_path(unfinished, folder)


def _samples(manifest: CaskManifest) -> bool:
    return manifest.capture.mode != "topk"


def _settings(cask: Cask, options: RowOptions) -> str:
    """What decides the bytes of the rows."""
    names = hashlib.sha256("".join(entry.name for entry in cask.entries).encode()).hexdigest()
    source = {"identity": cask.manifest.identity_digest(), "shards": names, "documents": len(cask)}
    return json.dumps({"cask": source, "rows": asdict(options), "created_by": f"logitcask {installed_version()}"})


def _require_same_rows(unfinished: Path, settings: str) -> None:
    """Note in a new folder what its rows are; prove of one that is there that it was begun for the same."""
    path = unfinished / SETTINGS_NAME
    with clear_errors(unfinished):
        begun = path.read_text() if path.exists() else None
    if begun is None:
        _publish_text(unfinished, SETTINGS_NAME, settings)
    elif begun != settings:
        raise CaskError(
            f"{unfinished}: an earlier run began other rows there: {begun}, now asked for: {settings}. Ask for the "
            "same to go on, or remove that folder"
        )


def _publish_text(folder: Path, name: str, text: str) -> None:
    def write(file: BinaryIO) -> str:
        file.write(text.encode())
        return name

    publish_file(LocalFiles(), folder, write)


def _publish_rows(cask: Cask, number: int, path: Path, schema: Any, options: RowOptions) -> None:
    # Importing Parquet takes 30 ms, which `logitcask --help` need not pay.
    import pyarrow.parquet as pq

    def write(file: BinaryIO) -> str:
        shard, sink = cask.shard(number), pa.PythonFile(file, mode="w")
        with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
            for rows in _blocks(shard, options.width):
                block = _row_block(cask, shard, rows, options)
                writer.write_batch(row_batch(block, schema, options.form, options.width))
        return path.name

    publish_file(LocalFiles(), path.parent, write)


def _blocks(shard: Shard, width: int) -> Iterator[range]:
    """Rows of a shard, so many at a time that their table stays small; one document at least."""
    offsets, first = shard.token_offsets, 0
    while first < shard.num_documents:
        stop = int(np.searchsorted(offsets, int(offsets[first]) + _BLOCK_SLOTS // width, side="right")) - 1
        yield range(first, max(stop, first + 1))
        first = max(stop, first + 1)


def _row_block(cask: Cask, shard: Shard, rows: Sequence[int], options: RowOptions) -> RowBlock:
    batch = collate([(shard, row) for row in rows], cask.layout)
    token_ids_L, starts_D1 = batch.token_ids_L.astype(np.int32), batch.token_offsets_B1
    _prove_identities(shard, rows, batch.token_ids_L, starts_D1)
    counts_D = np.diff(batch.position_offsets_B1)
    slots_P = batch.slots_P if batch.slots_P is not None else spread(np.stack([0 * counts_D, counts_D], axis=1))
    token_P = np.repeat(starts_D1[:-1], counts_D) + slots_P
    """Number of the token whose logits a position describes; it predicts the next one."""
    is_answer_L = _answer_tokens(shard, rows, starts_D1, options.answers_only)
    entries = TargetEntries.of(batch.records, sampled_tail=_samples(cask.manifest))
    _require_sums(shard, rows, entries, batch.position_offsets_B1)
    uniform_P = np.zeros(len(token_P))
    if entries.counts_P.max(initial=0) > options.width:
        uniform_P = _uniforms(shard, rows, options.seed, starts_D1)[token_P]
    ids_PK, weights_PK = entries.reduced(options.width, uniform_P).table(options.width)
    if options.answers_only:
        weights_PK[~is_answer_L[token_P + 1]] = 0.0
    ids_LK = np.zeros((len(token_ids_L), options.width), dtype=np.int32)
    weights_LK = np.zeros((len(token_ids_L), options.width), dtype=np.float32)
    ids_LK[token_P], weights_LK[token_P] = ids_PK, weights_PK
    labels_L = np.full(len(token_ids_L), NO_LABEL, dtype=np.int32)
    trained = token_P[is_answer_L[token_P + 1]] + 1
    labels_L[trained] = token_ids_L[trained]
    return RowBlock(
        document_ids=[shard.document_ids[row].tobytes().hex() for row in rows],
        token_offsets_D1=starts_D1.astype(np.int32),
        token_ids_L=token_ids_L,
        labels_L=labels_L,
        target_ids_LK=ids_LK,
        target_weights_LK=weights_LK,
    )


def _prove_identities(
    shard: Shard, rows: Sequence[int], token_ids_L: NDArray[Any], starts_D1: NDArray[np.int64]
) -> None:
    for number, row in enumerate(rows):
        computed = document_id(token_ids_L[starts_D1[number] : starts_D1[number + 1]], shard.extent(row))
        if computed != (stored := shard.document_ids[row].tobytes()):
            raise CaskCorruptionError(
                f"{shard.path}: document {row} is stored as {stored.hex()}, its tokens give {computed.hex()}. "
                "Run `logitcask cask verify`."
            )


def _answer_tokens(
    shard: Shard, rows: Sequence[int], starts_D1: NDArray[np.int64], required: bool
) -> NDArray[np.bool_]:
    """Whether each token belongs to an answer, [L]; True in documents of which nobody knows."""
    is_answer_L = np.ones(starts_D1[-1], dtype=np.bool_)
    for number, row in enumerate(rows):
        ranges_R2 = shard.answer_ranges(row)
        if ranges_R2 is not None:
            start, stop = starts_D1[number : number + 2]
            is_answer_L[start:stop] = False
            is_answer_L[start + spread(ranges_R2.astype(np.int64))] = True
        elif required:
            raise DocumentMismatchError(
                f"{shard.path}: document {row} ({shard.document_ids[row].tobytes().hex()[:16]}) does not say which of "
                "its tokens are answers, and only answers are asked for. Capture it from messages, or leave out "
                "--answers-only"
            )
    return is_answer_L


def _require_sums(shard: Shard, rows: Sequence[int], entries: TargetEntries, offsets_D1: NDArray[np.int64]) -> None:
    wrong = np.flatnonzero(np.abs(entries.sums_P - 1.0) > _SUM_ERROR)
    if len(wrong):
        number = int(np.searchsorted(offsets_D1, wrong[0], side="right")) - 1
        raise InvalidRecordError(
            f"{shard.path}: document {rows[number]}, record {int(wrong[0] - offsets_D1[number])}: the weights of its "
            f"ids should add up to 1, they give {entries.sums_P[wrong[0]]:.6g}. Run `logitcask cask verify`; if that "
            "finds nothing, the document was captured wrongly: capture it again"
        )


def _uniforms(shard: Shard, rows: Sequence[int], seed: int, starts_D1: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for every token, from seed, document and place alone, [L]."""
    lengths = np.diff(starts_D1).tolist()
    words = [
        random_words(seed, shard.document_ids[row].tobytes(), _STREAM, length)
        for row, length in zip(rows, lengths, strict=True)
    ]
    return (np.concatenate(words).astype(np.float64) + 0.5) * 2.0**-32


def _readme(cask: Cask, options: RowOptions) -> str:
    teacher = cask.manifest.teacher
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: "train-*.parquet"
---

# What {heading_name(teacher.model)} said about {len(cask):,} documents

Rows of `logitcask cask rows`, form `{options.form}`, {options.width} slots per token, made from a cask with identity
`{cask.manifest.identity_digest()}` and tokenizer fingerprint `{teacher.tokenizer_fingerprint}`.

`input_ids` and `labels` have L values per document, the targets L rows of {options.width}. Row i of the targets
belongs to the logits at token i and is the teacher's distribution of token i + 1: do not shift it. Weights of a row add
up to 1, or are all 0 where the teacher's distribution is not known (the last token among them) or not wanted.
"""
