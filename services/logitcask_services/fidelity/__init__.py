"""Where each nat goes between a teacher and a cask of it: engine noise, capture, codec, draws, top-k, windows."""

from logitcask_services.fidelity.passes import EnginePasses, engine_passes
from logitcask_services.fidelity.report import FidelityReport, fidelity_report
from logitcask_services.fidelity.sample import FidelityError, Sample

__all__ = ["EnginePasses", "FidelityError", "FidelityReport", "Sample", "engine_passes", "fidelity_report"]
