"""`RecordCapture`: logits of many positions to records (design, section 4).

The whole vocabulary is seen by `passes` alone; selecting the head, clearing it from the mass and drawing from the rest
touch a few blocks per row. Results do not depend on how rows are batched.

Shape legend: R rows (positions), V vocabulary, W = V padded to whole blocks, C blocks of B entries, K head slots,
H head entries, N draws, T temperatures. Values in nats.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.position_columns import stored_columns
from logitcask_services.capture.draws import (
    draw_uniforms,
    multinomial_offsets,
    position_uniforms,
    systematic_offsets,
    tail_draws,
)
from logitcask_services.capture.head import MAX_ROWS, Head, add_required, largest, reaching
from logitcask_services.capture.passes import Scanned, VocabularyPasses, clear_entries
from logitcask_services.capture.record_columns import RecordColumns

NEGLIGIBLE_MASS = 1e-6
"""Below this tail mass nothing is drawn."""
_SCRATCH_BYTES = 64 * 2**20
_FEWEST_ROWS = 32
# The cask rounds to `u8` and `u8all` when it stores, at random, from values that have not been rounded before.
_VALUE_DTYPES = {"f16": torch.float16, "f32": torch.float32, "u8": torch.float32, "u8all": torch.float32}


class RecordCapture(torch.nn.Module):
    """Reduces logits to records as a spec says. Has no parameters, only scratch memory (see `VocabularyPasses`)."""

    def __init__(self, spec: CaptureSpec, vocab_size: int, *, rows: int | None = None, rows_in_cache: int = 16) -> None:
        """Prepare for a vocabulary.

        Args:
            spec: what to store.
            vocab_size: width V of the logits.
            rows: positions reduced at a time, 256 at most, which bounds memory; None: some 64 MiB worth. Changes no
                result.
            rows_in_cache: positions per run of passes over the vocabulary, on a CPU. Changes no result.

        Raises:
            CaptureSpecError: a pinned id is outside the vocabulary.
        """
        super().__init__()
        spec.require_vocabulary(vocab_size)
        self.spec = spec
        self.vocab_size = vocab_size
        self.rows = min(MAX_ROWS, rows or max(_FEWEST_ROWS, _SCRATCH_BYTES // (4 * vocab_size)))
        self._passes = VocabularyPasses(vocab_size, spec.temperatures, rows=self.rows, rows_in_cache=rows_in_cache)

    def forward(
        self,
        logits_RV: torch.Tensor,
        next_ids_R: torch.Tensor,
        doc_keys_R: torch.Tensor,
        positions_R: torch.Tensor,
        uniforms: torch.Tensor | None = None,
    ) -> RecordColumns:
        """Reduce the logits of R positions, of any documents, to records.

        Args:
            logits_RV: float32, bfloat16 or float16; float32 logits are used as scratch and come back overwritten.
            next_ids_R: int64, the realised next tokens.
            doc_keys_R: int64, first 8 bytes of the document id, little-endian, as two's complement.
            positions_R: int64, position within the document.
            uniforms: float64 in [0, 1) to draw with instead of those of (seed, document, position): [R] for systematic
                draws, [R, n] for multinomial ones, with n not less than any row draws.

        Returns:
            Records in the canonical order of `record.records.Records`. A row whose logits have no finite maximum (NaN,
            +inf, all masked) has entropy NaN, which `Records.check` reports.

        Raises:
            ValueError: there are no rows.
        """
        if not len(logits_RV):
            raise ValueError("expected at least one row of logits, got none")
        parts = []
        for run in (slice(start, start + self.rows) for start in range(0, len(logits_RV), self.rows)):
            run_uniforms = None if uniforms is None else uniforms[run]
            parts.append(
                self._capture(logits_RV[run], next_ids_R[run], doc_keys_R[run], positions_R[run], run_uniforms)
            )
        return RecordColumns.join(parts)

    def _capture(
        self,
        logits_RV: torch.Tensor,
        next_ids_R: torch.Tensor,
        doc_keys_R: torch.Tensor,
        positions_R: torch.Tensor,
        uniforms: torch.Tensor | None,
    ) -> RecordColumns:
        spec, block = self.spec, self._passes.block
        scanned = self._passes(logits_RV)
        x_RW, mass_RW, sums_RC = scanned.x_RW, scanned.mass_RW, scanned.sums_RC

        head = add_required(self._selected(scanned), next_ids_R, self._pinned(x_RW.device))
        x_head_RK = x_RW.gather(1, head.ids_RK).to(torch.float64)
        head_mass_R = mass_RW.gather(1, head.ids_RK).to(torch.float64).masked_fill(~head.valid_RK, 0.0).sum(-1)
        # Slots not taken point at y, which the head always holds, so clearing them too is harmless.
        clear_entries(mass_RW, sums_RC, torch.where(head.valid_RK, head.ids_RK, next_ids_R[:, None]), block)
        tail_mass_R = sums_RC.sum(-1)
        # Head and tail add up to z, hence the stored masses to one; the tail is summed, never a difference.
        z_R = head_mass_R + tail_mass_R
        log_z_R = z_R.log()

        counts_R = self._draw_counts(tail_mass_R / z_R)
        offsets_Rn = self._offsets(counts_R, doc_keys_R, positions_R, uniforms)
        draws = tail_draws(mass_RW, sums_RC, counts_R, offsets_Rn, block)
        tail_logprobs_N = x_RW[draws.rows_N, draws.ids_N] - log_z_R[draws.rows_N] if spec.tail_logprobs else None
        values = _VALUE_DTYPES[spec.logprob_codec]
        return RecordColumns(
            head_counts_R=head.valid_RK.sum(-1, dtype=torch.uint8),
            head_ids_H=head.ids_RK[head.valid_RK].to(torch.int32),
            head_logprobs_H=(x_head_RK - log_z_R[:, None])[head.valid_RK].to(values),
            tail_counts_R=counts_R.to(torch.uint8),
            tail_ids_N=draws.ids_N.to(torch.int32),
            tail_logprobs_N=None if tail_logprobs_N is None else tail_logprobs_N.to(values),
            position_columns={
                column.name: self.computed[column.name](self, scanned, z_R, tail_mass_R).to(values)
                for column in stored_columns(spec)
            },
        )

    def _selected(self, scanned: Scanned) -> Head:
        """The part of the head that the mode picks by probability."""
        spec, x_RW, block = self.spec, scanned.x_RW, self._passes.block
        if spec.mode == "threshold":
            floor_R = scanned.sums_RC.sum(-1).log() + math.log(spec.tau)
            return reaching(x_RW, scanned.block_max_RC, floor_R, spec.head_max, block)
        if spec.mode == "topk":
            return largest(x_RW, scanned.block_max_RC, min(spec.k, self.vocab_size), block)
        empty = torch.empty((len(scanned.block_max_RC), 0), dtype=torch.int64, device=x_RW.device)
        return Head(empty, empty.to(torch.bool))

    def _draw_counts(self, tail_mass_R: torch.Tensor) -> torch.Tensor:
        """Draws per row, int64, from the tail's share r of the mass."""
        spec = self.spec
        if spec.mode == "threshold":
            # Bounded before the cast, which is undefined beyond int64.
            counts_R = (tail_mass_R / spec.tau).clamp(max=spec.tail_max).ceil().to(torch.int64)
        else:
            counts_R = torch.full_like(tail_mass_R, spec.draws if spec.mode == "sampled" else 0, dtype=torch.int64)
        return counts_R.masked_fill(tail_mass_R < NEGLIGIBLE_MASS, 0)

    def _offsets(
        self,
        counts_R: torch.Tensor,
        doc_keys_R: torch.Tensor,
        positions_R: torch.Tensor,
        uniforms: torch.Tensor | None,
    ) -> torch.Tensor:
        """Where the points of the draws lie, see `tail_draws`: float64 [R, most draws of a row]."""
        spec, max_draws = self.spec, int(counts_R.amax())
        if spec.sampler == "multinomial":
            if uniforms is None:
                uniforms = draw_uniforms(spec.seed, doc_keys_R, positions_R, max_draws)
            return multinomial_offsets(uniforms[:, :max_draws], counts_R)
        if uniforms is None:
            uniforms = position_uniforms(spec.seed, doc_keys_R, positions_R)
        return systematic_offsets(uniforms, max_draws)

    def _log_tail_mass(self, scanned: Scanned, z_R: torch.Tensor, tail_mass_R: torch.Tensor) -> torch.Tensor:
        return tail_mass_R.log() - z_R.log()

    def _entropy(self, scanned: Scanned, z_R: torch.Tensor, tail_mass_R: torch.Tensor) -> torch.Tensor:
        return (z_R.log() - scanned.moment_R / z_R).masked_fill(scanned.faulty_R, torch.nan)

    def _log_z(self, scanned: Scanned, z_R: torch.Tensor, tail_mass_R: torch.Tensor) -> torch.Tensor:
        """Log of sum t^(1/T) per temperature, float64 [R, T]."""
        assert scanned.power_sums_RT is not None
        temperatures_T = torch.tensor(self.spec.temperatures, dtype=torch.float64, device=z_R.device)
        return scanned.power_sums_RT.log() - z_R.log()[:, None] / temperatures_T

    computed: ClassVar[dict[str, Callable[..., torch.Tensor]]] = {
        "log_tail_mass": _log_tail_mass,
        "entropy": _entropy,
        "log_z": _log_z,
    }
    """By name of a column of positions: its values, float64 [R] or [R, W], from what a run of rows was scanned for,
    the sum z of its exponentials, and the part of z outside the heads."""

    def _pinned(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.spec.pinned_ids, dtype=torch.int64, device=device)
