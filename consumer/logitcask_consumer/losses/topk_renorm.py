"""The biased baseline: a head renormalised to mass 1, as most caches of teacher logits are used today."""

from torch import Tensor, zeros_like

from logitcask_consumer.losses.registry import ChunkLoss, register
from logitcask_consumer.losses.target import SparseTarget
from logitcask_consumer.losses.weighted import weighted_cross_entropy


@register("topk_renorm", estimator="biased", modes={"threshold", "topk"}, kl_value=False)
def topk_renorm(logits_RV: Tensor, target: SparseTarget, *, ce_weight: float, with_grad: bool) -> ChunkLoss:
    """Renormalised head only. Biased: a baseline to compare with, never a default.

    Formula, per row: kd = -sum_H (t_j / sum_H t) log p_j, gradient p - t / sum_H t on H and p elsewhere. Its optimum
    puts t_j / (1 - r) on the head and nothing on the tail, whatever the teacher's tail (arXiv 2503.16870).
    Units: nats.

    Estimator: biased. Neither an estimate nor a bound of the KL divergence.

    Args:
        logits_RV: student logits [R, V], overwritten.
        target: R rows; tail draws are ignored.
        ce_weight: share of -log p_y in the gradient.
        with_grad: leave the gradient in `logits_RV`.
    """
    head_mass_R = target.head_sum(target.head_weights_H)
    return weighted_cross_entropy(
        logits_RV,
        target,
        head_weights_H=target.head_weights_H / head_mass_R[target.head_rows_H],
        tail_weights_N=zeros_like(target.tail_weights_N),
        ce_weight=ce_weight,
        with_grad=with_grad,
    )
