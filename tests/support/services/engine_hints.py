"""What plain Hugging Face says of a teacher's layers, to compare hints with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcask_schemas.record.hints import HintRows


@torch.inference_mode()
def hidden_of(model: Any, token_ids: NDArray[Any], layers: Sequence[int]) -> NDArray[np.float32]:
    """Hidden states of each token, [L, K, D]."""
    ids = torch.from_numpy(token_ids.astype(np.int64))[None]
    states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    stacked: NDArray[np.float32] = np.stack([states[layer][0].float().numpy() for layer in layers], axis=1)
    return stacked


@torch.inference_mode()
def projections_of(model: Any, token_ids: NDArray[Any], layers: Sequence[int], of: str) -> NDArray[np.float32]:
    """A Llama's projections of each token, computed anew from the hidden states before each block, [L, K, E]."""
    before = hidden_of(model, token_ids, [layer - 1 for layer in layers])
    each = []
    for place, layer in enumerate(layers):
        block = model.model.layers[layer - 1]
        normed = block.input_layernorm(torch.from_numpy(before[:, place]))
        names = ("v_proj",) if of == "v" else ("q_proj", "k_proj", "v_proj")
        each.append(torch.cat([getattr(block.self_attn, name)(normed) for name in names], dim=-1).numpy())
    stacked: NDArray[np.float32] = np.stack(each, axis=1)
    return stacked


def relative_error(rows: HintRows, expected_RKD: NDArray[Any]) -> float:
    """The largest, over rows and layers: length of the difference by length of what is expected."""
    decoded = rows.decode()
    assert decoded.shape == expected_RKD.shape, (decoded.shape, expected_RKD.shape)
    differences = np.linalg.norm(decoded - expected_RKD, axis=2) / np.linalg.norm(expected_RKD, axis=2)
    return float(differences.max(initial=0))
