"""Systematic draws from the tail: n equally spaced points with one random offset, looked up on the running tail mass.

Each of the n points (u + i) r / n falls on a token with probability proportional to its mass, so giving every draw the
weight r / n is unbiased, and the weights add up to r exactly (research note in docs/capture.md; Cochran, "Sampling
Techniques", on systematic and probability-proportional-to-size sampling).

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


def tail_draws(
    mass_RW: torch.Tensor, sums_RC: torch.Tensor, counts_R: torch.Tensor, uniforms_R: torch.Tensor, block: int
) -> Draws:
    """Draw `counts_R` ids per row in proportion to mass.

    Two levels: the points are looked up among the block sums first, then inside the few blocks hit. An entry without
    mass is never drawn, since a running sum does not rise there; points are kept below the last value it takes.

    Args:
        mass_RW: float32 >= 0, zero for the head and the padding.
        sums_RC: float64, its block sums.
        counts_R: int64 draws per row; 0 where the row's mass is negligible.
        uniforms_R: float64 in [0, 1).
        block: entries per block.

    Returns:
        The draws; ids int64.
    """
    running_RC = sums_RC.cumsum(-1)
    most = int(counts_R.amax())
    step = torch.arange(most, device=mass_RW.device)
    points_Rn = (uniforms_R[:, None] + step) * (running_RC[:, -1:] / counts_R.clamp(min=1)[:, None])
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
    running_NB = mass_NB.to(torch.float64).cumsum(-1)
    total_N1 = running_NB[:, -1:]
    points_N1 = torch.minimum(shares_N[:, None] * total_N1, _just_below(total_N1))
    return (running_NB <= points_N1).sum(-1)


def _just_below(value: torch.Tensor) -> torch.Tensor:
    return torch.nextafter(value, torch.zeros_like(value))
