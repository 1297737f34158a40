"""The registry of losses: from a name, or a name with parameters, to a loss."""

from dataclasses import replace
from typing import TypeVar

from logitcask_consumer.losses.loss import Loss
from logitcask_consumer.losses.spec import read_loss
from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.errors import LogitcaskError

LOSSES: dict[str, Loss] = {}
"""Every registered name with its default parameters."""

L = TypeVar("L", bound=type[Loss])


class LossMismatchError(LogitcaskError, ValueError):
    """A loss was asked of records that cannot support it."""


def register(loss: L) -> L:
    """Register a class of losses under its `name`; the first line of its docstring is its summary.

    One that samples the tail by default is registered a second time, as ghost_<name>, with tail=ghost.
    """
    assert loss.name not in LOSSES, f"loss {loss.name} is registered twice"
    assert loss.__doc__, f"loss {loss.name} has no docstring"
    loss.summary = loss.__doc__.splitlines()[0]
    LOSSES[loss.name] = default = loss()
    if getattr(default, "tail", None) == "draws":
        LOSSES[f"ghost_{loss.name}"] = replace(default, tail="ghost")  # type: ignore[call-arg]
    return loss


def get_loss(spec: str) -> Loss:
    """A loss by its name, or with parameters: "js:beta=0.1,tail=ghost".

    Raises:
        UnknownLossError: no such loss; the message lists those there are.
        LossParameterError: it has no such parameter, or the value is not one it can have.
    """
    return read_loss(spec, LOSSES)


def require(loss: Loss, capture: CaptureSpec) -> None:
    """Refuse records that cannot support a loss.

    Raises:
        LossMismatchError: what is missing, the capture option that would have provided it, and the losses that fit.
    """
    if missing := loss.missing(capture):
        fitting = sorted(name for name, other in LOSSES.items() if not other.missing(capture))
        raise LossMismatchError(
            f"loss {loss.spec!r} needs {' and '.join(missing)}; this cask was captured with mode {capture.mode!r}, "
            f"tail_logprobs={str(capture.tail_logprobs).lower()}, temperatures={list(capture.temperatures)}. "
            f"Losses that fit it: {', '.join(fitting)}"
        )
