"""Documents with hints for the trainer's tests: each token once in a document, so that it tells its position."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcask_consumer.data import CaskDataset, open_casks
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.consumer.cask_builder import VOCAB


def distinct_documents(count: int, *, seed: int) -> list[NDArray[np.uint16]]:
    """Every token once in a document, so that it tells its position."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.arange(2, VOCAB))[: rng.integers(5, 60)].astype(np.uint16) for _ in range(count)]


DOCUMENTS = distinct_documents(14, seed=3)
HIDDEN = HintSpec(layers=(0, 2, 4), codec="f16")


def dataset_of(place: Any, **options: Any) -> CaskDataset:
    """With its hints."""
    return CaskDataset(open_casks(place, tokenizer_fingerprint=None), **{"seq_len": 64, "hints": True, **options})


def documents_in(dataset: CaskDataset) -> list[Any]:
    """The documents by their number in the dataset."""
    return [cask.read(number).token_ids_L for cask in dataset.casks for number in range(len(cask))]


def positions_of(dataset: CaskDataset, batch: Any) -> Any:
    """Number within its document of each trained position, found by its tokens."""
    ids, next_ids = batch["input_ids"].flatten()[batch["slots"]], batch["next_ids"]
    found = []
    for number, token, following in zip(batch["documents"].tolist(), ids.tolist(), next_ids.tolist(), strict=True):
        document = documents_in(dataset)[number].astype(np.int64)
        [at] = np.flatnonzero((document[:-1] == token) & (document[1:] == following))
        found.append(at)
    return torch.tensor(found)
