"""Which layers a model needs most, by what it says of text without each of them.

As in Minitron (arXiv 2407.14679), each layer is left out alone; what that costs is KL(whole || without it), mean over
all tokens, in nats. Any family will do whose layers stand in a list. Layers that change little, by the cosine between
what they are given and what they yield (ShortGPT, arXiv 2403.03853), may still be needed: see decision 0058.

Shape legend: L tokens of a piece of text, N layers, D hidden channels, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from logitcask_consumer.head import LMHead, base_model
from logitcask_consumer.student.importance import ids_of, reading, text_tokens
from logitcask_consumer.student.layer_pass import hidden_of
from logitcask_schemas.errors import ModelError

PIECE_TOKENS: Final = 256
"""Longer documents are read in pieces, so that [L, V] stays small."""


def layer_importance(model: Any, prefix: str, texts: Sequence[NDArray[Any]]) -> Tensor:
    """Nats per token that leaving out each layer costs, [N], float64.

    The model reads the texts N + 1 times.

    Args:
        model: a causal LM. It is run on an accelerator where there is one.
        prefix: name of the list of layers.
        texts: token ids of documents, [L] each.

    Raises:
        ModelError: there is no text, or a layer cannot be left out.
    """
    tokens = text_tokens(texts, "layers")
    layers = model.get_submodule(prefix)
    costs_N = torch.zeros(len(layers), dtype=torch.float64)
    pieces = [text[start : start + PIECE_TOKENS] for text in texts for start in range(0, len(text), PIECE_TOKENS)]
    with reading(model) as device:
        body, head = base_model(model), LMHead.from_model(model)

        def log_probs(ids_1L: Tensor) -> Tensor:
            hidden_LD = body(input_ids=ids_1L, use_cache=False).last_hidden_state[0]
            return head.logits(hidden_LD).float().log_softmax(-1)

        for piece in pieces:
            ids_1L = ids_of(piece, device)
            whole_LV = log_probs(ids_1L)
            for number, layer in enumerate(layers):
                with _left_out(layer):
                    without_LV = log_probs(ids_1L)
                costs_N[number] += float((whole_LV.exp() * (whole_LV - without_LV)).sum(-1).double().sum())
    return costs_N / tokens


def most_important(importance_N: Tensor, count: int) -> tuple[int, ...]:
    """Numbers of so many layers of the most importance, ascending; of equals the first."""
    order_N = torch.sort(importance_N, descending=True, stable=True).indices
    return tuple(sorted(order_N[:count].tolist()))


@contextmanager
def _left_out(layer: nn.Module) -> Iterator[None]:
    """A layer that yields what it is given."""

    def yield_its_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before, behind = args[0] if args else kwargs.get("hidden_states"), hidden_of(output)
        if not isinstance(before, Tensor) or before.shape != behind.shape:
            raise ModelError(
                f"a {type(module).__name__} does not yield hidden states like those that it is given, so it cannot be "
                "left out. Take layers evenly spread (by=spacing), or name them"
            )
        return before if isinstance(output, Tensor) else (before, *output[1:])

    handle = layer.register_forward_hook(yield_its_input, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
