"""Hint losses: the student's states against the teacher's, which a cask keeps beside its records.

Read in this order: `layer_map` (which layers), `hint_loss` (what a loss is), the losses (`cosine`, `pkd`, `mse`,
`relation`, `ted`), `objective` (how they are written), `bound` (the losses on one student and one dataset).
"""

from logitcask_consumer.hints.cosine import Cosine
from logitcask_consumer.hints.hint_loss import HINT_LOSSES, HintLoss, HintMismatchError, register_hint
from logitcask_consumer.hints.layer_map import LayerMapError, LayerPair
from logitcask_consumer.hints.mse import MeanSquares
from logitcask_consumer.hints.objective import HintObjective
from logitcask_consumer.hints.pkd import PatientKD
from logitcask_consumer.hints.relation import Relation
from logitcask_consumer.hints.ted import TaskAware

__all__ = [
    "HINT_LOSSES",
    "Cosine",
    "HintLoss",
    "HintMismatchError",
    "HintObjective",
    "LayerMapError",
    "LayerPair",
    "MeanSquares",
    "PatientKD",
    "Relation",
    "TaskAware",
    "register_hint",
]
