"""Hidden states of packed sequences: what keeps documents apart, whatever computes the attention.

Shape legend: B sequences, S slots, N documents of a batch (an unused slot counts as one), D hidden size.

Position ids that start anew with each document are what transformers derives masks from. Two kinds of attention need
more, and get it here:

- FlashAttention has no mask. Transformers finds documents by position ids in a batch of one sequence only; with more,
  it would take every sequence for one document. It is given their boundaries over all sequences (`cu_seq_lens`).
- Some models (gpt-oss) make their mask without position ids. They are given one: see `mask_packed_documents`.
"""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor

from logitcask_consumer.losses import base_model

_MASKED = "logitcask_masks_packed_documents"
"""Attribute of a body that is given masks."""


def hidden_states(model: Any, input_ids: Tensor, position_ids: Tensor, **more: Any) -> Tensor:
    """Last hidden states of a causal LM's body, [B, S, D].

    Args:
        model: a transformers causal LM, perhaps with adapters.
        input_ids: int64 [B, S].
        position_ids: int64 [B, S]; 0 begins a document.
        more: passed on to the body.
    """
    body: Any = base_model(model)
    if uses_flash(body):
        more = {**document_boundaries(position_ids), **more}
    elif getattr(body, _MASKED, False):
        more = {"attention_mask": document_masks(body, input_ids, position_ids), **more}
    out = body(input_ids=input_ids, position_ids=position_ids, use_cache=False, **more)
    hidden_BSD: Tensor = out.last_hidden_state
    return hidden_BSD


def uses_flash(body: Any) -> bool:
    """Whether a body's attention is one of the FlashAttention kernels."""
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

    chosen = str(getattr(body.config, "_attn_implementation", ""))
    versions = tuple(f"flash_attention_{version}" for version in FLASH_ATTENTION_COMPATIBILITY_MATRIX)
    return chosen.startswith(versions) or ("/" in chosen and "flash" in chosen)


def document_boundaries(position_ids: Tensor) -> dict[str, Any]:
    """Where documents begin over all B · S slots, as transformers names it: int32 [N + 1], and the longest."""
    flat = position_ids.flatten()
    starts_N = torch.nonzero(flat == 0).flatten()
    if not len(starts_N) or starts_N[0] != 0:
        raise ValueError("the first position id of a packed batch is not 0: no document begins there")
    edges_N1 = torch.cat([starts_N, starts_N.new_tensor([len(flat)])]).to(torch.int32)
    longest = int(torch.diff(edges_N1).max())
    return {
        "cu_seq_lens_q": edges_N1,
        "cu_seq_lens_k": edges_N1,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def mask_packed_documents(model: Any, wanted: bool) -> None:
    """Choose whether `hidden_states` gives the body masks; `student_forward.check_packing` finds out what it needs."""
    setattr(base_model(model), _MASKED, wanted)


def can_mask(model: Any) -> bool:
    """Whether `document_masks` knows all kinds of attention that a body's config names, and it takes a mask at all."""
    body: Any = base_model(model)
    kinds = set(getattr(body.config, "layer_types", None) or ["full_attention"])
    known = kinds <= {"full_attention", "sliding_attention"}
    slides = bool(getattr(body.config, "sliding_window", None)) and "sliding_attention" not in kinds
    return known and not slides and not uses_flash(body)


def document_masks(body: Any, input_ids: Tensor, position_ids: Tensor) -> Any:
    """Causal masks, [B, 1, S, S], in which no document sees another; one for each kind of layer."""
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    config = body.config
    weight = body.get_input_embeddings().weight
    embeds_BS0 = torch.empty((*input_ids.shape, 0), dtype=weight.dtype, device=input_ids.device)
    # The cache's argument has been renamed between versions of transformers.
    names = inspect.signature(create_causal_mask).parameters
    no_cache: dict[str, Any] = {name: None for name in ("cache", "past_key_values") if name in names}
    makers = {
        "full_attention": partial(create_causal_mask, config, embeds_BS0, None, position_ids=position_ids, **no_cache)
    }
    kinds = set(getattr(config, "layer_types", None) or [])
    if "sliding_attention" in kinds:
        makers["sliding_attention"] = partial(
            create_sliding_window_causal_mask, config, embeds_BS0, None, position_ids=position_ids, **no_cache
        )
        return {kind: make() for kind, make in makers.items()}
    return makers["full_attention"]()
