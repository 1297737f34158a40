"""What users import, by name: `from logitcask import Cask, CaskDataset, DistillTrainer`.

A name loads its module when it is first asked for, so that `import logitcask` is cheap, and works with one side alone:
a name of a side that is not installed says which extra brings it. Whatever stands here keeps its meaning between
versions; modules beneath may move.
"""

import importlib
from typing import TYPE_CHECKING, Any

from logitcask_schemas.errors import MissingExtraError
from logitcask_schemas.terminal import installed_version

if TYPE_CHECKING:
    from logitcask_consumer.config import TrainConfig
    from logitcask_consumer.data import CaskDataset, Collator, open_casks
    from logitcask_consumer.losses import LOSSES, get_loss
    from logitcask_consumer.methods import SparseTargetLoss
    from logitcask_consumer.report.config import ReportConfig
    from logitcask_consumer.report.make_report import make_report
    from logitcask_consumer.rounds.config import RoundsConfig
    from logitcask_consumer.rounds.driver import RoundsResult, run_rounds
    from logitcask_consumer.student.forward import attach, hidden_states
    from logitcask_consumer.training.arguments import DistillConfig
    from logitcask_consumer.training.run import train
    from logitcask_consumer.training.run_content import TrainResult
    from logitcask_consumer.training.trainer import DistillTrainer
    from logitcask_consumer.weights import Weights
    from logitcask_schemas.api.async_client import AsyncServiceClient
    from logitcask_schemas.api.client import ServiceClient
    from logitcask_schemas.api.requests import ExtractionRequest
    from logitcask_schemas.cask import Cask, CaskWriter
    from logitcask_schemas.errors import LogitcaskError
    from logitcask_schemas.record.capture_spec import CaptureSpec, capture_spec
    from logitcask_schemas.record.extent import Context, Extent
    from logitcask_schemas.record.hint_spec import HintSpec
    from logitcask_schemas.record.hints import HintRows
    from logitcask_schemas.record.identity import TeacherIdentity
    from logitcask_schemas.record.records import DocumentRecords, Records

    __version__: str
    """Of the installed distribution."""

__all__ = [
    "LOSSES",
    "AsyncServiceClient",
    "CaptureSpec",
    "Cask",
    "CaskDataset",
    "CaskWriter",
    "Collator",
    "Context",
    "DistillConfig",
    "DistillTrainer",
    "DocumentRecords",
    "Extent",
    "ExtractionRequest",
    "HintRows",
    "HintSpec",
    "LogitcaskError",
    "Records",
    "ReportConfig",
    "RoundsConfig",
    "RoundsResult",
    "ServiceClient",
    "SparseTargetLoss",
    "TeacherIdentity",
    "TrainConfig",
    "TrainResult",
    "Weights",
    "attach",
    "capture_spec",
    "get_loss",
    "hidden_states",
    "make_report",
    "open_casks",
    "run_rounds",
    "train",
]

_MODULES = {
    "logitcask_schemas.api.async_client": ("AsyncServiceClient",),
    "logitcask_schemas.api.client": ("ServiceClient",),
    "logitcask_schemas.api.requests": ("ExtractionRequest",),
    "logitcask_schemas.cask": ("Cask", "CaskWriter"),
    "logitcask_schemas.errors": ("LogitcaskError",),
    "logitcask_schemas.record.capture_spec": ("CaptureSpec", "capture_spec"),
    "logitcask_schemas.record.extent": ("Context", "Extent"),
    "logitcask_schemas.record.hint_spec": ("HintSpec",),
    "logitcask_schemas.record.hints": ("HintRows",),
    "logitcask_schemas.record.identity": ("TeacherIdentity",),
    "logitcask_schemas.record.records": ("DocumentRecords", "Records"),
    "logitcask_consumer.config": ("TrainConfig",),
    "logitcask_consumer.data": ("CaskDataset", "Collator", "open_casks"),
    "logitcask_consumer.losses": ("LOSSES", "get_loss"),
    "logitcask_consumer.methods": ("SparseTargetLoss",),
    "logitcask_consumer.report.config": ("ReportConfig",),
    "logitcask_consumer.report.make_report": ("make_report",),
    "logitcask_consumer.rounds.config": ("RoundsConfig",),
    "logitcask_consumer.rounds.driver": ("RoundsResult", "run_rounds"),
    "logitcask_consumer.student.forward": ("attach", "hidden_states"),
    "logitcask_consumer.training.arguments": ("DistillConfig",),
    "logitcask_consumer.training.run": ("train",),
    "logitcask_consumer.training.run_content": ("TrainResult",),
    "logitcask_consumer.training.trainer": ("DistillTrainer",),
    "logitcask_consumer.weights": ("Weights",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}
_EXTRAS = {"logitcask_consumer": "trainer", "logitcask_schemas.api": "service"}
"""Packages whose modules need an extra."""


def __getattr__(name: str) -> Any:
    """Load a public name.

    Raises:
        AttributeError: there is no such name.
        MissingExtraError: its side's extra is not installed.
    """
    if name == "__version__":
        return installed_version()
    module = _PLACES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        extra = next((extra for package, extra in _EXTRAS.items() if module.startswith(package)), None)
        if extra is None or missing.startswith("logitcask"):
            raise
        raise MissingExtraError(f"logitcask.{name}", extra, missing) from error


def __dir__() -> list[str]:
    return sorted(__all__)
