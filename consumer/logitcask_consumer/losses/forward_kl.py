"""Forward KL on the unbiased sparse target: the default loss."""

from torch import Tensor

from logitcask_consumer.losses.registry import ChunkLoss, register
from logitcask_consumer.losses.target import SparseTarget
from logitcask_consumer.losses.weighted import weighted_cross_entropy


@register("forward_kl", estimator="unbiased", modes={"threshold", "sampled"}, kl_value=True)
def forward_kl(logits_RV: Tensor, target: SparseTarget, *, ce_weight: float, with_grad: bool) -> ChunkLoss:
    """KL(teacher || student), unbiased from head and systematic tail draws.

    Formula, per row with head H, exact tail mass r and n draws from the tail::

        kd = -sum_H t_j log p_j - (r / n) sum_draws log p_j        d kd / d z = p - t̂,   E[t̂] = t,   sum t̂ = 1

    Units: nats. `kd` is the cross-entropy from t̂ to p; KL(t || p) is estimated, without bias, by kd - H(t) with the
    stored entropy of the teacher. Equal to the dense KL when the head holds the whole vocabulary.

    Estimator: unbiased, value and gradient (systematic sampling of the tail; Anshumann et al., "Sparse Logit Sampling",
    arXiv 2503.16870, is the case of an empty head; Hinton et al., arXiv 1503.02531, the dense one).

    Args:
        logits_RV: student logits [R, V], overwritten.
        target: R rows with a sampled tail.
        ce_weight: share of -log p_y in the gradient.
        with_grad: leave the gradient in `logits_RV`.
    """
    return weighted_cross_entropy(
        logits_RV,
        target,
        head_weights_H=target.head_weights_H,
        tail_weights_N=target.tail_weights_N,
        ce_weight=ce_weight,
        with_grad=with_grad,
    )
