"""Philox4x32-10, the counter-based generator behind the draws, in torch integer operations on any device.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Counter-based means that a
position's random numbers are a pure function of (seed, document, position): no state, so no batch split, chunked
prefill, resume or parallel layout can change them.

Under one seed the second word of the counter keeps all uses apart: 0 for the one number of a position (its upper half,
as documents are shorter than 2^31), 1 to 4 for rounding in the cask (`cask.format.codec_u8`), 2^31 and up for the
numbers of single draws.

Shape legend: R rows, n numbers of a row, m = n / 2 rounded up. 32-bit words live in int64 tensors, in [0, 2^32).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from logitcask_services.capture.passes import take_blocks

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10
_DRAWS = 1 << 31
"""Second counter word of the numbers for a position's first two draws."""

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of 32-bit words, of shapes that broadcast.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of 32-bit words, of their common shape.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    # Words 0 and 2 go through the same steps, words 1 and 3 too: half as many operations as one word at a time.
    even, odd = torch.stack([c0, c2]), torch.stack([c1, c3])
    multipliers, *round_keys = (words.view(2, *(1,) * c0.dim()) for words in _constants(key, c0.device))
    for round_key in round_keys:
        # A 32 x 32 bit product needs 64 bits; int64 wraps at the sign but keeps the bits, and the masks drop the sign.
        swapped = (even * multipliers).flip(0)
        even, odd = ((swapped >> 32) & _MASK) ^ odd ^ round_key, swapped & _MASK
    return even[0], odd[0], even[1], odd[1]


