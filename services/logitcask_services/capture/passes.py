"""The passes over the whole vocabulary that a record needs, and nothing else that is as long as the vocabulary.

With x = logits - max and e = 2^(x log2 e): block maxima, x, e (exp2 costs half of exp on CPUs), block sums of e and of
e x. They run on a few rows at a time, so that a row is still in the cache when the next pass comes by; everything that
follows works on whole batches of rows, where it touches only a few blocks of each.

Shape legend: R rows, V vocabulary, W = V padded to C blocks of B entries, T temperatures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from logitcask_services.capture.plan import CapturePlan, Scratch

_PREFERRED = (128, 64)
PADDING = -float("inf")
"""Logit of the padding: ranks behind every token, masked ones included (their ids are smaller)."""


def block_size(vocab_size: int) -> int:
    """Entries per block: one that divides the vocabulary where there is one, since padding costs a copy of the row."""
    return next((size for size in _PREFERRED if vocab_size % size == 0), _PREFERRED[0])


def padded_width(vocab_size: int, block: int) -> int:
    """The vocabulary rounded up to whole blocks."""
    return -(-vocab_size // block) * block


def as_blocks(values_RW: torch.Tensor, block: int) -> torch.Tensor:
    """View [R, C, B] of a contiguous [R, W]."""
    return values_RW.view(values_RW.shape[0], -1, block)


def block_sums(values_RW: torch.Tensor, block: int) -> torch.Tensor:
    """Sum of each block, float64 [R, C]: float32 within a block, float64 from there on."""
    return as_blocks(values_RW, block).sum(-1).to(torch.float64)


def take_blocks(values_RW: torch.Tensor, rows_N: torch.Tensor, blocks_N: torch.Tensor, block: int) -> torch.Tensor:
    """The named blocks of the named rows, [N, B]."""
    per_row = values_RW.shape[1] // block
    return values_RW.view(-1, block).index_select(0, rows_N * per_row + blocks_N)


def clear_entries(
    values_RW: torch.Tensor, sums_RC: torch.Tensor, rows_H: torch.Tensor, ids_H: torch.Tensor, block: int
) -> None:
    """Set the named entries of the named rows to zero and bring the sums of their blocks up to date."""
    values_RW.view(-1).index_fill_(0, rows_H * values_RW.shape[1] + ids_H, 0.0)
    blocks_H = rows_H * sums_RC.shape[1] + ids_H // block
    touched_HB = values_RW.view(-1, block).index_select(0, blocks_H)
    sums_RC.view(-1).scatter_(0, blocks_H, touched_HB.sum(-1).to(torch.float64))


_LOG2_E = math.log2(math.e)
_ROOT = 2.0
"""At this temperature exp(x / T) is the root of exp(x), so squaring it gives the mass and saves an exponential."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What the passes leave behind."""

    x_RW: torch.Tensor
    """float32 logits minus their row's maximum."""
    mass_RW: torch.Tensor
    """float32 exp(x); padding and masked tokens 0."""
    block_max_RC: torch.Tensor
    """float32 maxima of the blocks of x."""
    sums_RC: torch.Tensor
    """float64 sums of the blocks of exp(x)."""
    moment_R: torch.Tensor
    """float64 sum of x exp(x)."""
    power_sums_RT: torch.Tensor | None
    """float64 sum of exp(x / T) per temperature."""
    faulty_R: torch.Tensor
    """Rows whose logits have no finite maximum; they were scanned as if uniform."""


