"""States of a live Hugging Face model, as a capture's hints have them: the reference that casks are compared with."""

from typing import Any

import numpy as np
import torch

from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows


def live_states(model: Any, token_ids: np.ndarray, spec: HintSpec) -> torch.Tensor:
    """[L, K, D] for every token of a document."""
    ids = torch.from_numpy(token_ids.astype(np.int64))[None]
    with torch.no_grad():
        if spec.of == "hidden":
            states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            return torch.stack([states[layer][0] for layer in spec.layers], 1)
        return torch.stack([_projected(model, ids, layer, spec.of) for layer in spec.layers], 1)


def _projected(model: Any, ids: torch.Tensor, layer: int, of: str) -> torch.Tensor:
    """The inputs of the block's attention times its own matrices: not by hooks, as the code under test does."""
    block, seen = model.model.layers[layer - 1], dict[str, torch.Tensor]()
    handle = block.input_layernorm.register_forward_hook(lambda module, args, output: seen.update(normed=output[0]))
    model(input_ids=ids, use_cache=False)
    handle.remove()
    attention = block.self_attn
    parts = [attention.v_proj] if of == "v" else [attention.q_proj, attention.k_proj, attention.v_proj]
    return torch.cat([torch.nn.functional.linear(seen["normed"], part.weight, part.bias) for part in parts], -1)


def hint_rows(model: Any, token_ids: np.ndarray, spec: HintSpec) -> HintRows:
    """What a cask stores of a document: a row per position, or one at the last token."""
    states = live_states(model, token_ids, spec).to(torch.float32).numpy()
    return HintRows.encode(states[-1:] if spec.positions == "last" else states[:-1], spec)
