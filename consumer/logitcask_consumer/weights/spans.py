"""Tokens that lie between two token sequences of a document.

Shape legend: L tokens of W documents, end to end; M tokens of a sequence that is looked for.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.weight import WeightParameterError
from logitcask_schemas.record.extent import IdArray

TokenIds: TypeAlias = tuple[int, ...]


def tokenise(tokenizer: Any, text: str, *, what: str) -> TokenIds:
    """Token ids of a text, without special tokens around it.

    Raises:
        WeightParameterError: the tokenizer gives none, or an unknown token.
    """
    ids = tuple(int(number) for number in tokenizer(text, add_special_tokens=False)["input_ids"])
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not ids or (unknown is not None and unknown in ids and tokenizer.unk_token not in text):
        raise WeightParameterError(
            f"{what}: the student's tokenizer has no tokens for {text!r} (it gives {list(ids)}); quote it as it stands "
            'in the documents, with "\\n" for a line break'
        )
    return ids


def inside_spans(
    token_ids_L: IdArray, offsets_W1: NDArray[np.int64], after: TokenIds, until: TokenIds = ()
) -> NDArray[np.bool_]:
    """Whether each token lies after `after` and before the end of the next `until`, whose tokens lie inside, [L].

    Without `until`, to the document's end. Sequences do not reach over documents.
    """
    # Each position where a sequence ends opens or closes a span for the tokens behind it.
    event_L = np.zeros(len(token_ids_L), dtype=np.int8)
    event_L[_ends(token_ids_L, offsets_W1, until)] = -1
    event_L[_ends(token_ids_L, offsets_W1, after)] = 1
    last_L = np.maximum.accumulate(np.where(event_L != 0, np.arange(len(event_L)), -1))
    before_L = np.concatenate([[-1], last_L])[: len(last_L)]
    starts_L = np.repeat(offsets_W1[:-1], np.diff(offsets_W1))
    inside_L: NDArray[np.bool_] = (before_L >= starts_L) & (event_L[before_L] == 1)
    return inside_L


def _ends(token_ids_L: IdArray, offsets_W1: NDArray[np.int64], sequence: TokenIds) -> NDArray[np.int64]:
    """Index of the last token of each occurrence."""
    size = len(sequence)
    if not size or len(token_ids_L) < size:
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(token_ids_L[: len(token_ids_L) - size + 1] == sequence[0])
    for ahead, token in enumerate(sequence[1:], start=1):
        starts = starts[token_ids_L[starts + ahead] == token]
    ends = starts + size - 1
    document = np.searchsorted(offsets_W1, starts, side="right") - 1
    return ends[ends < offsets_W1[document + 1]]
