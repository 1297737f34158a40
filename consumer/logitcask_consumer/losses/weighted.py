"""Cross-entropy with sparse weights: the common core of every loss of the form -sum_j w_j log p_j.

Shape legend: R rows of a chunk, V vocabulary size, H head entries, N tail draws.
"""

import torch
from torch import Tensor

from logitcask_consumer.losses.registry import ChunkLoss
from logitcask_consumer.losses.softmax import flat_index, log_softmax_
from logitcask_consumer.losses.target import SparseTarget


def weighted_cross_entropy(
    logits_RV: Tensor,
    target: SparseTarget,
    *,
    head_weights_H: Tensor,
    tail_weights_N: Tensor,
    ce_weight: float,
    with_grad: bool,
) -> ChunkLoss:
    """-sum_H w_j log p_j - sum_draws w_j log p_j per row, and -log p_y; weights of a row sum to 1.

    The gradient for the logits is p - w (weights of a row sum to 1), left in `logits_RV` when asked for.
    """
    width = logits_RV.shape[1]
    logprobs_RV = log_softmax_(logits_RV)
    flat = logprobs_RV.view(-1)
    head_at_H = flat_index(target.head_rows_H, target.head_ids_H, width)
    tail_at_N = flat_index(target.tail_rows_N, target.tail_ids_N, width)
    next_at_R = torch.arange(target.num_rows, device=flat.device) * width + target.next_ids_R
    kd_R = -target.head_sum(head_weights_H * flat[head_at_H]) - target.tail_sum(tail_weights_N * flat[tail_at_N])
    ce_R = -flat[next_at_R]
    if with_grad:
        torch.exp(logprobs_RV, out=logits_RV)
        grad = logits_RV.view(-1)
        grad.index_add_(0, head_at_H, head_weights_H, alpha=ce_weight - 1.0)
        grad.index_add_(0, tail_at_N, tail_weights_N, alpha=ce_weight - 1.0)
        if ce_weight:
            grad.index_add_(0, next_at_R, torch.full_like(ce_R, -ce_weight))
    return ChunkLoss(kd_R, ce_R)
