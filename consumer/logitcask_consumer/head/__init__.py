"""The LM head with the loss folded in: [rows, vocabulary] exists for one block of rows at a time."""

from logitcask_consumer.head.dense_target import DenseTarget
from logitcask_consumer.head.fused_head import ShapeError
from logitcask_consumer.head.lm_head import LMHead, LogitTransform, LowRank, base_model, check_head
from logitcask_consumer.head.row_blocks import LossResult, distillation_loss

__all__ = [
    "DenseTarget",
    "LMHead",
    "LogitTransform",
    "LossResult",
    "LowRank",
    "ShapeError",
    "base_model",
    "check_head",
    "distillation_loss",
]
