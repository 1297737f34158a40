"""Bytes per token of records cut from the pilot's, laid out and compressed by the cask's own code.

Shape legend: P positions, E head entries and N draws of the pilot, M masses to draw from, K draws made again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.zarr import ZSTD_LEVEL
from logitcask_schemas.cask.format.columns import assemble
from logitcask_schemas.cask.format.layout import LEVELS, Level, RecordLayout
from logitcask_schemas.record.capture_spec import NEGLIGIBLE_MASS, CaptureSpec
from logitcask_schemas.record.position_columns import PositionColumn, stored_columns
from logitcask_schemas.record.records import DocumentRecords, Records
from logitcask_services.pilot.pilot import PilotRecords


@dataclass(frozen=True, slots=True, kw_only=True)
class TauFigures:
    """Expected costs and noise of one tau."""

    tau: float
    head_entries: float
    """Per position."""
    draws: float
    """Per position."""
    draw_mass: float
    """What one draw stands for, r/n, as a probability: mean over the mass that is drawn. NaN where nothing is."""
    arrow_bytes: float
    """Per token, in shards as they are trained from; without framing, a few kilobytes per shard."""
    arrow_error: float
    """Standard error of `arrow_bytes`, from the spread between the sample's documents."""
    zarr_bytes: float
    """Per token, each column compressed as the Zarr carrier does; estimated on the sample."""
    noise: float
    """Sum over the vocabulary of the variance of the target, mean over positions."""
    relative_noise: float
    """Root of noise over the mean squared norm of the gradient p - t: one position's noise in units of its signal."""

    @property
    def inverse(self) -> int:
        """1 / tau, rounded."""
        return round(1 / self.tau)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The pilot's records cut at a larger tau."""

    kept_E: NDArray[np.bool_]
    """Entries that stay in the head."""
    tail_mass_P: NDArray[np.float64]
    counts_P: NDArray[np.int64]
    """Draws per position."""


def cut_at(pilot: PilotRecords, spec: CaptureSpec, tau: float) -> Cut:
    """What capture would put into the head and draw at `tau`, by the rules of `RecordCapture`."""
    probable_E = (pilot.head_logprobs_E >= np.log(tau)) & (pilot.head_ranks_E < spec.head_max)
    kept_E = pilot.required_E | probable_E | (pilot.head_ranks_E == 0)
    dropped_mass_P = np.bincount(
        pilot.head_rows_E[~kept_E], np.exp(pilot.head_logprobs_E[~kept_E]), minlength=pilot.positions
    )
    tail_mass_P = pilot.tail_mass_P + dropped_mass_P
    counts_P = np.minimum(np.ceil(tail_mass_P / tau), spec.at_tau(tau).tail_max).astype(np.int64)
    counts_P[tail_mass_P < NEGLIGIBLE_MASS] = 0
    return Cut(kept_E=kept_E, tail_mass_P=tail_mass_P, counts_P=counts_P)


def noise(pilot: PilotRecords, spec: CaptureSpec, cut: Cut) -> NDArray[np.float64]:
    """Sum over the vocabulary of Var(t-hat), per position; 0 where nothing is drawn."""
    variance_P: NDArray[np.float64]
    left_E = ~cut.kept_E
    rows_E, t_E = pilot.head_rows_E[left_E], np.exp(pilot.head_logprobs_E[left_E])
    n_P, r_P = np.maximum(cut.counts_P, 1), cut.tail_mass_P
    if spec.sampler == "multinomial":
        squares_P = pilot.tail_squares_P + np.bincount(rows_E, t_E**2, pilot.positions)
        variance_P = (r_P**2 - squares_P) / n_P
    else:
        share_P = r_P / n_P
        fraction_E = np.modf(t_E / share_P[rows_E])[0]
        entries_variance_P = share_P**2 * np.bincount(rows_E, fraction_E * (1 - fraction_E), pilot.positions)
        # No token below the pilot's threshold outweighs a draw: that stands for half of tau at least, or for all of r.
        variance_P = entries_variance_P + pilot.tail_mass_P * share_P - pilot.tail_squares_P
    variance_P[cut.counts_P == 0] = 0.0
    np.maximum(variance_P, 0.0, out=variance_P)
    return variance_P


def draw_mass(cut: Cut) -> float:
    """Mean of r/n over the mass that is drawn; NaN where nothing is.

    It follows tau until `tail_max` binds: from there on more of the tail rests on each draw.
    """
    drawn_P = cut.counts_P > 0
    r_P, n_P = cut.tail_mass_P[drawn_P], cut.counts_P[drawn_P]
    return float((r_P**2 / n_P).sum() / r_P.sum()) if drawn_P.any() else math.nan


_DOCUMENT_BYTES = 32 + 8
"""Id and checksum."""
_OFFSET_BYTES = 4
"""Per document and list column."""


def arrow_bytes(pilot: PilotRecords, cut: Cut, layout: RecordLayout) -> float:
    """Per token, from the numbers of entries alone."""
    units: dict[Level, int] = {
        "token": pilot.tokens,
        "position": pilot.positions,
        "head": int(cut.kept_E.sum()),
        "tail": int(cut.counts_P.sum()),
    }
    values = sum(units[level] * size for level, size in layout.bytes_per_unit.items())
    per_document = _DOCUMENT_BYTES + _OFFSET_BYTES * len(layout.columns)
    return (values + per_document * len(pilot.documents)) / pilot.tokens


def arrow_error(pilot: PilotRecords, cut: Cut, layout: RecordLayout) -> float:
    """Standard error of `arrow_bytes` from the spread between documents; NaN where there is one alone."""
    if len(pilot.documents) < 2:
        return float("nan")
    per_unit = layout.bytes_per_unit
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
        with np.errstate(divide="ignore"):
            log_tail_mass = np.log(cut.tail_mass_P[start:stop])
        records = Records(
            head_counts_P=np.diff(head_ends[start:stop], prepend=head.start).astype(np.uint8),
            head_ids_H=head_ids[head].astype(id_dtype),
            head_logprobs_H=head_logprobs[head].astype(value),
            tail_counts_P=cut.counts_P[start:stop].astype(np.uint8),
            tail_ids_N=ids[tail].astype(id_dtype),
            position_columns={
                column.name: _cut_column(document.records, column, spec, log_tail_mass).astype(value)
                for column in stored_columns(spec)
            },
            tail_logprobs_N=logprobs[tail].astype(value) if spec.tail_logprobs else None,
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
    drawn_K = np.clip(np.searchsorted(running_M, points_K, side="right"), starts_P[rows_K], ends_P[rows_K] - 1)
    return ids_M[order_M][drawn_K], logprobs_M[order_M][drawn_K]


def _cut_column(
    records: Records, column: PositionColumn, spec: CaptureSpec, log_tail_mass_P: NDArray[np.float64]
) -> NDArray[Any]:
    """A column of positions at the cut: only the tail's mass depends on it."""
    if column.name == "log_tail_mass":
        return log_tail_mass_P
    values, width = records.position_columns[column.name], column.width_of(spec)
    # The pilot's own temperature comes last, unless the spec has it too.
    return values if width is None else values[:, :width]
