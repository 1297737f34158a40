"""Bytes per token of records cut from the pilot's, laid out and compressed by the cask's own code.

Shape legend: P positions, E head entries and N draws of the pilot, M masses to draw from, K draws made again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.cask.columns import assemble
from logitcask_schemas.cask.layout import LEVELS, RecordLayout
from logitcask_schemas.cask.zarr_metadata import ZSTD_LEVEL
from logitcask_schemas.identity import TeacherIdentity
from logitcask_schemas.manifest import CaskManifest
from logitcask_schemas.records import DocumentRecords, Records
from logitcask_services.capture.pilot.figures import Cut
from logitcask_services.capture.pilot.record import PilotRecords

_DOCUMENT_BYTES = 32 + 8
"""Id and checksum."""
_OFFSET_BYTES = 4
"""Per document and list column."""
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes per token."""

    arrow: float
    zarr: float


def layout_of(spec: CaptureSpec, vocab_size: int) -> RecordLayout:
    """The columns of a cask of this spec; they depend on nothing else."""
    teacher = TeacherIdentity(
        model="pilot",
        weights_digest=_NO_DIGEST,
        dtype="float32",
        vocab_size=vocab_size,
        tokenizer_fingerprint=_NO_DIGEST,
        engine="pilot",
        engine_version="1",
    )
    return RecordLayout.of(CaskManifest(teacher=teacher, capture=spec, created_by="pilot", created_at=""))


def arrow_bytes(pilot: PilotRecords, cut: Cut, layout: RecordLayout) -> float:
    """Per token, from the numbers of entries alone."""
    units = {
        "token": pilot.tokens,
        "position": pilot.positions,
        "head": int(cut.kept_E.sum()),
        "tail": int(cut.counts_P.sum()),
    }
    values = sum(units[column.level] * column.bytes_per_unit for column in layout.columns)
    per_document = _DOCUMENT_BYTES + _OFFSET_BYTES * len(layout.columns)
    return (values + per_document * len(pilot.documents)) / pilot.tokens


def arrow_error(pilot: PilotRecords, cut: Cut, layout: RecordLayout) -> float:
    """Standard error of `arrow_bytes` from the spread between documents; NaN where there is one alone."""
    if len(pilot.documents) < 2:
        return float("nan")
    per_unit = dict.fromkeys(LEVELS, 0)
    for column in layout.columns:
        per_unit[column.level] += column.bytes_per_unit
    positions_D = np.array([document.records.num_positions for document in pilot.documents])
    starts_D = np.cumsum(positions_D) - positions_D
    heads_P = np.bincount(pilot.head_rows_E[cut.kept_E], minlength=pilot.positions)
    entries_D = np.add.reduceat(heads_P * per_unit["head"] + cut.counts_P * per_unit["tail"], starts_D)
    # Of the ratio of entries' bytes to tokens; what is stored per token and position does not vary.
    residuals_D = entries_D - entries_D.sum() / pilot.tokens * (positions_D + 1)
    return float(np.sqrt(len(residuals_D) * np.var(residuals_D, ddof=1))) / pilot.tokens


def zarr_bytes(pilot: PilotRecords, spec: CaptureSpec, cut: Cut, layout: RecordLayout) -> float:
    """Per token, the columns of the cut records compressed one by one."""
    documents = list(cut_documents(pilot, spec, cut))
    columns = assemble(documents, [document.id for document in documents], layout)
    arrays = [columns.document_ids, columns.checksums, *(columns.offsets[level] for level in LEVELS)]
    arrays += [columns.arrays[column.name][0 : len(columns.arrays[column.name])] for column in layout.columns]
    codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
    packed = sum(len(codec.compress(np.ascontiguousarray(array).data, asbytes=True)) for array in arrays)
    return packed / pilot.tokens


