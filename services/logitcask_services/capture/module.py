"""`RecordCapture`: logits of many positions to records, in as few passes over the vocabulary as the record allows.

Design, section 4. With x = logits - max and e = 2^(x log2 e), one row of 49,152 logits costs about 100 microseconds on
one CPU core: block maxima, x, e (exp2 is twice as fast as exp here), block sums, and the entropy's product; everything
else touches a few blocks. Results do not depend on how rows are batched.

Shape legend: R rows (positions), V vocabulary, W = V padded to whole blocks, C blocks of B entries, K head slots,
H head entries, N draws, T temperatures. Values in nats.
"""

import math

import torch

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.errors import ModelError
from logitcask_services.capture.blocks import PADDING, as_blocks, block_size, block_sums, clear_entries, padded_width
from logitcask_services.capture.columns import RecordColumns
from logitcask_services.capture.draws import tail_draws
from logitcask_services.capture.head import Head, add_required, largest
from logitcask_services.capture.philox import position_uniforms

NEGLIGIBLE_MASS = 1e-6
"""Below this tail mass nothing is drawn."""
_LOG2_E = math.log2(math.e)
_VALUE_DTYPES = {"f16": torch.float16, "f32": torch.float32}


class RecordCapture(torch.nn.Module):
    """Reduces logits to records as a spec says. Has no parameters; keeps two scratch buffers of `rows` x W float32."""

    def __init__(self, spec: CaptureSpec, vocab_size: int, *, rows: int = 32) -> None:
        """Prepare for a vocabulary.

        Args:
            spec: what to store.
            vocab_size: width V of the logits.
            rows: positions reduced at a time; bounds memory, changes no result.

        Raises:
            ModelError: a pinned id is outside the vocabulary.
        """
        super().__init__()
        if outside := [token for token in spec.pinned_ids if token >= vocab_size]:
            raise ModelError(f"pinned ids {outside} are outside the teacher's vocabulary of {vocab_size}")
        self.spec = spec
        self.vocab_size = vocab_size
        self.rows = rows
        self._block = block_size(vocab_size)
        self._width = padded_width(vocab_size, self._block)
        self._scratch: dict[str, torch.Tensor] = {}

    def forward(
        self,
        logits_RV: torch.Tensor,
        next_ids_R: torch.Tensor,
        doc_keys_R: torch.Tensor,
        positions_R: torch.Tensor,
        uniforms_R: torch.Tensor | None = None,
    ) -> RecordColumns:
        """Reduce the logits of R positions, of any documents, to records.

        Args:
            logits_RV: float32, bfloat16 or float16; float32 logits are used as scratch and come back overwritten.
            next_ids_R: int64, the realised next tokens.
            doc_keys_R: int64, first 8 bytes of the document id, little-endian, as two's complement.
            positions_R: int64, position within the document.
            uniforms_R: float64 in [0, 1) to draw with instead of those of (seed, document, position).

        Returns:
            Records in the canonical order of `logitcask_schemas.records.Records`. A row whose logits have no finite
            maximum (NaN, +inf, all masked) has entropy NaN, which `Records.check` reports.
        """
        if uniforms_R is None:
            uniforms_R = position_uniforms(self.spec.seed, doc_keys_R, positions_R)
        if not len(logits_RV):
            raise ValueError("expected at least one row of logits, got none")
        runs = [slice(start, start + self.rows) for start in range(0, len(logits_RV), self.rows)]
        return RecordColumns.join([self._capture(logits_RV[run], next_ids_R[run], uniforms_R[run]) for run in runs])

    def _capture(self, logits_RV: torch.Tensor, next_ids_R: torch.Tensor, uniforms_R: torch.Tensor) -> RecordColumns:
        spec, block = self.spec, self._block
        x_RW = self._padded(logits_RV)
        block_max_RC = as_blocks(x_RW, block).amax(-1)
        max_R1 = block_max_RC.amax(-1, keepdim=True)
        faulty_R1 = ~max_R1.isfinite()
        if faulty_R1.any():  # computed as if uniform, then marked: one bad document must not stop its batch
            x_RW[:, : self.vocab_size].masked_fill_(faulty_R1, 0.0)
            block_max_RC = as_blocks(x_RW, block).amax(-1)
            max_R1 = block_max_RC.amax(-1, keepdim=True)
        x_RW -= max_R1
        block_max_RC -= max_R1

        e_RW = self._buffer("mass", x_RW)
        z_RT = [self._powers(x_RW, 1.0 / temperature, e_RW).sum(-1) for temperature in spec.temperatures]
        sums_RC = self._powers(x_RW, 1.0, e_RW)
        log_z_R = sums_RC.sum(-1).log()

        head = add_required(self._selected(x_RW, block_max_RC, log_z_R), next_ids_R, self._pinned(x_RW.device))
        x_head_RK = x_RW.gather(1, head.ids_RK).to(torch.float64)
        e_head_RK = e_RW.gather(1, head.ids_RK).to(torch.float64).masked_fill(~head.valid_RK, 0.0)
        # Slots not taken point at y, which the head always holds, so clearing them too is harmless.
        clear_entries(e_RW, sums_RC, torch.where(head.valid_RK, head.ids_RK, next_ids_R[:, None]), block)
        tail_R = sums_RC.sum(-1)
        # Head and tail now add up to z exactly, hence the stored masses to one; the tail is summed, not subtracted.
        z_R = e_head_RK.sum(-1) + tail_R
        log_z_R = z_R.log()
        counts_R = self._draw_counts(tail_R / z_R)
        draws = tail_draws(e_RW, sums_RC, counts_R, uniforms_R, block)
        tail_logprobs_N = x_RW[draws.rows_N, draws.ids_N] - log_z_R[draws.rows_N] if spec.tail_logprobs else None

        moment_R = (e_head_RK * x_head_RK).nansum(-1) + self._tail_moment(x_RW, e_RW)
        entropy_R = (log_z_R - moment_R / z_R).masked_fill(faulty_R1[:, 0], torch.nan)
        values = _VALUE_DTYPES[spec.logprob_codec]
        return RecordColumns(
            head_counts_R=head.valid_RK.sum(-1, dtype=torch.uint8),
            head_ids_H=head.ids_RK[head.valid_RK].to(torch.int32),
            head_logprobs_H=(x_head_RK - log_z_R[:, None])[head.valid_RK].to(values),
            tail_counts_R=counts_R.to(torch.uint8),
            tail_ids_N=draws.ids_N.to(torch.int32),
            tail_logprobs_N=None if tail_logprobs_N is None else tail_logprobs_N.to(values),
            log_tail_mass_R=(tail_R.log() - log_z_R).to(values),
            entropy_R=entropy_R.to(values),
            log_z_RT=torch.stack(
                [z.log() - log_z_R / temperature for z, temperature in zip(z_RT, spec.temperatures, strict=True)], 1
            ).to(values)
            if z_RT
            else None,
        )

    def _selected(self, x_RW: torch.Tensor, block_max_RC: torch.Tensor, log_z_R: torch.Tensor) -> Head:
        """The part of the head that the mode picks by probability."""
        spec = self.spec
        if spec.mode == "threshold":
            # At most 1 / tau entries can reach tau.
            most = min(spec.head_max, math.floor(1 / spec.tau) + 1, self.vocab_size)
            return largest(x_RW, block_max_RC, most, self._block, log_z_R + math.log(spec.tau))
        if spec.mode == "topk":
            return largest(x_RW, block_max_RC, min(spec.k, self.vocab_size), self._block, None)
        empty = torch.empty((len(x_RW), 0), dtype=torch.int64, device=x_RW.device)
        return Head(empty, empty.to(torch.bool))

    def _draw_counts(self, tail_mass_R: torch.Tensor) -> torch.Tensor:
        """Draws per row, int64, from the tail's share r of the mass."""
        spec = self.spec
        if spec.mode == "threshold":
            counts_R = (tail_mass_R / spec.tau).ceil().to(torch.int64).clamp(max=spec.tail_max)
        else:
            counts_R = torch.full_like(tail_mass_R, spec.draws if spec.mode == "sampled" else 0, dtype=torch.int64)
        return counts_R.masked_fill(tail_mass_R < NEGLIGIBLE_MASS, 0)

    def _powers(self, x_RW: torch.Tensor, exponent: float, out_RW: torch.Tensor) -> torch.Tensor:
        """Write exp(x * exponent) to out; returns its block sums, float64 [R, C]."""
        torch.mul(x_RW, _LOG2_E * exponent, out=out_RW)
        return block_sums(out_RW.exp2_(), self._block)

    def _tail_moment(self, x_RW: torch.Tensor, e_RW: torch.Tensor) -> torch.Tensor:
        """Sum of e x over the tail, float64 [R]; overwrites x."""
        x_RW[:, self.vocab_size :] = 0.0
        product_RW = x_RW.mul_(e_RW)
        moment_R = block_sums(product_RW, self._block).sum(-1)
        if moment_R.isnan().any():  # a masked token: 0 * -inf, whose limit is 0
            moment_R = block_sums(product_RW.nan_to_num_(nan=0.0), self._block).sum(-1)
        return moment_R

    def _padded(self, logits_RV: torch.Tensor) -> torch.Tensor:
        """float32 [R, W] to overwrite: the logits themselves where their shape allows, else a padded copy."""
        if self._width == self.vocab_size and logits_RV.dtype == torch.float32 and logits_RV.is_contiguous():
            return logits_RV
        copy_RW = self._buffer("logits", logits_RV)
        copy_RW[:, : self.vocab_size] = logits_RV
        copy_RW[:, self.vocab_size :] = PADDING
        return copy_RW

    def _buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A float32 scratch buffer [R, W] on the device of `like`, allocated once."""
        buffer = self._scratch.get(name)
        if buffer is None or buffer.device != like.device:
            buffer = torch.empty((self.rows, self._width), dtype=torch.float32, device=like.device)
            self._scratch[name] = buffer
        return buffer[: like.shape[0]]

    def _pinned(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.spec.pinned_ids, dtype=torch.int64, device=device)
