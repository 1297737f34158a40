"""Distillation losses on sparse targets: formulas over a few values per position.

Importing this package registers every loss in `LOSSES`.
"""

from logitcask_consumer.losses.formulas.adaptive_kl import AdaptiveKL
from logitcask_consumer.losses.formulas.alpha_beta import AlphaBeta
from logitcask_consumer.losses.formulas.bild import LogitsDifference
from logitcask_consumer.losses.formulas.cross_entropy import CrossEntropy
from logitcask_consumer.losses.formulas.csd import ConcreteScore
from logitcask_consumer.losses.formulas.forward_kl import ForwardKL
from logitcask_consumer.losses.formulas.ghost_kl import GhostKL
from logitcask_consumer.losses.formulas.js import JensenShannon
from logitcask_consumer.losses.formulas.policy_rkl import PolicyReverseKL
from logitcask_consumer.losses.formulas.reverse_kl import ReverseKL
from logitcask_consumer.losses.formulas.skew_kl import SkewKL
from logitcask_consumer.losses.formulas.skew_reverse_kl import SkewReverseKL
from logitcask_consumer.losses.formulas.taid import Taid
from logitcask_consumer.losses.formulas.tail_aware import TailAware
from logitcask_consumer.losses.formulas.todi import ToDi
from logitcask_consumer.losses.formulas.topk_renorm import TopKRenorm
from logitcask_consumer.losses.formulas.tvd import TotalVariation
from logitcask_consumer.losses.loss import (
    LOSSES,
    Loss,
    LossMismatchError,
    LossParameterError,
    UnknownLossError,
    get_loss,
    register,
)
from logitcask_consumer.losses.mix import Objective
from logitcask_consumer.losses.target import SparseTarget

__all__ = [
    "LOSSES",
    "AdaptiveKL",
    "AlphaBeta",
    "ConcreteScore",
    "CrossEntropy",
    "ForwardKL",
    "GhostKL",
    "JensenShannon",
    "LogitsDifference",
    "Loss",
    "LossMismatchError",
    "LossParameterError",
    "Objective",
    "PolicyReverseKL",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "SparseTarget",
    "Taid",
    "TailAware",
    "ToDi",
    "TopKRenorm",
    "TotalVariation",
    "UnknownLossError",
    "get_loss",
    "register",
]
