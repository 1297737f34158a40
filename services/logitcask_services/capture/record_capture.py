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

from logitcask_schemas.record.capture_spec import NEGLIGIBLE_MASS, CaptureSpec
from logitcask_schemas.record.position_columns import stored_columns
from logitcask_services.capture.draws import (
    Draws,
    draw_uniforms,
    multinomial_offsets,
    position_uniforms,
    systematic_offsets,
    tail_draws,
)
from logitcask_services.capture.head import Head, add_required, largest, reaching
from logitcask_services.capture.passes import Scanned, VocabularyPasses, clear_entries
from logitcask_services.capture.plan import CapturePlan, Scratch, plan_for
from logitcask_services.capture.record_columns import RecordColumns

# The cask rounds to `u8` and `u8all` when it stores, at random, from values that have not been rounded before.
_VALUE_DTYPES = {"f16": torch.float16, "f32": torch.float32, "u8": torch.float32, "u8all": torch.float32}


def most_draws(spec: CaptureSpec) -> int:
    """No row has more draws than these."""
    if spec.mode == "threshold":
        return min(spec.tail_max, math.ceil(1 / spec.tau))
    return spec.draws if spec.mode == "sampled" else 0


def capture_uniforms(spec: CaptureSpec, doc_keys_R: torch.Tensor, positions_R: torch.Tensor) -> torch.Tensor:
    """The numbers that rows draw with, from the spec's seed, the document and the position.

    Made for all rows of a step at once: it takes as many operations for one row as for thousands.

    Args:
        spec: of the capture.
        doc_keys_R: int64, first 8 bytes of the document id, little-endian, as two's complement.
        positions_R: int64, position within the document.

    Returns:
        float64 in [0, 1): [R] for systematic draws, [R, n] for multinomial ones, with n what a row may draw at most.
    """
    if spec.mode == "topk":
        return torch.empty((len(doc_keys_R), 0), dtype=torch.float64, device=doc_keys_R.device)
    if spec.sampler == "multinomial":
        return draw_uniforms(spec.seed, doc_keys_R, positions_R, most_draws(spec))
    return position_uniforms(spec.seed, doc_keys_R, positions_R)


