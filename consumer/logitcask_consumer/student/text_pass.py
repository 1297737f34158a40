"""Text that a teacher reads so that parts of it can be chosen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_schemas.errors import ModelError


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
