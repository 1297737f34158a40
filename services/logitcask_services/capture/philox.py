"""Philox4x32-10, the counter-based generator behind the draws, in torch integer operations on any device.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Counter-based means that a
position's random numbers are a pure function of (seed, document, position): no state, so no batch split, chunked
prefill, resume or parallel layout can change them.

Under one seed the second word of the counter keeps all uses apart: 0 for the one number of a position (its upper half,
as documents are shorter than 2^31), 1 and 2 for rounding in the cask (`logitcask_schemas.cask.codec_random`), 2^31 and
up for the numbers of single draws.

Shape legend: R rows, n numbers of a row, m = n / 2 rounded up. 32-bit words live in int64 tensors, in [0, 2^32).
"""

import torch

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
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A 32 x 32 bit product needs 64 bits; int64 wraps at the sign but keeps the bits, and the masks drop the sign.
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        high_0, high_1 = (product_0 >> 32) & _MASK, (product_1 >> 32) & _MASK
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, product_1 & _MASK, high_0 ^ c3 ^ k1, product_0 & _MASK
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


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
