"""The load balancing loss of a student with experts, beside the loss on the teacher's distribution.

A router learns from the distillation loss alone to send all tokens to the experts that are good already. Models are
trained with a loss against that (Switch Transformers, arXiv 2101.03961), and transformers adds it where the config has
`output_router_logits`, times `router_aux_loss_coef`. Here it is transformers' own function, on the slots that hold
tokens.

Shape legend: B sequences, S slots.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from logitcask_schemas.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLoss:
    """Of one student."""

    coefficient: float
    function: Callable[..., Any]
    """`load_balancing_loss_func` of the student's family in transformers."""
    experts: int
    chosen: int
    """Experts of a token."""

    @classmethod
    def of(cls, model: Any, coefficient: float | None) -> Self | None:
        """The loss that a causal LM is to have; None for none.

        Args:
            model: a causal LM, perhaps with adapters.
            coefficient: times which the loss is added, 0 for never; None: that of the model's config, where it has
                `output_router_logits`.

        Raises:
            ModelError: a coefficient was given, and the model has no routers whose loss transformers knows.
        """
        config = model.config.get_text_config()
        if coefficient is None:
            wanted = bool(getattr(config, "output_router_logits", False))
            coefficient = float(getattr(config, "router_aux_loss_coef", 0.0)) if wanted else 0.0
        if not coefficient:
            return None
        routers = _function(model)
        if routers is None:
            raise ModelError(
                f"router loss {coefficient:g}: {type(model).__name__} has no routers whose load balancing loss "
                "transformers knows. Leave --router-loss out"
            )
        function, experts, chosen = routers
        return cls(coefficient=coefficient, function=function, experts=experts, chosen=chosen)

    def value(self, router_logits: Any, position_ids: Tensor) -> Tensor:
        """The loss over the slots that hold tokens, times the coefficient; a differentiable scalar.

        Args:
            router_logits: of each layer with a router, [B · S, experts].
            position_ids: int64 [B, S]; 0 begins a document, and stands in unused slots.

        Raises:
            ModelError: the body yields no router logits.
        """
        if not router_logits:
            raise ModelError("the student's body yields no router logits, which its router loss needs")
        loss: Tensor = self.function(tuple(router_logits), self.experts, self.chosen, used_slots(position_ids))
        return self.coefficient * loss


def router_note(model: Any, coefficient: float | None) -> str | None:
    """What people should know of a student with experts whose load balancing loss was not asked for; None for nothing.

    Args:
        model: a causal LM, perhaps with adapters.
        coefficient: as in `RouterLoss.of`.
    """
    config = model.config.get_text_config()
    if coefficient is not None or getattr(config, "output_router_logits", False) or _function(model) is None:
        return None
    usual = getattr(config, "router_aux_loss_coef", None) or 0.001
    return (
        f"the student has experts, and its config asks for no loss that keeps them balanced; --router-loss {usual:g} "
        "adds it, --router-loss 0 says that it is not wanted"
    )


def used_slots(position_ids: Tensor) -> Tensor:
    """Which slots hold tokens, bool [B, S]: all where none does, so that a mean over them exists.

    A document of a single slot looks like an unused one, and is taken for it.
    """
    used_BS = position_ids > 0
    used_BS[:, :-1] |= position_ids[:, 1:] == 1
    return used_BS | ~used_BS.any()


def with_router_loss(out: dict[str, Any], counted: Tensor) -> Tensor:
    """The summed loss of a forward call, with its router loss for each position that it counts.

    Args:
        out: what the student's forward yields for a `HeadTask`.
        counted: what the sum will be divided by, over the whole step.
    """
    loss: Tensor = out["loss"]
    router: Tensor | None = out.get("router")
    return loss if router is None else loss + router * counted.to(loss.device, loss.dtype)


def _function(model: Any) -> tuple[Callable[..., Any], int, int] | None:
    """Transformers' function for a model, the number of its experts, and of those of a token."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Of a student that is spread over processes, or that somebody has made a class of their own of: its family's.
    modules = (sys.modules[each.__module__] for each in type(whole).__mro__)
    function = next(filter(None, (getattr(module, "load_balancing_loss_func", None) for module in modules)), None)
    experts, chosen = getattr(whole, "num_experts", None), getattr(whole, "num_experts_per_tok", None)
    if function is None or experts is None or chosen is None:
        return None
    return function, int(experts), int(chosen)
