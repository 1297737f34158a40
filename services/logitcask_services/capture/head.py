"""Which tokens a record stores exactly: the largest probabilities, the realised next token, the pinned ids.

Shape legend: R rows, W padded vocabulary, C blocks, k candidates, K = k + 1 + pinned head slots.
"""

from dataclasses import dataclass

import torch

from logitcask_services.capture.blocks import take_blocks

_ID_BITS = 24
"""Vocabularies reach 2^24 in the format."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of R rows in K slots each, of which `valid_RK` are taken; slots in the record's canonical order."""

    ids_RK: torch.Tensor
    valid_RK: torch.Tensor


def largest(x_RW: torch.Tensor, block_max_RC: torch.Tensor, k: int, block: int, floor_R: torch.Tensor | None) -> Head:
    """The k largest entries of each row, descending, equal ones by ascending id.

    Exact: the k largest entries lie in the k blocks with the largest maxima. Ties are ordered by id because a float's
    magnitude bits and the id, joined into one integer, have no ties; so neither batch nor device decides who is in.

    Args:
        x_RW: float32 logits minus their row's maximum, so <= 0 and never NaN.
        block_max_RC: maxima of the blocks of `x_RW`.
        k: how many entries.
        block: entries per block.
        floor_R: float64; entries below are no candidates (the largest always is). None: all are.

    Returns:
        Head with k slots (fewer where no row has that many candidates).
    """
    rows, blocks = block_max_RC.shape
    wanted = min(k, blocks)
    if floor_R is not None:
        # Only blocks whose maximum reaches the floor can hold candidates: usually two or three.
        wanted = min(wanted, max(1, int((block_max_RC >= floor_R[:, None]).sum(-1).amax())))
    best_Rb = _order_key(block_max_RC, torch.arange(blocks, device=x_RW.device)).topk(wanted, largest=False).values
    block_ids_Rb = best_Rb & ((1 << _ID_BITS) - 1)
    row_index = torch.arange(rows, device=x_RW.device)[:, None].expand(-1, wanted)
    candidates_RbB = take_blocks(x_RW, row_index.reshape(-1), block_ids_Rb.view(-1), block).view(rows, wanted, block)
    ids_RbB = block_ids_Rb[:, :, None] * block + torch.arange(block, device=x_RW.device)
    keys = _order_key(candidates_RbB, ids_RbB).view(rows, -1)
    ids_Rk = keys.topk(min(k, keys.shape[1]), largest=False).values & ((1 << _ID_BITS) - 1)
    if floor_R is None:
        return Head(ids_Rk, torch.ones_like(ids_Rk, dtype=torch.bool))
    valid_Rk = x_RW.gather(1, ids_Rk) >= floor_R[:, None]
    valid_Rk[:, 0] = True
    return Head(ids_Rk, valid_Rk)


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
    known_RS = ((required_RS[:, :, None] == head.ids_RK[:, None, :]) & head.valid_RK[:, None, :]).any(-1)
    known_RS[:, 1:] |= pinned_RP == next_R1
    return Head(torch.cat([head.ids_RK, required_RS], 1), torch.cat([head.valid_RK, ~known_RS], 1))


def _order_key(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """int64 keys that ascend as x <= 0 descends, equal x by ascending id; the id sits in the low bits."""
    magnitude = x.view(torch.int32) & 0x7FFFFFFF  # drops the sign, so that -0.0 equals 0.0
    return (magnitude.to(torch.int64) << _ID_BITS) | ids
