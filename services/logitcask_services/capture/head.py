"""Which tokens a record stores exactly: the largest probabilities, the realised next token, the pinned ids.

Shape legend: R rows, S some of them, W padded vocabulary, C blocks of B entries, b picked per row, k or K slots,
M picked blocks and E entries of all rows.
"""

from dataclasses import dataclass

import torch

from logitcask_services.capture.passes import take_blocks
from logitcask_services.capture.plan import CapturePlan

_KEY_BITS = 63
_MAGNITUDE_BITS = 31
"""Of a float32 that is not positive, without its sign."""
_TIES = 4
"""Blocks at or above the k-th largest maximum, in multiples of k, up to which that maximum is a useful floor."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of R rows in K slots each, of which `valid_RK` are taken; slots in the record's canonical order."""

    ids_RK: torch.Tensor
    valid_RK: torch.Tensor


def most_rows(width: int) -> int:
    """Rows whose entries can be ordered at a time: row, magnitude and id share one positive int64."""
    return 1 << (_KEY_BITS - _MAGNITUDE_BITS - _id_bits(width))


def reaching(
    x_RW: torch.Tensor,
    block_max_RC: torch.Tensor,
    floor_R: torch.Tensor,
    max_entries: int,
    block: int,
    *,
    plan: CapturePlan,
) -> Head:
    """The entries at or above each row's floor, descending, equal ones by ascending id; always the largest one.

    Only blocks whose maximum reaches the floor can hold such entries: usually two or three of a row.

    Args:
        x_RW: float32 logits minus their row's maximum, so <= 0 and never NaN.
        block_max_RC: maxima of the blocks of `x_RW`.
        floor_R: float32 or float64.
        max_entries: how many entries are kept, the largest first.
        block: entries per block.
        plan: says whether to look how many slots are needed.

    Returns:
        Head with as many slots as the fullest row needs; with `max_entries` where the plan reads nothing back.

    Raises:
        ValueError: more than `most_rows` rows.
    """
    # The largest entry has x = 0: a lower floor lets it in, and whatever ties with it is dropped again below.
    reached_R1, above_R1 = floor_R.clamp(max=0.0)[:, None], (floor_R > 0)[:, None]
    is_reached_RC = block_max_RC >= reached_R1
    # Of a row whose largest entry alone is kept, the first block that holds one: all others of a flat row tie.
    if not plan.reads_back or above_R1.any():
        at_C = torch.arange(block_max_RC.shape[1], device=x_RW.device)
        first_R1 = torch.where(is_reached_RC, at_C, len(at_C)).amin(-1, keepdim=True)
        is_reached_RC &= ~above_R1 | (at_C == first_R1)
    rows_M, blocks_M = is_reached_RC.nonzero(as_tuple=True)
    counts, ids_E, rows_E, slots_E = _ordered_hits(x_RW, rows_M, blocks_M, reached_R1, block)
    counts_R = counts.clamp(max=max_entries).masked_fill(above_R1[:, 0], 1)
    slots = int(counts_R.amax()) if plan.reads_back else max_entries
    ids_RK = _in_slots(ids_E, rows_E, slots_E, rows=len(floor_R), slots=slots)
    return Head(ids_RK, torch.arange(slots, device=x_RW.device) < counts_R[:, None])


