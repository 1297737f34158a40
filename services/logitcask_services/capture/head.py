"""Which tokens a record stores exactly: the largest probabilities, the realised next token, the pinned ids.

Shape legend: R rows, S some of them, W padded vocabulary, C blocks of B entries, b picked per row, k or K slots,
M picked blocks and E entries of all rows.
"""

from dataclasses import dataclass

import torch

from logitcask_services.capture.passes import WORKING_SET, take_blocks

_ID_BITS = 24
"""Vocabularies reach 2^24 in the format."""
_ID_MASK = (1 << _ID_BITS) - 1
_ROW_SHIFT = _ID_BITS + 31
"""Above the id and a float's magnitude; what is left of 63 bits holds the row."""
MAX_ROWS = 1 << (63 - _ROW_SHIFT)
"""Rows that `reaching` takes at a time."""
_TIES = 4
"""Blocks at or above the k-th largest maximum, in multiples of k, up to which that maximum is a useful floor."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of R rows in K slots each, of which `valid_RK` are taken; slots in the record's canonical order."""

    ids_RK: torch.Tensor
    valid_RK: torch.Tensor


def reaching(
    x_RW: torch.Tensor, block_max_RC: torch.Tensor, floor_R: torch.Tensor, max_entries: int, block: int
) -> Head:
    """The entries at or above each row's floor, descending, equal ones by ascending id; always the largest one.

    Only blocks whose maximum reaches the floor can hold such entries: usually two or three of a row.

    Args:
        x_RW: float32 logits minus their row's maximum, so <= 0 and never NaN.
        block_max_RC: maxima of the blocks of `x_RW`.
        floor_R: float32 or float64.
        max_entries: how many entries are kept, the largest first.
        block: entries per block.

    Returns:
        Head with as many slots as the fullest row needs.

    Raises:
        ValueError: more than `MAX_ROWS` rows.
    """
    if len(floor_R) > MAX_ROWS:
        raise ValueError(f"expected at most {MAX_ROWS} rows, got {len(floor_R)}; give them in parts")
    # The largest entry has x = 0: a lower floor lets it in, and whatever ties with it is dropped again below.
    reached_R1 = floor_R.clamp(max=0.0)[:, None]
    rows_M, blocks_M = (block_max_RC >= reached_R1).nonzero(as_tuple=True)
    inside_MB = take_blocks(x_RW, rows_M, blocks_M, block)
    hits_E, cells_E = (inside_MB >= reached_R1[rows_M]).nonzero(as_tuple=True)
    keys_E = _order_key(inside_MB[hits_E, cells_E], blocks_M[hits_E] * block + cells_E)
    keys_E = (keys_E | (rows_M[hits_E] << _ROW_SHIFT)).sort().values
    rows_E, ids_E = keys_E >> _ROW_SHIFT, keys_E & _ID_MASK
    counts_R = torch.bincount(rows_E, minlength=len(floor_R))
    slots_E = torch.arange(len(rows_E), device=x_RW.device) - (counts_R.cumsum(0) - counts_R)[rows_E]
    counts_R = counts_R.clamp(max=max_entries).masked_fill(floor_R > 0, 1)
    slots = int(counts_R.amax())
    kept_E = slots_E < slots
    ids_RK = torch.zeros((len(floor_R), slots), dtype=torch.int64, device=x_RW.device)
    ids_RK[rows_E[kept_E], slots_E[kept_E]] = ids_E[kept_E]
    return Head(ids_RK, torch.arange(slots, device=x_RW.device) < counts_R[:, None])


def largest(x_RW: torch.Tensor, block_max_RC: torch.Tensor, k: int, block: int) -> Head:
    """The k largest entries of each row, descending, equal ones by ascending id.

    Exact: the k largest block maxima are k entries, so the k largest entries are not below the smallest of these
    maxima, and there are seldom many more that are not. Where there are, since much of a row ties, or where the row has
    fewer blocks than k, the k best blocks are searched whole; the result is the same.

    Args:
        x_RW: float32 logits minus their row's maximum, so <= 0 and never NaN.
        block_max_RC: maxima of the blocks of `x_RW`.
        k: how many entries, at most the vocabulary.
        block: entries per block.

    Returns:
        Head with k slots, all taken.
    """
    step = min(MAX_ROWS, max(1, WORKING_SET // (k * block)))
    heads = [_largest(x_RW[run], block_max_RC[run], k, block) for run in _runs(len(x_RW), step)]
    return Head(torch.cat([head.ids_RK for head in heads]), torch.cat([head.valid_RK for head in heads]))


def _largest(x_RW: torch.Tensor, block_max_RC: torch.Tensor, k: int, block: int) -> Head:
    if block_max_RC.shape[1] >= k:
        floor_R = block_max_RC.topk(k).values[:, -1]
        few = int((block_max_RC >= floor_R[:, None]).sum()) <= _TIES * k * len(x_RW)
        if few and bool(floor_R.isfinite().all()):
            return reaching(x_RW, block_max_RC, floor_R, k, block)
    ids_Rk = _largest_in_blocks(x_RW, block_max_RC, k, block)
    return Head(ids_Rk, torch.ones_like(ids_Rk, dtype=torch.bool))


def _largest_in_blocks(x_RW: torch.Tensor, block_max_RC: torch.Tensor, k: int, block: int) -> torch.Tensor:
    """Ids [R, k]: those of the k smallest keys in the k blocks with the largest maxima.

    Ties are ordered by id because a float's magnitude bits and the id, joined into one integer, have no ties.
    """
    blocks = block_max_RC.shape[1]
    block_keys_RC = _order_key(block_max_RC, torch.arange(blocks, device=x_RW.device))
    best_Rb = block_keys_RC.topk(min(k, blocks), largest=False).values
    block_ids_Rb = best_Rb & _ID_MASK
    rows_Rb = torch.arange(len(x_RW), device=x_RW.device)[:, None].expand_as(block_ids_Rb)
    candidates = take_blocks(x_RW, rows_Rb.reshape(-1), block_ids_Rb.reshape(-1), block)
    ids_RbB = block_ids_Rb[:, :, None] * block + torch.arange(block, device=x_RW.device)
    keys_RE = _order_key(candidates.view(*block_ids_Rb.shape, block), ids_RbB).view(len(x_RW), -1)
    return keys_RE.topk(k, largest=False).values & _ID_MASK


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


def _order_key(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """int64 keys that ascend as x <= 0 descends, equal x by ascending id; the id sits in the low bits."""
    magnitude = x.view(torch.int32) & 0x7FFFFFFF  # drops the sign, so that -0.0 equals 0.0
    return (magnitude.to(torch.int64) << _ID_BITS) | ids