@lru_cache(maxsize=64)
def _constants(key: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The multipliers, then both key words of each round, int64 [2] each; kept, since each copy to a device waits."""
    rows = [[_MULTIPLIER_0, _MULTIPLIER_1]]
    rows += [[(key[0] + i * _WEYL_0) & _MASK, (key[1] + i * _WEYL_1) & _MASK] for i in range(_ROUNDS)]
    return torch.tensor(rows, device=device).unbind()


def position_uniforms(seed: int, doc_keys_R: torch.Tensor, positions_R: torch.Tensor) -> torch.Tensor:
    """One uniform number per position.

    The counter is (position low, position high, document low, document high), the key (seed low, seed high), words of
    32 bits; the number is made of the first output word and the upper 21 bits of the second, 53 bits in all.

    Args:
        seed: `CaptureSpec.seed`, below 2^63.
        doc_keys_R: int64, the first 8 bytes of each row's document id, little-endian, as two's complement.
        positions_R: int64, position in the document.

    Returns:
        float64 [R] in [0, 1).
    """
    low, high = _words(positions_R)
    doc_low, doc_high = _words(doc_keys_R)
    first, second, _, _ = philox4x32((low, high, doc_low, doc_high), (seed & _MASK, seed >> 32))
    return _fraction(first, second)


def draw_uniforms(seed: int, doc_keys_R: torch.Tensor, positions_R: torch.Tensor, count: int) -> torch.Tensor:
    """Independent uniform numbers for the draws of each position.

    Numbers 2m and 2m + 1 of a position come from the counter (position, 2^31 + m, document low, document high) under
    the key (seed low, seed high): the former from output words 0 and 1, the latter from 2 and 3, each made as in
    `position_uniforms`. So number i is the same whatever `count` is.

    Args:
        seed: `CaptureSpec.seed`, below 2^63.
        doc_keys_R: as for `position_uniforms`.
        positions_R: int64, position in the document, below 2^32.
        count: numbers n per position.

    Returns:
        float64 [R, n] in [0, 1).
    """
    pairs_m = _DRAWS + torch.arange(-(-count // 2), device=positions_R.device)
    doc_low, doc_high = _words(doc_keys_R[:, None])
    words = philox4x32((positions_R[:, None], pairs_m, doc_low, doc_high), (seed & _MASK, seed >> 32))
    pairs_Rm2 = torch.stack([_fraction(words[0], words[1]), _fraction(words[2], words[3])], -1)
    return pairs_Rm2.flatten(1)[:, :count]


def _fraction(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """53 bits of two words as a number in [0, 1)."""
    return ((first << 21) | (second >> 11)).to(torch.float64) * 2.0**-53


def _words(value_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return value_R & _MASK, (value_R >> 32) & _MASK


@dataclass(frozen=True, slots=True)
class Draws:
    """Drawn ids of all rows end to end, ascending within a row, with the row each belongs to."""

    rows_N: torch.Tensor
    ids_N: torch.Tensor

    @classmethod
    def none(cls, device: torch.device) -> "Draws":
        """Those of a record without any."""
        empty_N = torch.empty(0, dtype=torch.int64, device=device)
        return cls(empty_N, empty_N)


def systematic_offsets(uniforms_R: torch.Tensor, max_draws: int) -> torch.Tensor:
    """Points u + i for i = 0 ... max_draws - 1, in units of one draw's share: float64 [R, n]."""
    return uniforms_R[:, None] + torch.arange(max_draws, device=uniforms_R.device)


def multinomial_offsets(uniforms_Rn: torch.Tensor, counts_R: torch.Tensor) -> torch.Tensor:
    """Points n u_i in ascending order, in units of one draw's share: float64 [R, n].

    Only the first `counts_R` numbers of a row are used; they come first in the result too, as the others sort last.
    """
    used_Rn = torch.arange(uniforms_Rn.shape[1], device=uniforms_Rn.device) < counts_R[:, None]
    return uniforms_Rn.masked_fill(~used_Rn, 1.0).sort(-1).values * counts_R[:, None]


def tail_draws(
    mass_RW: torch.Tensor,
    sums_RC: torch.Tensor,
    counts_R: torch.Tensor,
    offsets_Rn: torch.Tensor,
    block: int,
    *,
    gathered: int,
) -> Draws:
    """Draw `counts_R` ids per row in proportion to mass.

    Two levels: the points are looked up among the block sums first, then inside the few blocks hit. An entry without
    mass is never drawn, since a running sum does not rise there; points are kept below the last value it takes.

    Args:
        mass_RW: float32 >= 0, zero for the head and the padding.
        sums_RC: float64, its block sums.
        counts_R: int64 draws per row; 0 where the row's mass is negligible.
        offsets_Rn: float64, the points in units of r / n: ascending in [0, counts_R). Those beyond a row's count are
            ignored.
        block: entries per block.
        gathered: entries of blocks that are worked on at a time.

    Returns:
        The draws; ids int64.
    """
    running_RC = sums_RC.cumsum(-1)
    step = torch.arange(offsets_Rn.shape[1], device=mass_RW.device)
    points_Rn = offsets_Rn * (running_RC[:, -1:] / counts_R.clamp(min=1)[:, None])
    points_Rn = torch.minimum(points_Rn, _just_below(running_RC[:, -1:]))
    blocks_Rn = torch.searchsorted(running_RC, points_Rn, right=True)
    rows_N, slots_N = (step < counts_R[:, None]).nonzero(as_tuple=True)
    blocks_N, points_N = blocks_Rn[rows_N, slots_N], points_Rn[rows_N, slots_N]
    # How far into its block each point falls, as a share of the block's mass: the float32 sum used so far and the
    # float64 running sum inside the block differ in the last bits, and the share maps one onto the other.
    sums_N = sums_RC[rows_N, blocks_N]
    shares_N = (points_N - (running_RC[rows_N, blocks_N] - sums_N)) / sums_N
    per_run = gathered // block
    runs = [slice(start, start + per_run) for start in range(0, max(1, len(rows_N)), per_run)]
    cells = [_cells(take_blocks(mass_RW, rows_N[run], blocks_N[run], block), shares_N[run]) for run in runs]
    return Draws(rows_N, blocks_N * block + (cells[0] if len(cells) == 1 else torch.cat(cells)))


def _cells(mass_NB: torch.Tensor, shares_N: torch.Tensor) -> torch.Tensor:
    """Where in its block each draw falls."""
    running_NB = mass_NB.cumsum(-1, dtype=torch.float64)
    total_N1 = running_NB[:, -1:]
    points_N1 = torch.minimum(shares_N[:, None] * total_N1, _just_below(total_N1))
    return torch.searchsorted(running_NB, points_N1, right=True)[:, 0]


def _just_below(value: torch.Tensor) -> torch.Tensor:
    return torch.nextafter(value, torch.zeros_like(value))
