"""Philox4x32-10, the counter-based generator behind the draws, in torch integer operations on any device.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Counter-based means that a
position's random number is a pure function of (seed, document, position): no state, so no batch split, chunked
prefill, resume or parallel layout can change it.

Shape legend: R rows. 32-bit words live in int64 tensors, in [0, 2^32).
"""

import torch

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors [R] of 32-bit words.
        key: two 32-bit words.

    Returns:
        Four int64 tensors [R] of 32-bit words.
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
    return ((first << 21) | (second >> 11)).to(torch.float64) * 2.0**-53


def _words(value_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return value_R & _MASK, (value_R >> 32) & _MASK
