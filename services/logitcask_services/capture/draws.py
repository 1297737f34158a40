"""Draws from the tail: n points, looked up on the running tail mass.

Systematic draws are n equally spaced points (u + i) r / n with one random offset; multinomial ones are n independent
points u_i r, put in order. Either way each point falls on a token with probability proportional to its mass, so giving
every draw the weight r / n is unbiased, and the weights add up to r exactly (docs/capture.md; Cochran, "Sampling
Techniques", on systematic and probability-proportional-to-size sampling; Anshumann et al., arXiv 2503.16870, draw
multinomially).

Shape legend: R rows, W padded vocabulary, C blocks of B entries, n most draws of a row, N draws of all rows.
"""

from dataclasses import dataclass

import torch

from logitcask_services.capture.blocks import WORKING_SET, take_blocks


@dataclass(frozen=True, slots=True)
class Draws:
    """Drawn ids of all rows end to end, ascending within a row, with the row each belongs to."""

    rows_N: torch.Tensor
    ids_N: torch.Tensor


def systematic_offsets(uniforms_R: torch.Tensor, most: int) -> torch.Tensor:
    """Points u + i for i = 0 ... most - 1, in units of one draw's share: float64 [R, n]."""
    return uniforms_R[:, None] + torch.arange(most, device=uniforms_R.device)


def multinomial_offsets(uniforms_Rn: torch.Tensor, counts_R: torch.Tensor) -> torch.Tensor:
    """Points n u_i in ascending order, in units of one draw's share: float64 [R, n].

    Only the first `counts_R` numbers of a row are used; they come first in the result too, as the others sort last.
    """
    used_Rn = torch.arange(uniforms_Rn.shape[1], device=uniforms_Rn.device) < counts_R[:, None]
    return uniforms_Rn.masked_fill(~used_Rn, 1.0).sort(-1).values * counts_R[:, None]


def tail_draws(
    mass_RW: torch.Tensor, sums_RC: torch.Tensor, counts_R: torch.Tensor, offsets_Rn: torch.Tensor, block: int
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
    cells = []
    per_run = WORKING_SET // block
    for run in (slice(start, start + per_run) for start in range(0, max(1, len(rows_N)), per_run)):
        cells.append(_cells(take_blocks(mass_RW, rows_N[run], blocks_N[run], block), shares_N[run]))
    return Draws(rows_N, blocks_N * block + torch.cat(cells))


def _cells(mass_NB: torch.Tensor, shares_N: torch.Tensor) -> torch.Tensor:
    """Where in its block each draw falls."""
    running_NB = mass_NB.cumsum(-1, dtype=torch.float64)
    total_N1 = running_NB[:, -1:]
    points_N1 = torch.minimum(shares_N[:, None] * total_N1, _just_below(total_N1))
    return torch.searchsorted(running_NB, points_N1, right=True)[:, 0]


def _just_below(value: torch.Tensor) -> torch.Tensor:
    return torch.nextafter(value, torch.zeros_like(value))
