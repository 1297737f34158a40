"""Copying a cask as packed records: with a rank table fitted on it, and every value in one byte.

A source whose values take more than a byte is rounded at random and without bias, as capture with codec `u8all` has it;
its copy is a cask of another capture spec, so its shards have other names and another identity. The rounding
depends on seed, document and column alone, so a second copy is the same as the first.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.packed import PackedCarrier
from logitcask_schemas.cask.carriers.registry import carrier_named
from logitcask_schemas.cask.format.codec_u8 import encode_u8
from logitcask_schemas.cask.format.columns import ShardColumns, document_checksum, document_slices, join_planes
from logitcask_schemas.cask.format.layout import HIGH_SUFFIX, LEVELS, RecordLayout
from logitcask_schemas.cask.format.manifest import CaskManifest, version_for
from logitcask_schemas.cask.format.packed.rank_table import RankTable
from logitcask_schemas.cask.format.packed.streams import ID_COLUMNS
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_publication import write_hints
from logitcask_schemas.cask.publication import write_shard
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.transfer.export import ExportStep, export_cask, prove, require_another_place
from logitcask_schemas.cask.transfer.targets import ExportTarget
from logitcask_schemas.errors import CaskError

CODEC: Final = "u8all"
"""Of packed copies."""
_SAMPLED_SHARDS: Final = 16
"""Looked at for the rank table, at equal distances."""


def export_packed(source: Cask, target: ExportTarget) -> Iterator[ExportStep]:
    """Bring every shard of a cask into a target as packed records, every document proved on the way.

    A source that has a rank table and codec `u8all` keeps both, and its shards their names; so packed records that were
    copied flat and are packed again are the same files. Otherwise a copy that was cut short is made anew, shard by
    shard.

    Args:
        source: An open cask.
        target: An empty one, or one in which an earlier copy of this source did not finish.

    Yields:
        One step per shard, after it is durable.

    Raises:
        CaskError: The target holds shards that no earlier copy of this source left there, or the records were imported.
        IdentityMismatchError: The target is a cask of another teacher, spec or rank table.
        CaskCorruptionError, CaskNotFoundError: A shard of the source is damaged or missing.
        CaskWriteError, CaskLockedError: As `export_cask`.
    """
    if source.manifest.rank_table is not None and source.manifest.capture.logprob_codec == CODEC:
        yield from export_cask(source, target, PackedCarrier.name)
        return
    require_another_place(source, target)
    if source.manifest.capture.imported:
        raise CaskError(
            f"{source.place}: records that another tool made cannot be packed, as a head may lack the next token. "
            "Export them as they are, with --carrier zarr for the least room."
        )
    manifest = packed_manifest(source)
    with target:
        there = target.prepare(manifest)
        done = []
        for number, entry in enumerate(source.entries):
            shard = source.shard(number)
            prove(shard)
            # An earlier copy went through the same shards in the same order, and came as far as there are shards.
            expected = there.keys() if number < len(there) else None
            written = _packed(source, number, target, manifest, expected)
            done.append(written)
            yield ExportStep(source=entry, target=written, skipped=False)
        names = [entry.name for entry in done]
        target.finish(
            sorted(done, key=lambda entry: entry.name), dict(zip(names, source.shard_documents(), strict=True))
        )


def packed_manifest(source: Cask) -> CaskManifest:
    """The manifest of a packed copy: the source's with codec `u8all`, and a rank table where it has none."""
    stored = source.manifest
    capture = stored.capture.model_copy(update={"logprob_codec": CODEC})
    table = stored.rank_table or RankTable.fitted(id_counts(source), stored.teacher.tokenizer_fingerprint)
    return CaskManifest(
        version=version_for(capture, table),
        teacher=stored.teacher,
        capture=capture,
        created_by=stored.created_by,
        created_at=stored.created_at,
        rank_table=table,
    )


def id_counts(source: Cask) -> NDArray[np.int64]:
    """How often each id occurs in some shards of a cask, as a token, in heads and as a draw, [V]."""
    vocab_size = source.manifest.teacher.vocab_size
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for number in range(0, len(source.entries), -(-len(source.entries) // _SAMPLED_SHARDS) or 1):
        arrays = source.shard(number).columns.arrays
        for name in ID_COLUMNS:
            ids = arrays[name][0 : len(arrays[name])]
            if source.layout.wide_ids:
                ids = join_planes(ids, arrays[name + HIGH_SUFFIX][0 : len(ids)])
            # Ids beyond the vocabulary are damage, which is told when their shard is proved.
            counts_V += np.bincount(ids, minlength=vocab_size)[:vocab_size]
    return counts_V


def converted(columns: ShardColumns, source: RecordLayout, target: RecordLayout) -> ShardColumns:
    """The columns of a shard as a cask with the same columns and another codec stores them.

    Args:
        columns: Proved documents.
        source: Their layout.
        target: The other cask's. Values that it stores as codes are rounded at random, others to the nearest.
    """
    if source.coded == target.coded:
        return columns
    arrays: dict[str, NDArray[Any]] = {}
    ids = [identity.tobytes() for identity in columns.document_ids]
    for column in target.columns:
        values = columns.arrays[column.name]
        cut = columns.offsets[column.level].tolist()
        if column.name in target.coded - source.coded:
            codes = [
                encode_u8(values[cut[row] : cut[row + 1]], column=column.name, seed=target.seed, document_id=identity)
                for row, identity in enumerate(ids)
            ]
            arrays[column.name] = np.concatenate(codes)
        else:
            arrays[column.name] = values[0 : cut[-1]].astype(column.dtype, copy=False)
    sizes_D4 = np.stack([np.diff(columns.offsets[level]) for level in LEVELS], axis=1).tolist()
    checksums = [
        document_checksum(identity, sizes_D4[row], document_slices(arrays, columns.offsets, target, row, columns.lists))
        for row, identity in enumerate(ids)
    ]
    return replace(columns, arrays=arrays, checksums=np.array(checksums, dtype=np.uint64))


def _packed(
    source: Cask, number: int, target: ExportTarget, manifest: CaskManifest, expected: Collection[str] | None
) -> ShardEntry:
    """Publish a shard's packed copy; nothing, and CaskError, where its name is not one of the expected."""
    carrier, layout, identity = carrier_named(PackedCarrier.name), RecordLayout.of(manifest), manifest.identity_digest()
    shard = source.shard(number)
    columns = converted(source.columns_with_hints(number), shard.layout, layout)
    # Columns that stay what they are keep the shard's name, which is taken from them.
    name = shard.entry.name if shard.entry.identity == identity else None

    def write(file: BinaryIO) -> ShardEntry:
        entry = write_shard(carrier, columns, layout, identity, file, name=name)
        if expected is not None and entry.name not in expected:
            raise CaskError(
                f"the destination holds {len(expected)} shards, none of which is the packed copy of {shard.path}, so "
                "they were made from another cask. Name an empty folder."
            )
        return entry

    spec = manifest.capture.hints
    if columns.hints is None or spec is None:
        return target.publish(carrier, write)
    # Written anew, as the file says which cask it belongs to.
    return target.publish(carrier, write, lambda file, entry: write_hints(file, entry, columns, spec))
