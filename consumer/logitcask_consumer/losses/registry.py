"""The registry of losses: from a name, or a name with parameters, to a loss."""

from dataclasses import fields, replace
from typing import TypeVar, get_type_hints

from logitcask_consumer.losses.loss import Loss, LossParameterError
from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.errors import LogitcaskError

LOSSES: dict[str, Loss] = {}
"""Every registered name with its default parameters."""

L = TypeVar("L", bound=type[Loss])


class LossMismatchError(LogitcaskError, ValueError):
    """A loss was asked of records that cannot support it."""


class UnknownLossError(LogitcaskError, KeyError):
    """A loss was named that is not registered."""

    def __str__(self) -> str:
        return str(self.args[0])


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
    name, _, rest = spec.strip().partition(":")
    if name not in LOSSES:
        raise UnknownLossError(f"there is no loss {name!r}; there are: {', '.join(sorted(LOSSES))}")
    loss, given = LOSSES[name], dict[str, object]()
    types = {f.name: get_type_hints(type(loss))[f.name] for f in fields(loss)}
    for part in filter(None, rest.split(",")):
        key, equals, text = part.partition("=")
        if not equals or key not in types:
            known = ", ".join(types) or "none"
            raise LossParameterError(f"loss {name!r} has no parameter {part!r}; it has: {known}, given as name=value")
        given[key] = _value(name, key, text, types[key])
    return replace(loss, **given)


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


def _value(name: str, key: str, text: str, kind: object) -> object:
    choices = getattr(kind, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        if text not in choices:
            raise LossParameterError(f"loss {name!r}: {key} is one of {', '.join(choices)}, got {text!r}")
        return text
    assert kind in (int, float), f"loss {name}: parameters are numbers or choices, {key} is {kind}"
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        raise LossParameterError(f"loss {name!r}: {key} is a number, got {text!r}") from None
