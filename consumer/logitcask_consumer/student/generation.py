"""A student that writes: where its texts end, and generation by settings of ours alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_NOTHING_PADS: Final = 0
"""Token that fills up where a tokenizer names none; it is never read."""


@contextmanager
def plain_generation(model: Any) -> Iterator[None]:
    """Without the model's own generation settings, which transformers would fill ours up with; in evaluation mode."""
    from transformers import GenerationConfig

    own, training = model.generation_config, model.training
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """Token ids that end a text: those of the model's generation settings and the tokenizer's, in ascending order.

    Both, for training writes the tokenizer's into the settings of its checkpoints: rounds would end at different ones.
    """
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = set[int]() if own is None else {own} if isinstance(own, int) else set(own)
    return sorted(ends if tokenizer.eos_token_id is None else ends | {int(tokenizer.eos_token_id)})


def pad_of(tokenizer: Any) -> int:
    """Token id that fills prompts up."""
    return _NOTHING_PADS if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
