"""Cross-entropy with the realised tokens: the control that uses no teacher."""

import torch
from torch import Tensor

from logitcask_consumer.losses.registry import ChunkLoss, register
from logitcask_consumer.losses.softmax import log_softmax_
from logitcask_consumer.losses.target import SparseTarget


@register("cross_entropy", estimator="exact", modes={"threshold", "topk", "sampled"}, kl_value=False)
def cross_entropy(logits_RV: Tensor, target: SparseTarget, *, ce_weight: float, with_grad: bool) -> ChunkLoss:
    """Cross-entropy with the realised next token: plain language modelling, the control of every comparison.

    Formula, per row: kd = ce = -log p_y, gradient p - onehot(y). Units: nats. Estimator: exact. The target serves for
    its `next_ids_R` only.

    Args:
        logits_RV: student logits [R, V], overwritten.
        target: R rows.
        ce_weight: without effect; both parts are the same.
        with_grad: leave the gradient in `logits_RV`.
    """
    del ce_weight
    width = logits_RV.shape[1]
    logprobs_RV = log_softmax_(logits_RV)
    next_at_R = torch.arange(target.num_rows, device=logits_RV.device) * width + target.next_ids_R
    ce_R = -logprobs_RV.view(-1)[next_at_R]
    if with_grad:
        torch.exp(logprobs_RV, out=logits_RV)
        logits_RV.view(-1).index_add_(0, next_at_R, torch.full_like(ce_R, -1.0))
    return ChunkLoss(ce_R, ce_R)
