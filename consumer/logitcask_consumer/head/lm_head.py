"""The student's LM head: what turns hidden states into logits, taken out of the model to be applied to a few rows.

Shape legend: R rows, D hidden size, V vocabulary size, K rank of an adapter.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from logitcask_schemas.errors import ModelError
from logitcask_schemas.terminal import counted

# Config fields by which architectures change their logits after the matrix product.
_DIVISORS = ("logits_scaling",)
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_SOFTCAPS = ("final_logit_softcapping",)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTransform:
    """z = cap · tanh(scale · u / cap), or z = scale · u without a cap; u are the products of the head."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Read scaling and soft-capping from a transformers config."""
        text = config.get_text_config()
        scale = 1.0
        for name in _DIVISORS:
            scale /= _number(text, name, 1.0)
        for name in _MULTIPLIERS:
            scale *= _number(text, name, 1.0)
        caps = [cap for name in _SOFTCAPS if (cap := _number(text, name, 0.0))]
        return cls(scale=scale, softcap=caps[0] if caps else None)

    def forward_(self, products_RV: Tensor) -> Tensor:
        """Logits z from products u, in place."""
        if self.scale != 1.0:
            products_RV.mul_(self.scale)
        if self.softcap is not None:
            products_RV.div_(self.softcap).tanh_().mul_(self.softcap)
        return products_RV

    def backward_(self, grad_RV: Tensor, logits_RV: Tensor | None) -> Tensor:
        """Gradient for u from the gradient for z, in place; `logits_RV` (z) is needed with a cap only."""
        if self.softcap is not None:
            assert logits_RV is not None
            grad_RV.mul_(1.0 - (logits_RV / self.softcap).square())
        if self.scale != 1.0:
            grad_RV.mul_(self.scale)
        return grad_RV


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """An adapter of the head (LoRA, arXiv 2106.09685): adds scale · drop(h) Aᵀ Bᵀ to the products.

    W + scale · B A is never made: it would be another [V, D].
    """

    down_KD: Tensor
    """A of the adapter, [K, D]."""
    up_VK: Tensor
    """B of the adapter, [V, K]."""
    scale: float = 1.0
    dropout: nn.Module | None = None

    def down(self, hidden_RD: Tensor) -> Tensor:
        """Return scale · drop(h) Aᵀ, [R, K]."""
        hidden_RD = hidden_RD.to(self.down_KD.dtype)
        dropped_RD = hidden_RD if self.dropout is None else self.dropout(hidden_RD)
        return nn.functional.linear(dropped_RD, self.down_KD) * self.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class LMHead:
    """Weight, bias, adapter and logit transform of an LM head."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    low_rank: LowRank | None = None
    transform: LogitTransform = LogitTransform()

    @classmethod
    def from_model(cls, model: Any) -> Self:
        """Take the head of a transformers causal LM; parameters are shared, not copied.

        A head that peft wraps is taken apart: its base, or trained copy (`modules_to_save`), and its LoRA adapter.

        Raises:
            ModelError: the model has no linear output embedding, or one with an adapter that is not plain LoRA.
        """
        linear, low_rank = unwrapped(model.get_output_embeddings())
        if not isinstance(linear, nn.Linear):
            raise ModelError(
                f"{type(model).__name__} has an output embedding of type {type(linear).__name__}; "
                "the loss needs a linear LM head (torch.nn.Linear)"
            )
        return cls(
            weight_VD=linear.weight,
            bias_V=linear.bias,
            low_rank=low_rank,
            transform=LogitTransform.from_config(model.config),
        )

    @property
    def vocab_size(self) -> int:
        """Ids of the head, V."""
        return self.weight_VD.shape[0]

    def narrowed(self, width: int | None) -> Self:
        """The head of the first `width` ids; gradients flow to the whole head, 0 for the other ids."""
        if width is None or width >= self.vocab_size:
            return self
        return replace(
            self,
            weight_VD=self.weight_VD[:width],
            bias_V=None if self.bias_V is None else self.bias_V[:width],
            low_rank=None if self.low_rank is None else replace(self.low_rank, up_VK=self.low_rank.up_VK[:width]),
        )

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """All logits of a few rows, [R, V]: for evaluation and checks, never for whole batches in training."""
        products_RV = nn.functional.linear(hidden_RD, self.weight_VD, self.bias_V)
        if self.low_rank is not None:
            products_RV = products_RV + nn.functional.linear(self.low_rank.down(hidden_RD), self.low_rank.up_VK)
        return self.transform.forward_(products_RV)


def unwrapped(layer: Any) -> tuple[Any, LowRank | None]:
    """A layer as peft wraps it: the layer inside, and its active LoRA adapter; others are returned as they are.

    Peft is not imported: its layers are known by their attributes.

    Raises:
        ModelError: several adapters are active, or one that is not plain LoRA (DoRA, one with a bias).
    """
    if hasattr(layer, "modules_to_save") and hasattr(layer, "original_module"):
        active = [name for name in layer.active_adapters if name in layer.modules_to_save]
        return (layer.modules_to_save[active[0]] if active else layer.original_module), None
    if not (hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer")):
        return layer, None
    base = layer.get_base_layer()
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or not active:
        return base, None
    [name, *others] = active
    up = layer.lora_B[name]
    if others or name in layer.lora_variant or up.bias is not None:
        raise ModelError(
            f"the LM head has adapters {active} of which the loss cannot make sense; it takes one plain LoRA "
            "adapter (no DoRA, no lora_bias)"
        )
    dropout = layer.lora_dropout[name]
    return base, LowRank(
        down_KD=layer.lora_A[name].weight,
        up_VK=up.weight,
        scale=float(layer.scaling[name]),
        dropout=None if isinstance(dropout, nn.Identity) else dropout,
    )


def base_model(model: Any) -> nn.Module:
    """The part of a transformers causal LM that yields hidden states.

    Raises:
        ModelError: the model is its own base (it has no LM head on top of a body).
    """
    body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if body is model or body is model.get_output_embeddings():
        # Llama 4 names its body otherwise than its class says, ModernBERT's decoder its head so.
        body = getattr(model, "model", model)
    if body is model or not isinstance(body, nn.Module):
        raise ModelError(
            f"{type(model).__name__} is not a causal LM with a body and a head; pass an AutoModelForCausalLM"
        )
    return body


@torch.no_grad()
def check_head(model: Any, *, tokens: int = 8, relative_tolerance: float = 1e-3) -> None:
    """Prove that body + LMHead gives the logits of the model's own forward, on a few tokens.

    Architectures differ in what they do to logits; one that does something unknown must fail here, not train wrongly.

    Raises:
        ModelError: the logits are no numbers, or differ by more than the tolerance (relative to their largest absolute
            value).
    """
    head, was_training = LMHead.from_model(model), model.training
    model.eval()
    ids_1L = torch.arange(1, tokens + 1, device=head.weight_VD.device).remainder(head.vocab_size)[None]
    expected_LV = model(input_ids=ids_1L, use_cache=False).logits[0].double()
    hidden_LD = base_model(model)(input_ids=ids_1L, use_cache=False).last_hidden_state[0]
    got_LV = head.logits(hidden_LD.to(head.weight_VD.dtype)).double()
    model.train(was_training)
    if expected_LV.shape != got_LV.shape:
        raise ModelError(
            f"{type(model).__name__} yields logits {tuple(expected_LV.shape)}, its head {tuple(got_LV.shape)}"
        )
    if bool(expected_LV.isnan().any()):
        raise ModelError(f"{type(model).__name__} gives logits that are no numbers: {_weights_that_are_none(model)}")
    # Ids that a model gives no probability have -inf on both sides, whose difference is no number.
    difference_LV = torch.where(expected_LV == got_LV, 0.0, expected_LV - got_LV)
    largest = (
        expected_LV[expected_LV.isfinite()].abs().max() if expected_LV.isfinite().any() else expected_LV.new_ones(())
    )
    error = float(difference_LV.abs().max() / largest.clamp(min=1e-6))
    # bfloat16 keeps 8 bits: its logits move by 0.4 % of their size however the head is applied.
    allowed = max(relative_tolerance, 2.0 * torch.finfo(head.weight_VD.dtype).eps)
    if not error <= allowed:
        raise ModelError(
            f"the logits of {type(model).__name__} are not its LM head applied to its hidden states: they differ by "
            f"{error:.2g} of their largest value, allowed is {allowed:.2g}. The architecture changes its logits in a "
            "way that LogitTransform.from_config does not know"
        )


def _weights_that_are_none(model: Any) -> str:
    """Which weights are NaN or infinite, for people."""
    names = [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]
    if not names:
        return "its weights are, but what it computes of them overflows. Name an earlier checkpoint of it"
    more = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
    return f"{names[0]}{more} hold NaN or infinity. Its training diverged, or its file is damaged; name an earlier one"


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)