def largest(x_RW: torch.Tensor, block_max_RC: torch.Tensor, k: int, block: int, *, plan: CapturePlan) -> Head:
    """The k largest entries of each row, descending, equal ones by ascending id.

    Exact: the k largest block maxima are k entries, so the k largest entries are not below the smallest of these
    maxima, and there are seldom many more that are not. Where there are, since much of a row ties, or where the row has
    fewer blocks than k, the k best blocks are searched whole; the result is the same.

    Args:
        x_RW: float32 logits minus their row's maximum, so <= 0 and never NaN.
        block_max_RC: maxima of the blocks of `x_RW`.
        k: how many entries, at most the vocabulary.
        block: entries per block.
        plan: says how many entries are worked on at a time, and whether to look how many tie.

    Returns:
        Head with k slots, all taken.
    """
    select = _largest if plan.reads_back else _largest_of_best_blocks
    step = max(1, plan.gathered // (min(k, block_max_RC.shape[1]) * block))
    heads = [select(x_RW[run], block_max_RC[run], k, block, plan) for run in _runs(len(x_RW), step)]
    ids_Rk = heads[0] if len(heads) == 1 else torch.cat(heads)
    return Head(ids_Rk, torch.ones_like(ids_Rk, dtype=torch.bool))


def _largest(x_RW: torch.Tensor, block_max_RC: torch.Tensor, k: int, block: int, plan: CapturePlan) -> torch.Tensor:
    """Ids [R, k], by a look at how many blocks reach the k-th largest maximum."""
    if block_max_RC.shape[1] >= k:
        floor_R = block_max_RC.topk(k).values[:, -1]
        few = int((block_max_RC >= floor_R[:, None]).sum()) <= _TIES * k * len(x_RW)
        if few and bool(floor_R.isfinite().all()):
            return reaching(x_RW, block_max_RC, floor_R, k, block, plan=plan).ids_RK
    return _largest_in_blocks(x_RW, _best_blocks(block_max_RC, k), k, block)


def _largest_of_best_blocks(
    x_RW: torch.Tensor, block_max_RC: torch.Tensor, k: int, block: int, plan: CapturePlan
) -> torch.Tensor:
    """Ids [R, k] without a look: the k best blocks hold the k best entries, at or above the last block's maximum."""
    blocks_Rb = _best_blocks(block_max_RC, k)
    if blocks_Rb.shape[1] < k:
        return _largest_in_blocks(x_RW, blocks_Rb, k, block)
    rows_Rb = torch.arange(len(x_RW), device=x_RW.device)[:, None].expand_as(blocks_Rb)
    floor_R1 = block_max_RC.gather(1, blocks_Rb[:, -1:])
    _, ids_E, rows_E, slots_E = _ordered_hits(x_RW, rows_Rb.reshape(-1), blocks_Rb.reshape(-1), floor_R1, block)
    return _in_slots(ids_E, rows_E, slots_E, rows=len(x_RW), slots=k)


def _best_blocks(block_max_RC: torch.Tensor, k: int) -> torch.Tensor:
    """The k blocks with the largest maxima, or all of them, in order; equal ones by ascending number: [R, b]."""
    blocks = block_max_RC.shape[1]
    keys_RC = _order_key(block_max_RC, torch.arange(blocks, device=block_max_RC.device), blocks)
    return keys_RC.topk(min(k, blocks), largest=False).values & _id_mask(blocks)


def _largest_in_blocks(x_RW: torch.Tensor, blocks_Rb: torch.Tensor, k: int, block: int) -> torch.Tensor:
    """Ids [R, k]: those of the k smallest keys in the named blocks.

    Ties are ordered by id because a float's magnitude bits and the id, joined into one integer, have no ties.
    """
    width = x_RW.shape[1]
    rows_Rb = torch.arange(len(x_RW), device=x_RW.device)[:, None].expand_as(blocks_Rb)
    candidates = take_blocks(x_RW, rows_Rb.reshape(-1), blocks_Rb.reshape(-1), block)
    ids_RbB = blocks_Rb[:, :, None] * block + torch.arange(block, device=x_RW.device)
    keys_RE = _order_key(candidates.view(*blocks_Rb.shape, block), ids_RbB, width).view(len(x_RW), -1)
    return keys_RE.topk(k, largest=False).values & _id_mask(width)


def _ordered_hits(
    x_RW: torch.Tensor, rows_M: torch.Tensor, blocks_M: torch.Tensor, floor_R1: torch.Tensor, block: int
) -> tuple[torch.Tensor, ...]:
    """How many entries of the named blocks reach each row's floor, [R]; their ids, rows, and ranks in the row, [E]."""
    rows, width = x_RW.shape
    if rows > most_rows(width):
        raise ValueError(f"expected at most {most_rows(width)} rows, got {rows}; give them in parts")
    inside_MB = take_blocks(x_RW, rows_M, blocks_M, block)
    hits_E, cells_E = (inside_MB >= floor_R1[rows_M]).nonzero(as_tuple=True)
    keys_E = _order_key(inside_MB[hits_E, cells_E], blocks_M[hits_E] * block + cells_E, width)
    row_shift = _MAGNITUDE_BITS + _id_bits(width)
    keys_E = (keys_E | (rows_M[hits_E] << row_shift)).sort().values
    rows_E, ids_E = keys_E >> row_shift, keys_E & _id_mask(width)
    starts_R1 = torch.searchsorted(rows_E, torch.arange(rows + 1, device=x_RW.device))
    slots_E = torch.arange(len(rows_E), device=x_RW.device) - starts_R1[rows_E]
    return starts_R1.diff(), ids_E, rows_E, slots_E


def _in_slots(
    ids_E: torch.Tensor, rows_E: torch.Tensor, slots_E: torch.Tensor, *, rows: int, slots: int
) -> torch.Tensor:
    """Ids at their ranks, [R, slots]; 0 where there is none."""
    # What has no slot goes to one more column, which is cut off: to leave it out would need its number.
    ids_RK = torch.zeros((rows, slots + 1), dtype=torch.int64, device=ids_E.device)
    ids_RK[rows_E, slots_E.clamp(max=slots)] = ids_E
    return ids_RK[:, :slots]


def _runs(rows: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, rows, step)]


def add_required(head: Head, next_ids_R: torch.Tensor, pinned_ids: torch.Tensor) -> Head:
    """Append the realised next token and the pinned ids where the head does not hold them yet.

    Args:
        head: of the largest entries; may have no slots.
        next_ids_R: int64, the realised next token y.
        pinned_ids: int64 [pinned], distinct.

    Returns:
        Head with 1 + pinned more slots, y first.
    """
    next_R1 = next_ids_R[:, None]
    pinned_RP = pinned_ids[None, :].expand(len(next_ids_R), -1)
    required_RS = torch.cat([next_R1, pinned_RP], 1)
    held_RS = ((required_RS[:, :, None] == head.ids_RK[:, None, :]) & head.valid_RK[:, None, :]).any(-1)
    held_RS[:, 1:] |= pinned_RP == next_R1
    return Head(torch.cat([head.ids_RK, required_RS], 1), torch.cat([head.valid_RK, ~held_RS], 1))


def _id_bits(width: int) -> int:
    return max(1, (width - 1).bit_length())


def _id_mask(width: int) -> int:
    return (1 << _id_bits(width)) - 1


def _order_key(x: torch.Tensor, ids: torch.Tensor, width: int) -> torch.Tensor:
    """int64 keys that ascend as x <= 0 descends, equal x by ascending id below `width`; it sits in the low bits."""
    magnitude = x.view(torch.int32) & 0x7FFFFFFF  # drops the sign, so that -0.0 equals 0.0
    return (magnitude.to(torch.int64) << _id_bits(width)) | ids
