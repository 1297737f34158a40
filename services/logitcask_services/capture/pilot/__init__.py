"""Choosing tau for a budget of bytes per token, from one pilot pass over a few thousand positions.

Imported where it is used, not with `logitcask_services.capture`: engines need none of it.
"""

from logitcask_services.capture.pilot.choose import TauChoice, choose_tau
from logitcask_services.capture.pilot.errors import PilotError
from logitcask_services.capture.pilot.figures import TauFigures

__all__ = ["PilotError", "TauChoice", "TauFigures", "choose_tau"]
