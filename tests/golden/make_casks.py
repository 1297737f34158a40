"""Makes the golden casks: `python tests/golden/make_casks.py [NAME ...]` with the packages importable.

Only for a new version, or with the names of new cases.

Values are plain arithmetic, exact in float16, so that no generator or platform has a say in the bytes; they are no
distributions.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.directory import write_manifest
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.format.packed.rank_table import RankTable
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Context, Extent
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords, Records

HERE = Path(__file__).parent
WIDE = CaptureSpec(tau=0.05, logprob_codec="f32", tail_logprobs=True, temperatures=(2.0, 4.0), pinned_ids=(1,), seed=7)
CASES: dict[str, tuple[int, CaptureSpec, str]] = {
    "cask-v1-u16-f16": (49_152, CaptureSpec(tau=0.05), "arrow"),
    "cask-v1-u24-f32": (262_144, WIDE, "arrow"),
    "cask-v1-u8": (49_152, CaptureSpec(tau=0.05, logprob_codec="u8", tail_logprobs=True, seed=7), "arrow"),
    "cask-v1-zarr": (262_144, WIDE, "zarr"),
    "cask-v1-parquet": (262_144, WIDE, "parquet"),
    "cask-v1-answers": (49_152, CaptureSpec(tau=0.05), "arrow"),
    "cask-v1-answers-zarr": (49_152, CaptureSpec(tau=0.05), "zarr"),
    "cask-v1-answers-parquet": (49_152, CaptureSpec(tau=0.05), "parquet"),
    "cask-v2-extents": (49_152, CaptureSpec(tau=0.05), "arrow"),
    "cask-v2-extents-zarr": (262_144, WIDE, "zarr"),
    "cask-v2-extents-parquet": (262_144, WIDE, "parquet"),
    "cask-v1-hints-f16": (49_152, CaptureSpec(tau=0.05, hints=HintSpec(layers=(0, 3))), "arrow"),
    "cask-v1-hints-i8": (49_152, CaptureSpec(tau=0.05, hints=HintSpec(layers=(2, 5, 6), codec="i8")), "parquet"),
    "cask-v1-hints-proj": (
        49_152,
        CaptureSpec(tau=0.05, hints=HintSpec(layers=(1, 2), of="v", codec="proj:4", positions="last", seed=3)),
        "arrow",
    ),
    "cask-v3-packed": (49_152, CaptureSpec(tau=0.05, logprob_codec="u8all", tail_logprobs=True, seed=7), "packed"),
    "cask-v3-packed-extents": (262_144, WIDE, "packed"),
}
SHARDS = ((2, 5, 12), (3,))
"""Lengths of the documents of each shard."""
ANSWERS = {2: [], 5: None, 12: [[3, 6], [6, 7], [10, 12]], 3: None}
"""By length, of the cases that say: none, not said, some; no document of the second shard says."""


EXTENTS: dict[int, tuple[list[int] | None, list[int] | None]] = {
    2: (None, None),
    5: ([1, 2], None),
    12: ([0, 1, 4, 8, 9, 10], [7, 8, 9]),
    3: (None, [300]),
}
"""By length, of the cases of version 2: positions with records, None for all, and the tokens before the document."""


def document(length: int, vocab_size: int, spec: CaptureSpec) -> DocumentRecords:
    positions = length - 1
    ids = np.uint16 if vocab_size <= 65_536 else np.uint32
    value = {"f16": np.float16, "f32": np.float32, "u8": np.float32, "u8all": np.float32}[spec.logprob_codec]
    head_counts = (1 + np.arange(positions) % 4).astype(np.uint8)
    tail_counts = (np.arange(positions) % 3).astype(np.uint8)
    heads, draws = int(head_counts.sum()), int(tail_counts.sum())

    def spread(count: int, salt: int) -> Any:
        return ((np.arange(count, dtype=np.int64) * 7919 + 104_729 * salt * length) % vocab_size).astype(ids)

    token_ids, head_ids, tail_ids = spread(length, 1), spread(heads, 2), spread(draws, 3)
    head_ids[np.cumsum(head_counts, dtype=np.int64) - 1] = token_ids[1:]
    tail_ids = tail_ids[np.lexsort((tail_ids, np.repeat(np.arange(positions), tail_counts)))]

    def eighths(count: int, salt: int) -> Any:
        return (-2 - ((np.arange(count) + salt) % 64) / 8).astype(value)

    log_tail_mass = eighths(positions, 3)
    log_tail_mass[tail_counts == 0] = -np.inf
    temperatures = len(spec.temperatures)
    return DocumentRecords(
        token_ids_L=token_ids,
        records=Records(
            head_counts_P=head_counts,
            head_ids_H=head_ids,
            head_logprobs_H=eighths(heads, 1),
            tail_counts_P=tail_counts,
            tail_ids_N=tail_ids,
            position_columns={
                "log_tail_mass": log_tail_mass,
                "entropy": -eighths(positions, 5),
                **({"log_z": -eighths(positions * temperatures, 2).reshape(positions, -1)} if temperatures else {}),
            },
            tail_logprobs_N=eighths(draws, 9) if spec.tail_logprobs else None,
        ),
    )


def answers(document: DocumentRecords) -> Any:
    ranges = ANSWERS[len(document.token_ids_L)]
    return None if ranges is None else np.array(ranges, dtype=np.uint32).reshape(-1, 2)


HINT_WIDTH = 70
"""More than one group of channels of codec i8."""


def hint_values(whole: DocumentRecords, spec: HintSpec) -> Any:
    """Eighths, [R, K, D], of which a few channels stand out; sums of them are exact in float32."""
    rows, layers = spec.num_rows(whole.records.num_positions), len(spec.layers)
    numbers = np.arange(rows * layers * HINT_WIDTH, dtype=np.int64) * 7919 + 104_729 * len(whole.token_ids_L)
    values = ((numbers % 199 - 99) / 8).astype(np.float32).reshape(rows, layers, HINT_WIDTH)
    values[:, 0, 5], values[:, 0, 66] = 25_800, -70_000
    return values


def with_hints(whole: DocumentRecords, spec: HintSpec) -> DocumentRecords:
    return replace(whole, hints=HintRows.encode(hint_values(whole, spec), spec))


def with_extent(whole: DocumentRecords) -> DocumentRecords:
    positions, context_ids = EXTENTS[len(whole.token_ids_L)]
    keep_P = (
        np.isin(np.arange(whole.records.num_positions), positions)
        if positions
        else np.ones(whole.records.num_positions, dtype=np.bool_)
    )
    context = Context.of(np.array(context_ids, dtype=np.uint32)) if context_ids else None
    return replace(whole, records=whole.records.select(keep_P), extent=Extent.of_mask(keep_P, context))


def make_cask(path: Path, name: str) -> list[DocumentRecords]:
    """Write one golden cask, with a fixed time of creation; returns its documents."""
    vocab_size, spec, carrier = CASES[name]
    teacher = TeacherIdentity(
        model="golden",
        weights_digest="0" * 64,
        dtype="float32",
        vocab_size=vocab_size,
        tokenizer_fingerprint="1" * 64,
        engine="transformers",
        engine_version="5",
    )
    path.mkdir()
    version: Any = int(name[len("cask-v")])
    # Of 64 ids that follow one another the last occurred most often.
    counts = np.arange(vocab_size) % 64 * 1000
    ranks = RankTable.fitted(counts, teacher.tokenizer_fingerprint) if version == 3 else None
    manifest = CaskManifest(
        version=version,
        teacher=teacher,
        capture=spec,
        created_by="make_casks.py",
        created_at="2026-01-01T00:00:00+00:00",
        rank_table=ranks,
    )
    write_manifest(LocalFiles(), path, manifest)
    documents = [[document(length, vocab_size, spec) for length in lengths] for lengths in SHARDS]
    if "answers" in name:
        documents = [
            [replace(document, answer_ranges_R2=answers(document)) for document in shard] for shard in documents
        ]
    if "extents" in name:
        documents = [[with_extent(document) for document in shard] for shard in documents]
    if spec.hints is not None:
        documents = [[with_hints(document, spec.hints) for document in shard] for shard in documents]
    writer = CaskWriter.create(path, teacher=teacher, capture=spec, carrier=carrier)
    writer.publish(documents[0])
    writer.close()
    writer.publish(documents[1])  # stays out of the index, so that readers must look at entry files too
    (path / "cask.lock").unlink()
    return [document for shard in documents for document in shard]


def as_json(document: DocumentRecords) -> dict[str, Any]:
    """A document's columns as plain lists; -inf as a string, which JSON lacks."""
    columns: dict[str, Any] = {"id": document.id.hex(), "token_ids": document.token_ids_L.tolist()}
    for field in Records.__dataclass_fields__:
        if (column := getattr(document.records, field)) is not None and field != "position_columns":
            columns[field.rpartition("_")[0]] = column.tolist()
    columns |= {name: values.tolist() for name, values in document.records.position_columns.items()}
    if document.answer_ranges_R2 is not None:
        columns["answers"] = document.answer_ranges_R2.reshape(-1).tolist()
    if document.extent.recorded_R2 is not None:
        columns["recorded"] = document.extent.recorded_R2.reshape(-1).tolist()
    if (context := document.extent.context) is not None:
        columns["context"] = [context.length, *np.frombuffer(context.digest, dtype="<u4").tolist()]
    return columns


def main(names: list[str]) -> None:
    for name in names:
        shutil.rmtree(HERE / name, ignore_errors=True)
        make_cask(HERE / name, name)
        # As read: codec u8 rounds what it is given.
        cask = Cask.open(HERE / name)
        documents = [as_json(cask.read(number)) for number in range(len(cask))]
        text = json.dumps(sorted(documents, key=lambda columns: columns["id"]), indent=1)
        (HERE / f"{name}.expected.json").write_text(text.replace("-Infinity", '"-inf"') + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
