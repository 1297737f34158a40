"""One pass over a few tokens that notes what every layer of a model was given and what it yielded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

TOKENS: Final = 12


@dataclass(slots=True, kw_only=True)
class LayerPass:
    """What the layers of a model were given and yielded in one pass; by number of the layer."""

    ignored: frozenset[str]
    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    arguments: dict[int, Any] = field(default_factory=dict)
    """All but the hidden states and what is ignored."""
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def over(cls, model: Any, prefix: str, *, ignored: frozenset[str], replaced: Tensor | None = None) -> "LayerPass":
        """Run a model on a few tokens; its last layer yields `replaced`, where given, instead of its own hidden states.

        Args:
            model: a causal LM.
            prefix: name of the list of layers.
            ignored: names of arguments of layers that are not kept.
            replaced: hidden states.
        """
        seen, layers = cls(ignored=ignored), model.get_submodule(prefix)
        weight = model.get_input_embeddings().weight
        ids_1L = (torch.arange(1, TOKENS + 1, device=weight.device) * 7).remainder(weight.shape[0])[None]
        handles = []
        for number, layer in enumerate(layers):
            last = number == len(layers) - 1
            handles += [
                layer.register_forward_pre_hook(seen._before(number), with_kwargs=True),
                layer.register_forward_hook(seen._after(number, replaced if last else None)),
            ]
        try:
            out = model(input_ids=ids_1L, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        seen.logits = out.logits
        return seen

    def is_chain(self, numbers: Sequence[int]) -> bool:
        """Whether every layer ran once, in order, on what the one before it yielded."""
        return list(self.counts) == list(numbers) and all(
            self.counts[i] == 1 and (i == 0 or torch.equal(self.outputs[i - 1], self.inputs[i])) for i in numbers
        )

    def _before(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            hidden = args[0] if args else kwargs.get("hidden_states")
            rest = {name: value for name, value in kwargs.items() if name not in self.ignored}
            if not isinstance(hidden, Tensor):
                return
            rest.pop("hidden_states", None)
            self.counts[number] = self.counts.get(number, 0) + 1
            self.inputs[number] = hidden.clone()
            self.arguments[number] = (args[1:], rest) if args else ((), rest)
            self.calls[number] = (
                ((hidden.clone(), *args[1:]), dict(kwargs))
                if args
                else ((), {**kwargs, "hidden_states": hidden.clone()})
            )

        return hook

    def _after(self, number: int, replaced: Tensor | None) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            del module, args
            hidden = hidden_of(output)
            self.outputs[number] = hidden.clone()
            if replaced is None:
                return None
            return replaced if isinstance(output, Tensor) else (replaced, *output[1:])

        return hook


def hidden_of(output: Any) -> Tensor:
    """The hidden states among what a layer yields."""
    hidden = output[0] if isinstance(output, tuple | list) else output
    return hidden if isinstance(hidden, Tensor) else torch.zeros(0)
