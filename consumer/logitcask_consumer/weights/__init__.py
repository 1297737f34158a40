"""Weights of positions: which positions are trained, and how much each counts.

A run may name a product of weights (`Weights.parse`). Importing this package registers every one in `WEIGHTS`. Two
kinds: those that follow from the record and the document's tokens (`RecordWeight`), made while a batch is read, so that
a position of weight 0 is left out of everything after it; and the selection by the student's entropy (`EntropyTop`),
made in the forward pass.
"""

from logitcask_consumer.weights.assistant_only import AssistantOnly
from logitcask_consumer.weights.completion_only import CompletionOnly
from logitcask_consumer.weights.entropy_top import EntropyTop
from logitcask_consumer.weights.product import Weights
from logitcask_consumer.weights.ranges import Ranges
from logitcask_consumer.weights.skip_tokens import SkipTokens
from logitcask_consumer.weights.tail_mass import TailMass
from logitcask_consumer.weights.teacher_confidence import TeacherConfidence
from logitcask_consumer.weights.teacher_entropy import TeacherEntropy
from logitcask_consumer.weights.weight import (
    WEIGHTS,
    Positions,
    RecordWeight,
    StoredAnswers,
    UnknownWeightError,
    Weight,
    WeightParameterError,
    get_weight,
    register,
)

__all__ = [
    "WEIGHTS",
    "AssistantOnly",
    "CompletionOnly",
    "EntropyTop",
    "Positions",
    "Ranges",
    "RecordWeight",
    "SkipTokens",
    "StoredAnswers",
    "TailMass",
    "TeacherConfidence",
    "TeacherEntropy",
    "UnknownWeightError",
    "Weight",
    "WeightParameterError",
    "Weights",
    "get_weight",
    "register",
]
