"""What turns a cask into a loss: the protocol of a method, and the one whose student reads the teacher's tokens."""

from logitcask_consumer.methods.method import BatchLoss, BatchValue, Evaluator, Method
from logitcask_consumer.methods.mixture import MixtureMethod, MixturePart
from logitcask_consumer.methods.sparse_target_loss import DistillTask, SparseTargetLoss
from logitcask_consumer.methods.tokens import TokenMethod

__all__ = [
    "BatchLoss",
    "BatchValue",
    "DistillTask",
    "Evaluator",
    "Method",
    "MixtureMethod",
    "MixturePart",
    "SparseTargetLoss",
    "TokenMethod",
]
