"""Every figure of every position of a document, from a plain forward pass of the teacher and what else was said of it.

The pass is that of transformers, in float32; its softmax is taken in float64, a block of rows at a time.

Shape legend: R positions with records, P positions, L tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords, Records
from logitcask_schemas.record.wire import decode_wire
from logitcask_services.capture import RecordCapture, pack_wire
from logitcask_services.corpora.pieces import fit
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.vllm.request import document_key
from logitcask_services.fidelity.divergence import (
    NamedTokens,
    against_plain,
    between,
    draw_variance,
    entropy,
    target_excess,
    truncated,
    whole,
)
from logitcask_services.fidelity.passes import plain_spec, through_a_cask
from logitcask_services.pilot.logits import LogitsFunction, checked_logits

_BLOCK: Final = 64
"""Rows whose float64 log-probabilities exist at once: 25 MB at 49,152 words."""
Floats: TypeAlias = NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class DocumentFigures:
    """Of one document; by name [R], in nats unless a name says otherwise."""

    columns: dict[str, Floats]
    windows_P: dict[int, Floats]
    """By window: KL(windowed || whole) at the positions that both have, 0 in the first window, which is the same."""
    later_P: dict[int, NDArray[np.bool_]]
    """Which of these lie in later windows."""
    common: int = 0
    named: int = 0
    largest: float = 0.0
    """Of the two passes of the engine: see `divergence.Comparison`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Measures documents against one teacher's plain forward pass."""

    logits_of: LogitsFunction
    spec: CaptureSpec
    teacher: TeacherIdentity
    k: int
    """Tokens of the top-k that stands for truncation."""
    windows: Sequence[int] = field(default_factory=tuple)

    @property
    def draws(self) -> bool:
        """Whether the records' tails are drawn, so that their targets are unbiased."""
        return self.spec.mode != "topk"

    def measure(
        self, task: CaptureTask, alone: DocumentRecords, together: DocumentRecords, stored: DocumentRecords
    ) -> DocumentFigures:
        """Every figure of a document.

        Args:
            task: its tokens, and which positions have records.
            alone: the engine's records in float32, of the document by itself.
            together: the same in company.
            stored: what the cask says.

        Raises:
            PilotError: the plain pass gives logits of another shape.
        """
        control = between(NamedTokens.of(together.records), NamedTokens.of(alone.records))
        logits_PV = checked_logits(self.logits_of, task.token_ids_L)
        positions_R = task.extent.positions(len(task.token_ids_L))
        exact = self._exact_records(task, logits_PV, positions_R)
        (decoded,) = through_a_cask([exact], self.teacher, plain_spec(self.spec))
        parts = [
            self._of_block(log_t_RV, alone=of[0], stored=of[1], decoded=of[2], exact=of[3])
            for log_t_RV, of in _blocks(
                logits_PV, positions_R, [each.records for each in (alone, stored, decoded, exact)]
            )
        ]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        figures = DocumentFigures(
            columns={"control": control.kl_R, **columns},
            windows_P={},
            later_P={},
            common=control.common,
            named=control.named,
            largest=control.largest,
        )
        for window in self.windows:
            if len(task.token_ids_L) > window:
                figures.windows_P[window], figures.later_P[window] = self._windowed(task.token_ids_L, logits_PV, window)
        return figures

    def _of_block(
        self, log_t_RV: Floats, *, alone: Records, stored: Records, decoded: Records, exact: Records
    ) -> dict[str, Floats]:
        """Every figure of some rows."""
        drawn = self.draws
        truncation_R, shortfall_R = truncated(log_t_RV, self.k)
        columns = {
            "entropy": entropy(log_t_RV),
            "capture": against_plain(NamedTokens.of(alone), log_t_RV),
            "codec": against_plain(NamedTokens.as_trained(decoded, drawn=drawn), log_t_RV),
            "cask": against_plain(NamedTokens.as_trained(stored, drawn=drawn), log_t_RV),
            "truncation": truncation_R,
            "truncation_target": shortfall_R,
        }
        if drawn:
            columns["target"] = target_excess(stored, log_t_RV, drawn=True)
            columns["variance"] = self._variances(log_t_RV, exact)
        return columns

    def _variances(self, log_t_RV: Floats, exact: Records) -> Floats:
        """Of the cross-entropy to the teacher, over all draws that could have been made."""
        tail_RV = np.exp(log_t_RV)
        head = NamedTokens.of(exact)
        tail_RV[head.rows_H, head.ids_H] = 0.0
        rows = zip(tail_RV, log_t_RV, exact.tail_counts_P.tolist(), strict=True)
        return np.array([draw_variance(tail_V, -log_t_V, draws, self.spec.sampler) for tail_V, log_t_V, draws in rows])

    def _exact_records(
        self, task: CaptureTask, logits_PV: torch.Tensor, positions_R: NDArray[np.int64]
    ) -> DocumentRecords:
        """What the spec keeps of the plain pass, in float32."""
        spec = plain_spec(self.spec).model_copy(update={"logprob_codec": "f32"})
        capture, device = RecordCapture(spec, logits_PV.shape[1]), logits_PV.device
        next_ids_R = torch.from_numpy(task.token_ids_L.astype(np.int64)[positions_R + 1]).to(device)
        rows_R = torch.from_numpy(positions_R).to(device)
        keys_R = torch.full_like(rows_R, document_key(task.token_ids_L))
        # A copy: the capture writes over what it is given.
        columns = capture(logits_PV[rows_R].float(), next_ids_R, keys_R, rows_R)
        records = decode_wire(pack_wire(columns.on_host(), logits_PV.shape[1]).numpy(), spec)
        return DocumentRecords(token_ids_L=task.token_ids_L, records=records, extent=task.extent)

    def _windowed(
        self, token_ids_L: NDArray[np.unsignedinteger], logits_PV: torch.Tensor, window: int
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """KL(windowed || whole) by position, and which positions lie in later windows.

        The document is cut as a capture with `--overflow split` would cut it: end to end, every token once.
        """
        lengths = [len(piece) for piece in fit(token_ids_L.tolist(), window, "split")]
        values, start = [np.zeros(lengths[0] - 1)], lengths[0]
        for length in lengths[1:]:
            piece_PV = checked_logits(self.logits_of, token_ids_L[start : start + length])
            rows = np.arange(start, start + length - 1)
            said = _log_softmax_blocks(piece_PV, np.arange(length - 1))
            true = _log_softmax_blocks(logits_PV, rows)
            values += [whole(log_said, log_true) for log_said, log_true in zip(said, true, strict=True)]
            start += length
        windowed_P = np.concatenate(values)
        return windowed_P, np.arange(len(windowed_P)) >= lengths[0] - 1


def _blocks(
    logits_PV: torch.Tensor, positions_R: NDArray[np.int64], records: Sequence[Records]
) -> Iterator[tuple[Floats, list[Records]]]:
    """Log-probabilities of some rows at a time, and the records of the same rows."""
    numbers_R = np.arange(len(positions_R))
    for start, log_t_RV in zip(
        range(0, len(positions_R), _BLOCK), _log_softmax_blocks(logits_PV, positions_R), strict=True
    ):
        keep_R = (numbers_R >= start) & (numbers_R < start + _BLOCK)
        yield log_t_RV, [each.select(keep_R) for each in records]


def _log_softmax_blocks(logits_PV: torch.Tensor, rows: NDArray[np.int64]) -> Iterator[Floats]:
    for start in range(0, len(rows), _BLOCK):
        block = torch.from_numpy(rows[start : start + _BLOCK]).to(logits_PV.device)
        yield torch.log_softmax(logits_PV[block].double(), -1).cpu().numpy()
