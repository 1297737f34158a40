"""The registry of losses, and what a loss is: a function of one chunk of logits and its sparse target.

Shape legend: R rows of a chunk, V vocabulary size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from logitcask_consumer.losses.target import SparseTarget
from logitcask_schemas.errors import LogitcaskError

Estimator = Literal["exact", "unbiased", "bound", "biased"]
"""What a loss and its gradient on sampled records are to the dense divergence: equal to it, equal in expectation, a
lower bound of it, or neither."""

CaptureMode = Literal["threshold", "topk", "sampled"]


class UnknownLossError(LogitcaskError, KeyError):
    """A loss was named that is not registered."""

    def __str__(self) -> str:
        return str(self.args[0])


class LossMismatchError(LogitcaskError, ValueError):
    """A loss was asked of records that cannot support it."""


class ChunkLoss(NamedTuple):
    """Result on one chunk: the distillation loss and the cross-entropy of each row, in nats, both [R]."""

    kd_R: Tensor
    ce_R: Tensor


class ChunkFunction(Protocol):
    """Loss of one chunk; with `with_grad`, overwrites the logits by the gradient of (1 - w)·sum(kd) + w·sum(ce)."""

    def __call__(self, logits_RV: Tensor, target: SparseTarget, *, ce_weight: float, with_grad: bool) -> ChunkLoss:
        """Compute the chunk's loss.

        Args:
            logits_RV: float32 or float64 logits of the student; the function may overwrite them.
            target: R rows of the teacher's target.
            ce_weight: share w of the cross-entropy with the realised token, 0 to 1.
            with_grad: leave the gradient in `logits_RV`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A registered loss."""

    name: str
    chunk: ChunkFunction
    estimator: Estimator
    modes: frozenset[CaptureMode]
    """Capture modes whose records support the loss."""
    kl_value: bool
    """Whether kd - H(t) is an estimate of KL(teacher || student)."""
    summary: str

    def require_mode(self, mode: CaptureMode) -> None:
        """Raise LossMismatchError where records of this capture mode do not support the loss."""
        if mode not in self.modes:
            fitting = sorted(loss.name for loss in LOSSES.values() if mode in loss.modes)
            raise LossMismatchError(
                f"loss {self.name!r} needs records of mode {' or '.join(sorted(self.modes))}, this cask was captured "
                f"in mode {mode!r}; losses that fit: {', '.join(fitting)}"
            )


LOSSES: dict[str, Loss] = {}


def register(
    name: str, *, estimator: Estimator, modes: set[CaptureMode], kl_value: bool
) -> Callable[[ChunkFunction], ChunkFunction]:
    """Register a chunk function as a loss; the first line of its docstring is its summary."""

    def decorate(chunk: ChunkFunction) -> ChunkFunction:
        assert name not in LOSSES, f"loss {name} is registered twice"
        assert chunk.__doc__, f"loss {name} has no docstring"
        LOSSES[name] = Loss(
            name=name,
            chunk=chunk,
            estimator=estimator,
            modes=frozenset(modes),
            kl_value=kl_value,
            summary=chunk.__doc__.splitlines()[0],
        )
        return chunk

    return decorate


def get_loss(name: str) -> Loss:
    """The loss of that name.

    Raises:
        UnknownLossError: no such loss; the message lists those there are.
    """
    if name not in LOSSES:
        raise UnknownLossError(f"there is no loss {name!r}; there are: {', '.join(sorted(LOSSES))}")
    return LOSSES[name]
