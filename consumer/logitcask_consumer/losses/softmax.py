"""Softmax pieces shared by the losses, in place on one chunk of logits.

Shape legend: R rows of a chunk, V vocabulary size, E sparse entries.
"""

from torch import Tensor, log_softmax


def log_softmax_(logits_RV: Tensor) -> Tensor:
    """Log-probabilities; reuses the logits' memory on the CPU.

    The CPU kernel reads a row before it writes it, which a test holds it to; other devices get a buffer of their own.
    """
    if logits_RV.device.type == "cpu":
        return log_softmax(logits_RV, -1, out=logits_RV)
    return log_softmax(logits_RV, -1)


def flat_index(rows_E: Tensor, ids_E: Tensor, width: int) -> Tensor:
    """Index into a flattened [R, V] tensor; faster than a pair of indices, and 64-bit, so R·V may exceed 2^31."""
    return rows_E * width + ids_E
