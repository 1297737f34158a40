"""The long-term part of MiniLLM's policy gradient: what a token does to the rewards of those after it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, LossMismatchError, Requires, in_range, register
from logitcask_consumer.losses.student_rows import StudentRows
from logitcask_consumer.losses.target import SparseTarget

NO_SAMPLES = (
    "policy_rkl needs how likely the student was to write each token, which is kept beside the texts that it sampled: "
    "`logitcask rounds --recipe minillm`. Other casks do not have it; their losses include reverse_kl, the single-step "
    "part of the same gradient"
)


@register
@dataclass(frozen=True, kw_only=True)
class PolicyReverseKL(Loss):
    """Policy gradient of the sequence-level reverse KL through later tokens, on texts that the student sampled.

    Formula, per position i of a sampled text y of n tokens, whose behaviour policy q is the student that sampled it:
    -min(w A, clip(w, 1 - clip, 1 + clip) A) with w = p(y_i) / q(y_i), and A = sum_{j > i} [log t(y_j) - log q(y_j)],
    divided by n - i, the number of these tokens, with length_norm=yes. Its gradient where nothing is clipped is
    -w A grad log p(y_i). With `reverse_kl`, which is the expectation over y_i itself, and with length_norm=no, it is
    without bias the gradient of KL(p || t) of whole texts where p = q; while p moves away from q, w corrects for the
    token but not for those before it (the paper's choice, for less variance), and clip limits how far.
    Gu et al., MiniLLM, arXiv 2306.08543, equations 5 to 8, with the clipping of its PPO.

    Where the teacher wrote some of the texts, the reward of token j counts q(y_<=j) / m(y_<=j) times, m being the
    density of the prefix under whichever of the two writes; other losses of the objective count q(y_<i) / m(y_<i) times
    at position i (`head.row_blocks`). The expectation is then that over the student's texts; see
    `data.sampled_dataset.policy_values`.

    Estimator: exact; t(y) stands in the record's head. Units: nats.
    """

    name: ClassVar[str] = "policy_rkl"
    estimator: ClassVar[Estimator] = "exact"
    requires: ClassVar[Requires] = Requires(head=False, samples=True)
    clip: float = 0.2
    length_norm: Literal["yes", "no"] = "yes"

    def __post_init__(self) -> None:
        """Check clip."""
        in_range(self, "clip", 0.0, 1.0, open_ends=True)

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The clipped surrogate of each row, [R].

        Raises:
            LossMismatchError: the target is not of texts that a student sampled.
        """
        del scale_R
        if target.policy_R4 is None:
            raise LossMismatchError(NO_SAMPLES)
        log_q_R, later_R, count_R, _ = target.policy_R4.unbind(1)
        advantage_R = later_R / count_R.clamp(min=1.0) if self.length_norm == "yes" else later_R
        ratio_R = (student.next_logprobs_R - log_q_R).exp()
        clipped_R = ratio_R.clamp(1.0 - self.clip, 1.0 + self.clip)
        return -torch.minimum(ratio_R * advantage_R, clipped_R * advantage_R)
