"""Proof that a model's attention computes what its configuration says.

transformers picks a fused attention where a model declares support. Some of these kernels leave out what the plain
implementation (`eager`) does: scaled dot product attention drops the soft-cap of Gemma 2's scores without a word.

Shape legend: L tokens of a short text, V vocabulary.
"""

import logging
from typing import Any, Final

import torch

logger = logging.getLogger(__name__)

_LENGTH: Final = 64
_LONGEST_WINDOW: Final = 512
"""A sliding window up to here is made to matter: the text is longer."""
_TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest total variation between the two distributions of a position; rounding stays well below."""


def declared_implementation(config: Any) -> str | None:
    """The attention that the configuration needs, or None where transformers may choose."""
    text = config.get_text_config()
    return "eager" if getattr(text, "attn_logit_softcapping", None) is not None else None


@torch.inference_mode()
def prove_attention(model: Any, *, name: str, max_length: int) -> None:
    """Compare the model's attention with `eager` on random ids, and leave the model on `eager` where they differ.

    Args:
        model: a causal language model, in its compute dtype and on its device.
        name: of the teacher, for the log.
        max_length: most tokens it takes.
    """
    chosen = model.config._attn_implementation
    if chosen in (None, "eager"):
        return
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    length = min(max_length, _LENGTH + window if window <= _LONGEST_WINDOW else _LENGTH)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids_1L = torch.randint(vocab_size, (1, length), generator=torch.Generator().manual_seed(0)).to(model.device)
    ours_LV = _probabilities(model, ids_1L)
    try:
        model.set_attn_implementation("eager")
    except (ValueError, ImportError) as error:
        logger.info("%s: attention %r has no plain form to be compared with: %s", name, chosen, error)
        return
    variation = _largest_variation(ours_LV, _probabilities(model, ids_1L))
    if variation <= _TOLERANCE.get(model.dtype, _TOLERANCE[torch.bfloat16]):
        model.set_attn_implementation(chosen)
        return
    logger.warning(
        "%s: attention %r computes something else than the configuration says (probabilities off by %.2g on a random "
        "text); using the plain implementation, which is slower on long documents",
        name,
        chosen,
        variation,
    )


def _largest_variation(ours_LV: torch.Tensor, plain_LV: torch.Tensor) -> float:
    """Largest total variation of a position; infinite where one alone is not finite, 0 where neither ever is."""
    finite_L, plain_finite_L = ours_LV.isfinite().all(-1), plain_LV.isfinite().all(-1)
    if not torch.equal(finite_L, plain_finite_L):
        return float("inf")
    variations = (ours_LV - plain_LV)[finite_L].abs().sum(-1) / 2
    return float(variations.max()) if len(variations) else 0.0


def _probabilities(model: Any, ids_1L: torch.Tensor) -> torch.Tensor:
    probabilities: torch.Tensor = model(input_ids=ids_1L, use_cache=False).logits[0].float().softmax(-1)
    return probabilities