class RecordCapture(torch.nn.Module):
    """Reduces logits to records as a spec says. Has no parameters, only scratch memory (see `VocabularyPasses`)."""

    def __init__(
        self, spec: CaptureSpec, vocab_size: int, *, plan: CapturePlan | None = None, scratch: Scratch | None = None
    ) -> None:
        """Prepare for a vocabulary.

        Args:
            spec: what to store.
            vocab_size: width V of the logits.
            plan: how to go over the rows; None: as fits the device of the logits. Changes no result.
            scratch: memory to work in, which captures that take turns may share; None: some of its own.

        Raises:
            CaptureSpecError: a pinned id is outside the vocabulary.
        """
        super().__init__()
        spec.require_vocabulary(vocab_size)
        self.spec = spec
        self.vocab_size = vocab_size
        self.plan = plan
        self._scratch = Scratch() if scratch is None else scratch
        self._constants: dict[tuple[str, torch.device], torch.Tensor] = {}

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
        plan = self.plan or plan_for(logits_RV.device, self.vocab_size)
        if uniforms is None:
            uniforms = capture_uniforms(self.spec, doc_keys_R, positions_R)
        starts = range(0, len(logits_RV), plan.rows)
        runs = [slice(start, start + plan.rows) for start in starts]
        return RecordColumns.join([self._capture(plan, logits_RV[run], next_ids_R[run], uniforms[run]) for run in runs])

    def _capture(
        self, plan: CapturePlan, logits_RV: torch.Tensor, next_ids_R: torch.Tensor, uniforms: torch.Tensor
    ) -> RecordColumns:
        spec = self.spec
        passes = VocabularyPasses(self.vocab_size, spec.temperatures, plan=plan, scratch=self._scratch)
        scanned, block = passes(logits_RV), passes.block
        x_RW, mass_RW, sums_RC = scanned.x_RW, scanned.mass_RW, scanned.sums_RC

        pinned = self._constant("pinned", spec.pinned_ids, torch.int64, x_RW.device)
        head = add_required(self._selected(plan, scanned, block), next_ids_R, pinned)
        x_head_RK = x_RW.gather(1, head.ids_RK).to(torch.float64)
        head_mass_R = mass_RW.gather(1, head.ids_RK).to(torch.float64).masked_fill(~head.valid_RK, 0.0).sum(-1)
        rows_H, slots_H = head.valid_RK.nonzero(as_tuple=True)
        head_ids_H = head.ids_RK[rows_H, slots_H]
        clear_entries(mass_RW, sums_RC, rows_H, head_ids_H, block)
        tail_mass_R = sums_RC.sum(-1)
        # Head and tail add up to z, hence the stored masses to one; the tail is summed, never a difference.
        z_R = head_mass_R + tail_mass_R
        log_z_R = z_R.log()

        counts_R = self._draw_counts(tail_mass_R / z_R)
        draws = self._draws(plan, mass_RW, sums_RC, counts_R, uniforms, block)
        tail_logprobs_N = x_RW[draws.rows_N, draws.ids_N] - log_z_R[draws.rows_N] if spec.tail_logprobs else None
        values = _VALUE_DTYPES[spec.logprob_codec]
        return RecordColumns(
            head_counts_R=head.valid_RK.sum(-1, dtype=torch.uint8),
            head_ids_H=head_ids_H.to(torch.int32),
            head_logprobs_H=(x_head_RK[rows_H, slots_H] - log_z_R[rows_H]).to(values),
            tail_counts_R=counts_R.to(torch.uint8),
            tail_ids_N=draws.ids_N.to(torch.int32),
            tail_logprobs_N=None if tail_logprobs_N is None else tail_logprobs_N.to(values),
            position_columns={
                column.name: self.computed[column.name](self, scanned, z_R, tail_mass_R).to(values)
                for column in stored_columns(spec)
            },
        )

    def _selected(self, plan: CapturePlan, scanned: Scanned, block: int) -> Head:
        """The part of the head that the mode picks by probability."""
        spec, x_RW = self.spec, scanned.x_RW
        if spec.mode == "threshold":
            floor_R = scanned.sums_RC.sum(-1).log() + math.log(spec.tau)
            # No more can have so much of the mass, but for one by rounding.
            most = min(spec.head_max, int(1 / spec.tau) + 1)
            return reaching(x_RW, scanned.block_max_RC, floor_R, most, block, plan=plan)
        if spec.mode == "topk":
            return largest(x_RW, scanned.block_max_RC, min(spec.k, self.vocab_size), block, plan=plan)
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

    def _draws(
        self,
        plan: CapturePlan,
        mass_RW: torch.Tensor,
        sums_RC: torch.Tensor,
        counts_R: torch.Tensor,
        uniforms: torch.Tensor,
        block: int,
    ) -> Draws:
        """The draws of all rows, from what the head has left of the mass."""
        if self.spec.mode == "topk":
            return Draws.none(counts_R.device)
        max_draws = int(counts_R.amax()) if plan.reads_back else most_draws(self.spec)
        if self.spec.sampler == "multinomial":
            offsets_Rn = multinomial_offsets(uniforms[:, :max_draws], counts_R)
        else:
            offsets_Rn = systematic_offsets(uniforms, max_draws)
        return tail_draws(mass_RW, sums_RC, counts_R, offsets_Rn, block, gathered=plan.gathered)

    def _log_tail_mass(self, scanned: Scanned, z_R: torch.Tensor, tail_mass_R: torch.Tensor) -> torch.Tensor:
        return tail_mass_R.log() - z_R.log()

    def _entropy(self, scanned: Scanned, z_R: torch.Tensor, tail_mass_R: torch.Tensor) -> torch.Tensor:
        return (z_R.log() - scanned.moment_R / z_R).masked_fill(scanned.faulty_R, torch.nan)

    def _log_z(self, scanned: Scanned, z_R: torch.Tensor, tail_mass_R: torch.Tensor) -> torch.Tensor:
        """Log of sum t^(1/T) per temperature, float64 [R, T]."""
        assert scanned.power_sums_RT is not None
        temperatures_T = self._constant("temperatures", self.spec.temperatures, torch.float64, z_R.device)
        return scanned.power_sums_RT.log() - z_R.log()[:, None] / temperatures_T

    computed: ClassVar[dict[str, Callable[..., torch.Tensor]]] = {
        "log_tail_mass": _log_tail_mass,
        "entropy": _entropy,
        "log_z": _log_z,
    }
    """By name of a column of positions: its values, float64 [R] or [R, W], from what a run of rows was scanned for,
    the sum z of its exponentials, and the part of z outside the heads."""

    def _constant(self, name: str, values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Numbers of the spec on a device; kept, since each copy to an accelerator waits."""
        if (name, device) not in self._constants:
            self._constants[name, device] = torch.tensor(values, dtype=dtype, device=device)
        return self._constants[name, device]
