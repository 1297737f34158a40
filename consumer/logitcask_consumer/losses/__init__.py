"""Distillation losses on sparse targets, applied through the LM head in chunks.

Importing this package registers every loss in `LOSSES`.
"""

from logitcask_consumer.losses.adaptive_kl import AdaptiveKL
from logitcask_consumer.losses.alpha_beta import AlphaBeta
from logitcask_consumer.losses.bild import LogitsDifference
from logitcask_consumer.losses.chunked import LossResult, Terms, distillation_loss
from logitcask_consumer.losses.cross_entropy import CrossEntropy
from logitcask_consumer.losses.csd import ConcreteScore
from logitcask_consumer.losses.forward_kl import ForwardKL
from logitcask_consumer.losses.fused_head import ShapeError
from logitcask_consumer.losses.ghost_kl import GhostKL
from logitcask_consumer.losses.head import LMHead, LogitTransform, LowRank, base_model, check_head
from logitcask_consumer.losses.js import JensenShannon
from logitcask_consumer.losses.loss import Loss
from logitcask_consumer.losses.objective import Objective
from logitcask_consumer.losses.registry import LOSSES, LossMismatchError, get_loss, register
from logitcask_consumer.losses.reverse_kl import ReverseKL
from logitcask_consumer.losses.skew_kl import SkewKL
from logitcask_consumer.losses.skew_reverse_kl import SkewReverseKL
from logitcask_consumer.losses.spec import LossParameterError, UnknownLossError
from logitcask_consumer.losses.taid import Taid
from logitcask_consumer.losses.tail_aware import TailAware
from logitcask_consumer.losses.target import SparseTarget
from logitcask_consumer.losses.todi import ToDi
from logitcask_consumer.losses.topk_renorm import TopKRenorm
from logitcask_consumer.losses.tvd import TotalVariation

__all__ = [
    "LOSSES",
    "AdaptiveKL",
    "AlphaBeta",
    "ConcreteScore",
    "CrossEntropy",
    "ForwardKL",
    "GhostKL",
    "JensenShannon",
    "LMHead",
    "LogitTransform",
    "LogitsDifference",
    "Loss",
    "LossMismatchError",
    "LossParameterError",
    "LossResult",
    "LowRank",
    "Objective",
    "ReverseKL",
    "ShapeError",
    "SkewKL",
    "SkewReverseKL",
    "SparseTarget",
    "Taid",
    "TailAware",
    "Terms",
    "ToDi",
    "TopKRenorm",
    "TotalVariation",
    "UnknownLossError",
    "base_model",
    "check_head",
    "distillation_loss",
    "get_loss",
    "register",
]
