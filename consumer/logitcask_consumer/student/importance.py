"""How important the heads and channels of a model are, by what they do on text; how a model reads to be weighed.

As in Minitron (arXiv 2407.14679), from forward passes alone, each a mean over all tokens of

    heads               the Euclidean norm of a head's attention output, before o_proj
    MLP channels        the absolute activation, before down_proj
    hidden channels     the absolute output of a norm, added up over all norms

Shape legend: L tokens of a document, N layers, H query heads, G groups of heads that share keys and values, K numbers
of a head, I channels of an MLP, D hidden channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from logitcask_consumer.head import base_model
from logitcask_schemas.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The widths of a model."""

    layers: int
    heads: int
    """Query heads, H."""
    groups: int
    """Heads of keys and values, G."""
    head: int
    """Numbers of a head, K."""
    mlp: int
    hidden: int

    @classmethod
    def of(cls, config: Any) -> Self:
        """Read from a transformers config.

        Raises:
            ModelError: it does not name them as Llama's does.
        """
        text = config.get_text_config()
        names = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
        values: list[Any] = [getattr(text, name, None) for name in names]
        if not all(type(value) is int for value in values):
            raise ModelError(f"{type(text).__name__} does not name one number each of {', '.join(names)}")
        layers, heads, hidden, mlp = values
        groups = getattr(text, "num_key_value_heads", None) or heads
        head = getattr(text, "head_dim", None) or hidden // heads
        return cls(layers=layers, heads=heads, groups=groups, head=head, mlp=mlp, hidden=hidden)

    @property
    def heads_per_group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // self.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Scores, float64; a larger one is more important."""

    heads_NH: Tensor
    neurons_NI: Tensor
    channels_D: Tensor
    shares: dict[str, Tensor]
    """By the name of each norm over hidden channels, the share of each channel in the square of what the norm is given,
    mean over tokens, [D]."""


def measured(model: Any, prefix: str, shape: ModelShape, texts: Sequence[NDArray[Any]]) -> Importance:
    """Run a model over documents, each alone, and note what its parts do.

    Args:
        model: a causal LM of layers like Llama's. It is run on an accelerator where there is one.
        prefix: name of the list of layers.
        shape: of the model.
        texts: token ids of documents, [L] each.

    Raises:
        ModelError: there is no text.
    """
    tokens = text_tokens(texts, "heads and channels")
    sums: dict[str, Tensor] = {}

    def noted(name: str, values_L: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
        def note(activation_1LX: Tensor) -> None:
            more = values_L(activation_1LX[0].to(torch.float64)).sum(0)
            sums[name] = sums[name] + more if name in sums else more

        return note

    layers, norms, handles = model.get_submodule(prefix), norm_names(model, prefix), []
    for number, layer in enumerate(layers):
        norm_of_heads = noted(f"heads {number}", lambda x_LX: x_LX.view(-1, shape.heads, shape.head).norm(dim=-1))
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(_of_input(norm_of_heads)))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(_of_input(noted(f"mlp {number}", Tensor.abs))))
    for name in norms:
        norm = model.get_submodule(name)
        handles.append(norm.register_forward_pre_hook(_of_input(noted(f"share {name}", _shares))))
        handles.append(norm.register_forward_hook(_of_output(noted(f"norm {name}", Tensor.abs))))
    try:
        with reading(model) as run_on:
            body: Any = base_model(model)
            for text in texts:
                body(input_ids=ids_of(text, run_on), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    device = model.get_input_embeddings().weight.device
    means = {name: (total / tokens).to(device) for name, total in sums.items()}
    return Importance(
        heads_NH=torch.stack([means[f"heads {number}"] for number in range(shape.layers)]),
        neurons_NI=torch.stack([means[f"mlp {number}"] for number in range(shape.layers)]),
        channels_D=torch.stack([means[f"norm {name}"] for name in norms]).sum(0),
        shares={name: means[f"share {name}"] for name in norms},
    )


def text_tokens(texts: Sequence[NDArray[Any]], chosen: str) -> int:
    """Tokens of documents in all.

    Args:
        texts: token ids, [L] each.
        chosen: what they choose, for the message.

    Raises:
        ModelError: there are none.
    """
    if not (tokens := sum(map(len, texts))):
        raise ModelError(f"{chosen} are chosen by text, and there is none")
    return tokens


@contextmanager
def reading(model: Any) -> Iterator[torch.device]:
    """A model in evaluation mode, without gradients, on an accelerator where there is one; as before afterwards.

    Yields:
        The device that ids are to be on.
    """
    was_training, device = model.training, model.get_input_embeddings().weight.device
    run_on = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else device
    assert run_on is not None
    try:
        model.eval().to(run_on)
        with torch.no_grad():
            yield run_on
    finally:
        model.train(was_training).to(device)


def ids_of(text_L: NDArray[Any], device: torch.device) -> Tensor:
    """Token ids as a batch of one document, [1, L]."""
    return torch.as_tensor(text_L.astype("int64"), device=device)[None]


def norm_names(model: Any, prefix: str) -> list[str]:
    """Names of the norms over hidden channels: children of the layers, and of the body, that are called norms."""
    parent = prefix.rpartition(".")[0]
    places = [parent, *(f"{prefix}.{number}" for number in range(len(model.get_submodule(prefix))))]
    return [
        f"{place}.{name}"
        for place in places
        for name, _ in model.get_submodule(place).named_children()
        if name.endswith("norm")
    ]


def _shares(states_LD: Tensor) -> Tensor:
    """Share of each channel in the square of a token's state, [L, D]."""
    squares_LD = states_LD.square()
    return squares_LD / squares_LD.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def _of_input(note: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        del module
        note(args[0])

    return hook


def _of_output(note: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        del module, args
        note(output)

    return hook
