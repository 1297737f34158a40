"""Approximate likelihood matching: the student gives each aligned chunk the teacher's likelihood."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from logitcask_consumer.cross_tokenizer.chunk_loss import ChunkLoss, StudentSpan
from logitcask_consumer.cross_tokenizer.target import ChunkTarget
from logitcask_consumer.losses.loss import Estimator, LossParameterError
from logitcask_consumer.losses.mix import Mix, split_mix
from logitcask_schemas.record.capture_spec import CaptureSpec

_BELOW_ONE: Final = 1e-6
"""Likelihoods are taken times exp(-1e-6), on both sides: at 1 the other outcome would have no logarithm."""

_NEXT_TOKEN: Final = "log t of every realised token (this cask was imported from a top-k cache: capture with logitcask)"


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
        """The likelihood of every realised token; draws, for the mass on new words."""
        if capture.imported:
            return [_NEXT_TOKEN]
        if self.debias == "space" and capture.mode == "topk":
            return [
                "draws from the tail, to weigh what may follow a chunk (capture with mode 'threshold' or 'sampled', or "
                "take 'alm:debias=none')"
            ]
        return []

    def values(self, student: StudentSpan, target: ChunkTarget) -> Tensor:
        """The divergence of each chunk, [C]."""
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
        """A head by size, and the likelihood of every realised token, by which chunks are made."""
        if capture.imported:
            return [_NEXT_TOKEN]
        if capture.mode == "sampled":
            return ["a head of likely tokens (capture with mode 'threshold' or 'topk')"]
        return []

    def values(self, student: StudentSpan, target: ChunkTarget) -> Tensor:
        """The distance of each pair, [P]."""
        p_PK = student.top_logprobs_PK.exp()
        # The student's vocabulary may be smaller than the teacher's head.
        width = p_PK.shape[1]
        t_PK = target.top_probs_PK.to(p_PK.dtype)[:, :width]
        filled_PK = torch.arange(width, device=p_PK.device) < target.top_counts_P[:, None]
        # The student's list is cut where the teacher's is.
        p_PK = torch.where(filled_PK, p_PK, 0.0)
        return (t_PK - p_PK).abs().sum(1) + (t_PK.sum(1) - p_PK.sum(1)).abs()


@dataclass(frozen=True, kw_only=True)
class NextToken(ChunkLoss):
    """-log p of the student's next token, at every counted row. Estimator: exact."""

    name: ClassVar[str] = "cross_entropy"
    estimator: ClassVar[Estimator] = "exact"

    def values(self, student: StudentSpan, target: ChunkTarget) -> Tensor:
        """The cross-entropy of each row, [R], 0 where a row does not count."""
        return -student.next_logprobs_R * target.counted_R


CHUNK_LOSSES: Final[dict[str, ChunkLoss]] = {loss.name: loss for loss in (Alm(), NextToken(), Uld())}
_OWN: Final = CHUNK_LOSSES.keys() - {NextToken.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkObjective(Mix[ChunkLoss]):
    """A mix of losses on aligned chunks."""

    registry: ClassVar[Mapping[str, ChunkLoss]] = CHUNK_LOSSES
    cross_entropy: ClassVar[ChunkLoss] = NextToken()
    what: ClassVar[str] = " for aligned chunks, as a mix with alm or uld needs it"
    told_apart_by: ClassVar[str] = "name"

    @staticmethod
    def needs_chunks(text: str) -> bool:
        """Whether a mix holds a loss that needs aligned chunks."""
        return any(spec.partition(":")[0] in _OWN for _, spec in split_mix(text))

    @property
    def threshold(self) -> float:
        """Up to which mass on new words chunks are joined; negative: never."""
        return max(loss.threshold for loss in self.losses)

    @property
    def reads_top(self) -> bool:
        """Whether a loss reads the teacher's largest probabilities."""
        return any(loss.reads_top for loss in self.losses)
