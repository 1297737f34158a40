"""Approximate likelihood matching: the student gives each aligned chunk the teacher's likelihood."""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from logitcask_consumer.cross_tokenizer.loss import ChunkLoss, StudentSpan
from logitcask_consumer.cross_tokenizer.target import ChunkTarget
from logitcask_consumer.losses.loss import Estimator
from logitcask_consumer.losses.spec import LossParameterError
from logitcask_schemas.capture_spec import CaptureSpec

_BELOW_ONE: Final = 1e-6
"""Likelihoods are taken times exp(-1e-6), on both sides: at 1 the other outcome would have no logarithm."""


@dataclass(frozen=True, kw_only=True)
class Alm(ChunkLoss):
    """Binary divergence between the likelihoods that both models give to an aligned chunk.

    Formula, per chunk c with likelihoods T(c) = prod t(y), S(c) = prod p(y) over its tokens of either side and
    temperature tau, with t = T(c)^(1/tau), p = S(c)^(1/tau)::

        kl          tau [ t log(t / p) + (1 - t) log((1 - t) / (1 - p)) ]
        reverse_kl  tau [ p log(p / t) + (1 - p) log((1 - p) / (1 - t)) ]
        tvd         tau |t - p|

    The two outcomes are "this chunk" and "anything else", which needs no common vocabulary. The factor tau keeps
    gradients of one size: for tau to infinity the first is a log(a / b) - a + b with a = -log T(c), b = -log S(c).

    A likelihood by tokens counts texts that go on with the same word only where the tokenizer would cut there, which
    differs between tokenizers. `debias=space` therefore multiplies both likelihoods with the mass that the model puts,
    after the chunk, on tokens that begin a new word (white space or a special token), and chunks are joined until the
    teacher's mass exceeds `threshold`. Minixhofer, Vulić, Ponti, arXiv 2503.20083 (their tokenkit: temperature 100,
    threshold 0.1). The last chunk of a window has no such mass, on either side.

    Estimator: exact with `debias=none` and a negative threshold, since the head holds log t(y) of every position. Else
    the teacher's mass on new words is exact on the head and estimated by the draws: consistent.
    """

    name: ClassVar[str] = "alm"
    temperature: float = 100.0
    threshold: float = 0.1
    divergence: Literal["kl", "reverse_kl", "tvd"] = "kl"
    debias: Literal["space", "none"] = "space"

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            LossParameterError: one is out of range.
        """
        if not 1.0 <= self.temperature <= 1e6:
            raise LossParameterError(f"loss 'alm': temperature must lie between 1 and 1e6, got {self.temperature:g}")
        if not self.threshold < 1.0:
            raise LossParameterError(f"loss 'alm': threshold must be below 1, got {self.threshold:g}")

    @property
    def estimator(self) -> Estimator:
        """Exact where nothing but log t(y) is read."""
        return "exact" if self.debias == "none" and self.threshold < 0 else "consistent"

    @property
    def reads_closing(self) -> bool:
        """The mass on new words."""
        return self.debias == "space"

    def missing(self, capture: CaptureSpec) -> list[str]:
        """Draws, for the mass on new words."""
        if self.debias == "space" and capture.mode == "topk":
            return [
                "draws from the tail, to weigh what may follow a chunk (capture with mode 'threshold' or 'sampled', or "
                "take 'alm:debias=none')"
            ]
        return []

    def values(self, student: StudentSpan, target: ChunkTarget) -> Tensor:
        """See `ChunkLoss.values`; [C]."""
        sums = student.next_logprobs_R.new_zeros(target.num_chunks + 1)
        log_p_C = sums.index_add(0, target.chunk_of_R, student.next_logprobs_R)[:-1]
        log_t_C = target.teacher_logprobs_C.to(log_p_C.dtype)
        if self.debias == "space":
            log_p_C = log_p_C + student.closing_logmass_C
            log_t_C = log_t_C + target.closing_logmass_C.to(log_p_C.dtype)
        log_t_C, log_p_C = log_t_C / self.temperature - _BELOW_ONE, log_p_C / self.temperature - _BELOW_ONE
        if self.divergence == "tvd":
            return self.temperature * (log_t_C.exp() - log_p_C.exp()).abs()
        if self.divergence == "reverse_kl":
            log_t_C, log_p_C = log_p_C, log_t_C
        here_C = log_t_C.exp() * (log_t_C - log_p_C)
        return self.temperature * (here_C - torch.expm1(log_t_C) * (_log1mexp(log_t_C) - _log1mexp(log_p_C)))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0."""
    return torch.log(-torch.expm1(x))
