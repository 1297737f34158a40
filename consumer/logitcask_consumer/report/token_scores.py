"""A student's KL at each position of the held-out documents, one JSON object per document, for `logitcask view`.

    {"id": "<SHA-256 of the document, hex>", "kind": "unbiased", "kl": [0.013, ...]}

`kl` is KL(teacher || student) in nats at each recorded position, in their order; `kind` says whether it is an unbiased
estimate, or the lower bound that is all that records without a sampled tail can give. An estimate may be negative.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from logitcask_consumer.report.evaluate import Columns
from logitcask_schemas.cask import Cask


def token_scores_name(place: int) -> str:
    """The file's name for a model, by its place among the models of a report, from 1."""
    return f"token-scores-{place}.jsonl"


def write_token_scores(path: Path, columns: Columns, casks: Sequence[Cask], kinds: Mapping[str, str]) -> int:
    """Write the scores of a model; the number of documents.

    Args:
        path: The file, which is replaced.
        columns: What was measured, by document, then by position.
        casks: The held-out casks, in the order in which their documents are numbered.
        kinds: Of the metrics.
    """
    metric = "kl" if "kl" in kinds else "kl_bound"
    values_P = columns.values[metric].astype(np.float64)
    ids = np.concatenate([cask.document_ids() for cask in casks])
    numbers_D, starts_D = np.unique(columns.documents_P, return_index=True)
    with path.open("w", encoding="utf-8") as file:
        for number, values in zip(numbers_D.tolist(), np.split(values_P, starts_D[1:]), strict=True):
            kl = [value if np.isfinite(value) else None for value in values.tolist()]
            file.write(json.dumps({"id": ids[number].tobytes().hex(), "kind": kinds[metric], "kl": kl}) + "\n")
    return len(numbers_D)
