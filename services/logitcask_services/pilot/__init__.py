"""Choosing tau for a budget of bytes per token, from one pilot pass over a few thousand positions."""

from logitcask_services.pilot.choose_tau import TauChoice, choose_tau
from logitcask_services.pilot.costs import TauFigures
from logitcask_services.pilot.pilot import PilotError

__all__ = ["PilotError", "TauChoice", "TauFigures", "choose_tau"]
