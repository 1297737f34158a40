"""Forward KL with one ghost bucket for the tail: a lower bound without sampling noise."""

import torch
from torch import Tensor

from logitcask_consumer.losses.registry import ChunkLoss, register
from logitcask_consumer.losses.softmax import flat_index
from logitcask_consumer.losses.target import SparseTarget


@register("ghost_kl", estimator="bound", modes={"threshold", "topk"}, kl_value=False)
def ghost_kl(logits_RV: Tensor, target: SparseTarget, *, ce_weight: float, with_grad: bool) -> ChunkLoss:
    """KL between (head, total tail mass) of teacher and student: a lower bound of the full KL.

    Formula, per row, with s = 1 - sum_H p the student's mass outside the head::

        kd = -sum_H t_j log p_j - r log s        d kd / d z_j = p_j - t_j on H,   p_j (1 - r / s) elsewhere

    The tail's total mass is supervised, its shape is not: the gap to the full KL is r · KL(t_tail || p_tail).
    Coarsening a pair of distributions never raises a divergence, hence the bound. Units: nats. Equal to the dense KL
    when the head holds the whole vocabulary. Ghost tokens: arXiv 2503.16870; the `symmetric_uniform` mode of
    DistillKit is the same loss.

    Estimator: bound (lower, deterministic).

    Args:
        logits_RV: student logits [R, V], overwritten.
        target: R rows; tail draws are ignored, the tail mass is used.
        ce_weight: share of -log p_y in the gradient.
        with_grad: leave the gradient in `logits_RV`.
    """
    width = logits_RV.shape[1]
    flat = logits_RV.view(-1)
    head_at_H = flat_index(target.head_rows_H, target.head_ids_H, width)
    next_at_R = torch.arange(target.num_rows, device=flat.device) * width + target.next_ids_R
    head_logits_H, next_logits_R = flat[head_at_H], flat[next_at_R]
    # The two halves of log sum exp, apart: s = 1 - sum_H p would lose every digit of a small tail. A head of the whole
    # vocabulary leaves an empty half, whose logarithm is -inf.
    flat[head_at_H] = -torch.inf
    log_tail_R = torch.logsumexp(logits_RV, -1)
    top_R = torch.full_like(log_tail_R, -torch.inf).scatter_reduce_(
        0, target.head_rows_H, head_logits_H, "amax", include_self=True
    )
    log_head_R = target.head_sum((head_logits_H - top_R[target.head_rows_H]).exp()).log() + top_R
    log_z_R = torch.logaddexp(log_tail_R, log_head_R)
    head_logprobs_H = head_logits_H - log_z_R[target.head_rows_H]
    # The floor keeps r · log s finite where a student gives the tail no representable mass at all.
    log_s_R = (log_tail_R - log_z_R).clamp(min=torch.finfo(logits_RV.dtype).min)
    has_tail_R = target.tail_mass_R > 0
    kd_R = -target.head_sum(target.head_weights_H * head_logprobs_H)
    kd_R = kd_R - torch.where(has_tail_R, target.tail_mass_R * log_s_R, torch.zeros_like(log_s_R))
    ce_R = log_z_R - next_logits_R
    if with_grad:
        # Off the head the gradient is (1 - w) p (1 - r/s) + w p = softmax over the tail · (s - (1 - w) r).
        log_tail_safe_R = torch.where(log_tail_R.isinf(), torch.zeros_like(log_tail_R), log_tail_R)
        factor_R = log_s_R.exp() - (1.0 - ce_weight) * target.tail_mass_R
        logits_RV.sub_(log_tail_safe_R[:, None]).exp_().mul_(factor_R[:, None])
        flat[head_at_H] = head_logprobs_H.exp() - (1.0 - ce_weight) * target.head_weights_H
        if ce_weight:
            flat.index_add_(0, next_at_R, torch.full_like(ce_R, -ce_weight))
    return ChunkLoss(kd_R, ce_R)