def cut_documents(pilot: PilotRecords, spec: CaptureSpec, cut: Cut) -> Iterator[DocumentRecords]:
    """The documents' records at the cut, with draws made again from what the pilot knows of the tail."""
    value = np.float16 if spec.logprob_codec == "f16" else np.float32
    ids, logprobs = _drawn(pilot, spec, cut)
    head_ends = np.cumsum(np.bincount(pilot.head_rows_E[cut.kept_E], minlength=pilot.positions))
    tail_ends = np.cumsum(cut.counts_P)
    head_ids, head_logprobs = pilot.head_ids_E[cut.kept_E], pilot.head_logprobs_E[cut.kept_E]
    start = 0
    for document in pilot.documents:
        id_dtype = document.records.head_ids_H.dtype
        stop = start + document.records.num_positions
        head = slice(int(head_ends[start - 1]) if start else 0, int(head_ends[stop - 1]))
        tail = slice(int(tail_ends[start - 1]) if start else 0, int(tail_ends[stop - 1]))
        log_z = document.records.log_z_PT
        with np.errstate(divide="ignore"):
            log_tail_mass = np.log(cut.tail_mass_P[start:stop])
        records = Records(
            head_counts_P=np.diff(head_ends[start:stop], prepend=head.start).astype(np.uint8),
            head_ids_H=head_ids[head].astype(id_dtype),
            head_logprobs_H=head_logprobs[head].astype(value),
            tail_counts_P=cut.counts_P[start:stop].astype(np.uint8),
            tail_ids_N=ids[tail].astype(id_dtype),
            log_tail_mass_P=log_tail_mass.astype(value),
            entropy_P=document.records.entropy_P.astype(value),
            tail_logprobs_N=logprobs[tail].astype(value) if spec.tail_logprobs else None,
            # The pilot's own temperature comes last, unless the spec has it too.
            log_z_PT=log_z[:, : len(spec.temperatures)].astype(value)
            if log_z is not None and spec.temperatures
            else None,
        )
        yield DocumentRecords(token_ids_L=document.token_ids_L, records=records)
        start = stop


def _drawn(pilot: PilotRecords, spec: CaptureSpec, cut: Cut) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and log t of draws from head entries that the cut gives up and from the pilot's draws, ascending by id."""
    left_E = ~cut.kept_E
    rows_M = np.concatenate([pilot.head_rows_E[left_E], pilot.tail_rows_N])
    ids_M = np.concatenate([pilot.head_ids_E[left_E], pilot.tail_ids_N])
    logprobs_M = np.concatenate([pilot.head_logprobs_E[left_E], pilot.tail_logprobs_N])
    mass_M = np.concatenate([np.exp(pilot.head_logprobs_E[left_E]), pilot.draw_mass_N])
    order_M = np.lexsort((ids_M, rows_M))
    running_M = np.cumsum(mass_M[order_M])
    mass_P = np.bincount(rows_M, mass_M, minlength=pilot.positions)
    rows_K = np.repeat(np.arange(pilot.positions), cut.counts_P)
    step_K = np.arange(len(rows_K)) - (np.cumsum(cut.counts_P) - cut.counts_P)[rows_K]
    random = np.random.default_rng(spec.seed)
    if spec.sampler == "multinomial":
        within_K = random.random(len(rows_K))
        within_K = within_K[np.lexsort((within_K, rows_K))]
    else:
        within_K = (random.random(pilot.positions)[rows_K] + step_K) / cut.counts_P[rows_K]
    before_P = np.cumsum(mass_P) - mass_P
    points_K = before_P[rows_K] + within_K * mass_P[rows_K]
    # The running sums over all positions differ in the last bits; a point on the edge stays in its own position.
    ends_P = np.cumsum(np.bincount(rows_M, minlength=pilot.positions))
    starts_P = ends_P - np.bincount(rows_M, minlength=pilot.positions)
    found_K = np.clip(np.searchsorted(running_M, points_K, side="right"), starts_P[rows_K], ends_P[rows_K] - 1)
    return ids_M[order_M][found_K], logprobs_M[order_M][found_K]
