"""The vocabulary in blocks: whatever needs an order or a running sum looks at block totals first, then into few blocks.

Sorting or summing a whole row of logits costs far more than reading it (a float64 running sum over 49,152 entries
takes 300 microseconds on a CPU core, the softmax 60). One maximum and one sum per block of 128 entries, and then
the handful of blocks that matter, give the same answers for the price of a reading.

Shape legend: R rows, V vocabulary, W = C * B padded width, C blocks of B entries.
"""

import torch

_PREFERRED = (128, 64)
WORKING_SET = 2**18
"""Entries of gathered blocks that are worked on at a time, so that they stay in a CPU's cache."""
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


def clear_entries(values_RW: torch.Tensor, sums_RC: torch.Tensor, ids_RK: torch.Tensor, block: int) -> None:
    """Set the named entries of each row to zero (ids may repeat) and bring the sums of their blocks up to date."""
    values_RW.scatter_(1, ids_RK, 0.0)
    rows, slots = ids_RK.shape
    blocks_RK = ids_RK // block
    rows_RK = torch.arange(rows, device=ids_RK.device)[:, None].expand(-1, slots)
    touched_NB = take_blocks(values_RW, rows_RK.reshape(-1), blocks_RK.view(-1), block)
    sums_RC.scatter_(1, blocks_RK, touched_NB.sum(-1).to(torch.float64).view(rows, slots))
