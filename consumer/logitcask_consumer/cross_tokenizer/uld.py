"""Universal logit distillation: the sorted probabilities of both models, whatever tokens they belong to."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.cross_tokenizer.loss import ChunkLoss, StudentSpan
from logitcask_consumer.cross_tokenizer.target import ChunkTarget
from logitcask_consumer.losses.loss import Estimator
from logitcask_schemas.capture_spec import CaptureSpec


@dataclass(frozen=True, kw_only=True)
class Uld(ChunkLoss):
    """Distance between the sorted distributions of teacher and student where both have read the same text.

    The dense loss is sum_i |t_(i) - p_(i)|, probabilities in descending order, the shorter list filled with zeros:
    the Wasserstein distance with equal costs between any two tokens. Boizard et al., arXiv 2402.12030, who pair tokens
    by their number; here a pair is the first token of an aligned chunk, the only place where both have read the same
    bytes.

    Formula, per pair with the teacher's k largest probabilities (the part of the head that was chosen by size), their
    rest r' = 1 - sum_i<=k t_(i), and the student's s' = 1 - sum_i<=k p_(i)::

        sum_i<=k |t_(i) - p_(i)|  +  |r' - s'|

    Estimator: bound. The rest taken as one bucket can only make the distance smaller (triangle inequality), and by at
    most 2 min(r', s'): the rest of the dense sum lies between |r' - s'| and r' + s'. Draws do not help, since they do
    not say how a tail is sorted. Meant beside cross-entropy (the paper adds 1.5 of it): a distance between sorted
    lists does not say which token is the likely one.
    """

    name: ClassVar[str] = "uld"
    estimator: ClassVar[Estimator] = "bound"
    reads_top: ClassVar[bool] = True

    def missing(self, capture: CaptureSpec) -> list[str]:
        """A head by size."""
        if capture.mode == "sampled":
            return ["a head of likely tokens (capture with mode 'threshold' or 'topk')"]
        return []

    def values(self, student: StudentSpan, target: ChunkTarget) -> Tensor:
        """See `ChunkLoss.values`; [P]."""
        p_PK = student.top_logprobs_PK.exp()
        # The student's vocabulary may be smaller than the teacher's head.
        width = p_PK.shape[1]
        t_PK = target.top_probs_PK.to(p_PK.dtype)[:, :width]
        known_PK = torch.arange(width, device=p_PK.device) < target.top_counts_P[:, None]
        # The student's list is cut where the teacher's is.
        p_PK = torch.where(known_PK, p_PK, 0.0)
        return (t_PK - p_PK).abs().sum(1) + (t_PK.sum(1) - p_PK.sum(1)).abs()
