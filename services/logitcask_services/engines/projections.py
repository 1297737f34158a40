"""Where a model's attention makes its queries, keys and values: the modules to listen to, in either engine.

Shape legend: L tokens, Q, K, V widths of the query, key and value vectors, heads end to end.
"""

from collections.abc import Callable
from typing import Any, Final

import torch

from logitcask_schemas.errors import ModelError
from logitcask_schemas.record.hint_spec import HintKind
from logitcask_services.engines.hint_shape import HintShape

_ATTENTION: Final = ("self_attn", "attn", "attention", "self_attention")
_LANGUAGE: Final = ("language_model", "text_model")
"""What models of images, sounds and text call the part whose layers are those of the text."""
_SEPARATE: Final = ("q_proj", "k_proj", "v_proj")
_FUSED: Final = ("qkv_proj", "c_attn")
"""Of queries, keys and values end to end; those that mix them head by head are none of these."""

Take = Callable[[int, torch.Tensor], None]
"""Is told the number of a layer and what its projections made of all tokens, [..., Q + K + V], or V alone."""


def attention_of(model: Any, layer: int, num_blocks: int) -> Any:
    """The attention of block `layer`, counted from 1; in a multimodal model, of its language model.

    Raises:
        ModelError: the model is not built of so many blocks with an attention each.
    """
    for module in language_model_of(model).modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_blocks:
            block = module[layer - 1]
            for name in _ATTENTION:
                if isinstance(attention := getattr(block, name, None), torch.nn.Module):
                    return attention
    raise ModelError(
        f"{type(model).__name__} has no list of {num_blocks} blocks with an attention each: hints of v and qkv need "
        "one. Ask for hints of hidden states"
    )


def language_model_of(model: Any) -> Any:
    """The part of a multimodal model that the text's configuration describes; a model of text alone is all of it.

    Its towers for images and sounds may have as many blocks as the text has.
    """
    parts = (module for name, module in model.named_modules() if name.rpartition(".")[2] in _LANGUAGE)
    return next(parts, model)


def listen(
    model: Any, layer: int, of: HintKind, shape: HintShape, take: Take
) -> list["torch.utils.hooks.RemovableHandle"]:
    """Hook the projections of one block; `take` gets them once per forward pass.

    Args:
        model: of transformers.
        layer: from 1 on.
        of: "v" or "qkv".
        shape: of the model.
        take: called with the layer and the vectors.

    Raises:
        ModelError: the attention keeps its projections in a form that is not known.
    """
    attention = attention_of(model, layer, shape.num_blocks)
    value_width = shape.width("v")
    names = [name for name in _FUSED if hasattr(attention, name)]
    if names:

        def fused(_module: Any, _inputs: Any, output: Any) -> None:
            whole = output[0] if isinstance(output, tuple) else output
            take(layer, whole[..., -value_width:] if of == "v" else whole)

        return [getattr(attention, names[0]).register_forward_hook(fused)]
    if not all(hasattr(attention, name) for name in _SEPARATE):
        raise ModelError(
            f"the attention {type(attention).__name__} has neither {', '.join(_SEPARATE)} nor {' or '.join(_FUSED)}: "
            f"its {of} cannot be told apart. Ask for hints of hidden states"
        )
    if of == "v":
        return [attention.v_proj.register_forward_hook(lambda _module, _inputs, output: take(layer, output))]
    made = dict[str, torch.Tensor]()

    def separate(name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            made[name] = output
            if len(made) == len(_SEPARATE):
                take(layer, torch.cat([made.pop(each) for each in _SEPARATE], dim=-1))

        return hook

    return [getattr(attention, name).register_forward_hook(separate(name)) for name in _SEPARATE]