class VocabularyPasses:
    """Scans logits. Works in scratch memory: two buffers of a run's rows x W float32, and one of a pass's rows."""

    def __init__(
        self, vocab_size: int, temperatures: Sequence[float], *, plan: CapturePlan, scratch: Scratch | None = None
    ) -> None:
        """Prepare for a vocabulary.

        Args:
            vocab_size: width V of the logits.
            temperatures: for the power sums.
            plan: rows of a call at most, of a run of passes, and whether values are looked at.
            scratch: where the buffers lie; None: in some of its own.
        """
        self.vocab_size = vocab_size
        self.block = block_size(vocab_size)
        self._width = padded_width(vocab_size, self.block)
        self._temperatures = tuple(temperatures)
        self._plan = plan
        self._scratch = Scratch() if scratch is None else scratch

    def __call__(self, logits_RV: torch.Tensor) -> Scanned:
        """Scan up to `plan.rows` rows; contiguous float32 logits without padding are overwritten, not copied."""
        in_place = self._width == self.vocab_size and logits_RV.dtype == torch.float32 and logits_RV.is_contiguous()
        x_RW = logits_RV if in_place else self._buffer("x", logits_RV, self._plan.rows)
        mass_RW = self._buffer("mass", logits_RV, self._plan.rows)
        parts = []
        for start in range(0, len(logits_RV), self._plan.rows_of_passes):
            run = slice(start, start + self._plan.rows_of_passes)
            if not in_place:
                x_RW[run, : self.vocab_size] = logits_RV[run]
                x_RW[run, self.vocab_size :] = PADDING
            parts.append(self._scan(x_RW[run], mass_RW[run]))
        joined = parts[0] if len(parts) == 1 else tuple(torch.cat(part) for part in zip(*parts, strict=True))
        block_max_RC, sums_RC, moment_R, faulty_R, *powers_RT = joined
        return Scanned(
            x_RW=x_RW,
            mass_RW=mass_RW,
            block_max_RC=block_max_RC,
            sums_RC=sums_RC,
            moment_R=moment_R,
            power_sums_RT=torch.stack(powers_RT, 1) if powers_RT else None,
            faulty_R=faulty_R,
        )

    def _scan(self, x_RW: torch.Tensor, mass_RW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Block maxima, block sums, moment, faulty rows, then one power sum per temperature."""
        block_max_RC = as_blocks(x_RW, self.block).amax(-1)
        max_R1 = block_max_RC.amax(-1, keepdim=True)
        faulty_R1 = ~max_R1.isfinite()
        # As if uniform: one bad document must not stop its batch. The rows themselves are named, where a masked pass
        # over all of them would be as long as the vocabulary.
        if not self._plan.reads_back or faulty_R1.any():
            x_RW[:, : self.vocab_size].index_fill_(0, faulty_R1[:, 0].nonzero()[:, 0], 0.0)
            block_max_RC.masked_fill_(faulty_R1, 0.0)
            max_R1 = max_R1.masked_fill(faulty_R1, 0.0)
        x_RW -= max_R1
        block_max_RC -= max_R1
        # One sum per distinct temperature; the root comes last, since its terms are what is squared.
        power_of = {
            temperature: self._exp_sums(x_RW, 1.0 / temperature, mass_RW).sum(-1)
            for temperature in sorted(set(self._temperatures), key=lambda temperature: temperature == _ROOT)
        }
        powers = [power_of[temperature] for temperature in self._temperatures]
        if _ROOT in power_of:
            sums_RC = block_sums(mass_RW.mul_(mass_RW), self.block)
        else:
            sums_RC = self._exp_sums(x_RW, 1.0, mass_RW)
        return block_max_RC, sums_RC, self._moment(x_RW, mass_RW), faulty_R1[:, 0], *powers

    def _exp_sums(self, x_RW: torch.Tensor, factor: float, out_RW: torch.Tensor) -> torch.Tensor:
        """Write exp(x * factor) to out; returns its block sums, float64 [R, C]."""
        torch.mul(x_RW, _LOG2_E * factor, out=out_RW)
        return block_sums(out_RW.exp2_(), self.block)

    def _moment(self, x_RW: torch.Tensor, mass_RW: torch.Tensor) -> torch.Tensor:
        """Sum of x exp(x), float64 [R]."""
        product_RW = torch.mul(x_RW, mass_RW, out=self._buffer("product", x_RW, self._plan.rows_of_passes))
        if self._width > self.vocab_size:
            product_RW[:, self.vocab_size :] = 0.0
        # A masked token is 0 * -inf, whose limit is 0.
        if not self._plan.reads_back:
            return as_blocks(product_RW, self.block).nansum(-1).to(torch.float64).sum(-1)
        moment_R = block_sums(product_RW, self.block).sum(-1)
        if moment_R.isnan().any():
            moment_R = block_sums(product_RW.nan_to_num_(nan=0.0), self.block).sum(-1)
        return moment_R

    def _buffer(self, name: str, like: torch.Tensor, room: int) -> torch.Tensor:
        """As many rows as `like` has, on its device, of a buffer with room for so many."""
        return self._scratch.rows(name, len(like), self._width, room=room, device=like.device)
