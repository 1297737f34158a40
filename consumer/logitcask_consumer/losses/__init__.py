"""Distillation losses on sparse targets, applied through the LM head in chunks.

Importing this package registers every loss in `LOSSES`.
"""

from logitcask_consumer.losses.chunked import LossResult, ShapeError, distillation_loss
from logitcask_consumer.losses.cross_entropy import cross_entropy
from logitcask_consumer.losses.forward_kl import forward_kl
from logitcask_consumer.losses.ghost_kl import ghost_kl
from logitcask_consumer.losses.head import LMHead, LogitTransform, base_model, check_head
from logitcask_consumer.losses.registry import (
    LOSSES,
    ChunkLoss,
    Loss,
    LossMismatchError,
    UnknownLossError,
    get_loss,
    register,
)
from logitcask_consumer.losses.target import SparseTarget
from logitcask_consumer.losses.topk_renorm import topk_renorm

__all__ = [
    "LOSSES",
    "ChunkLoss",
    "LMHead",
    "LogitTransform",
    "Loss",
    "LossMismatchError",
    "LossResult",
    "ShapeError",
    "SparseTarget",
    "UnknownLossError",
    "base_model",
    "check_head",
    "cross_entropy",
    "distillation_loss",
    "forward_kl",
    "get_loss",
    "ghost_kl",
    "register",
    "topk_renorm",
]
