"""The KL of a student to the teacher's sparse records, per row: one formula for training's evaluations and the report.

Shape legend: R rows, H head entries, N tail draws. All values in nats.
"""

import torch
from torch import Tensor

from logitcask_consumer.losses import SparseTarget


def kl_on_head(target: SparseTarget, head_logp_H: Tensor) -> Tensor:
    """sum_H t log(t/p), the head's part of the KL, [R].

    Args:
        target: R rows of the teacher.
        head_logp_H: log p of the head's entries.
    """
    t_H = target.head_weights_H
    return target.head_sum(torch.xlogy(t_H, t_H) - t_H * head_logp_H)


def kl_estimate(
    target: SparseTarget,
    head_logp_H: Tensor,
    tail_logp_N: Tensor,
    *,
    entropy_R: Tensor,
    tail_logprobs_N: Tensor | None,
) -> Tensor:
    """KL(t || p), unbiased where the tail was sampled, [R].

    With log t of the draws, sum_H t log(t/p) + (r/n) sum_draws log(t/p); without, the cross-entropy from t̂ to p less
    the stored H(t). Both are unbiased, the first has less noise.

    Args:
        target: R rows of the teacher.
        head_logp_H: log p of the head's entries.
        tail_logp_N: log p of the draws.
        entropy_R: H(t).
        tail_logprobs_N: log t of the draws, where the records have them.
    """
    if tail_logprobs_N is None:
        cross_R = -target.head_sum(target.head_weights_H * head_logp_H)
        cross_R = cross_R - target.tail_sum(target.tail_weights_N * tail_logp_N)
        return cross_R - entropy_R.to(cross_R.dtype)
    gap_N = tail_logprobs_N.to(tail_logp_N.dtype) - tail_logp_N
    return kl_on_head(target, head_logp_H) + target.tail_sum(target.tail_weights_N * gap_N)


def kl_of_buckets(target: SparseTarget, head_logp_H: Tensor, outside_R: Tensor) -> Tensor:
    """sum_H t log(t/p) + r log(r/s), the KL of head and one tail bucket, never above the KL, [R].

    Args:
        target: R rows of the teacher.
        head_logp_H: log p of the head's entries.
        outside_R: s, the student's mass outside the head.
    """
    r_R = target.tail_mass_R
    log_s_R = outside_R.clamp(min=torch.finfo(outside_R.dtype).tiny).log()
    return kl_on_head(target, head_logp_H) + torch.xlogy(r_R, r_R) - r_R * log_s_R
