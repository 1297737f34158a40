"""Records whose entropy is a lower bound: what follows from the entropy refuses them, by name."""

from types import SimpleNamespace
from typing import Any

import pytest

from logitcask_consumer.losses import LOSSES
from logitcask_consumer.methods.sparse_target_loss import SparseTargetLoss
from logitcask_consumer.report.build import _require_captured
from logitcask_consumer.report.config import ReportError
from logitcask_consumer.weights import WeightParameterError, Weights
from logitcask_schemas.record.capture_spec import CaptureSpec

EXACT = CaptureSpec(mode="topk", k=20)
SERVED = CaptureSpec(mode="topk", k=20, entropy="at_least")


def test_losses_of_topk_fit_and_name_the_entropy_for_what_it_is():
    fitting = [name for name, loss in LOSSES.items() if not loss.missing(EXACT)]
    assert fitting == [name for name, loss in LOSSES.items() if not loss.missing(SERVED)]
    assert SparseTargetLoss(fitting[0], capture=EXACT).exact_entropy
    assert not SparseTargetLoss(fitting[0], capture=SERVED).exact_entropy


def test_weights_by_the_entropy_refuse():
    weights = Weights.parse("teacher_entropy:most=3")
    weights.require(EXACT, where="cask")
    with pytest.raises(WeightParameterError, match="holds the top-k of a teacher that was served elsewhere"):
        weights.require(SERVED, where="cask")


def test_reports_refuse():
    cask: Any = SimpleNamespace(place="cask", manifest=SimpleNamespace(capture=SERVED))
    with pytest.raises(ReportError, match="of its entropy a lower bound is known"):
        _require_captured([cask])
