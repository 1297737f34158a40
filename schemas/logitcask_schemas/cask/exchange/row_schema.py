"""What a Parquet file of target rows holds, column by column, for tools that know nothing of casks.

One row per document of L tokens. All columns of tokens have L values, also the targets: number i of `target_ids` and
`target_weights` belongs to the logits of a model at token i, and is the teacher's distribution of token i + 1. So
nobody shifts them again. The last one predicts nothing and weighs nothing. `labels` are in the place of their own
tokens, as trainers of the transformers family want them: those do shift labels themselves.

The schema of the file declares the features that `datasets` shall load, in the metadata that it reads for that.

Shape legend: L tokens of all documents of a block, D documents, K slots.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NO_LABEL: Final = -100
"""What cross entropies leave out, by convention of PyTorch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Some documents, end to end."""

    document_ids: list[str]
    """Hex, [D]."""
    token_offsets_D1: NDArray[np.int32]
    token_ids_L: NDArray[np.int32]
    labels_L: NDArray[np.int32]
    """The token itself, or `NO_LABEL`."""
    target_ids_LK: NDArray[np.int32]
    target_weights_LK: NDArray[np.float32]
    """Probabilities; 0 in free slots, and everywhere at tokens that predict nothing or have no record."""


_Values: TypeAlias = Callable[[RowBlock], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers: its type, how often it has them, and where they come from."""

    name: str
    dtype: str
    values: _Values
    wide: bool = False
    """K numbers per token rather than one."""


def _log_weights(block: RowBlock) -> NDArray[Any]:
    """Log weights; 0 in free slots, which the mask leaves out."""
    weights = block.target_weights_LK
    return np.log(weights, out=np.zeros_like(weights), where=weights > 0)


_TOKENS: Final = (
    _Column("input_ids", "int32", lambda block: block.token_ids_L),
    _Column("labels", "int32", lambda block: block.labels_L),
)
FORMS: Final = {
    "rows": (
        *_TOKENS,
        _Column("target_ids", "int32", lambda block: block.target_ids_LK, wide=True),
        _Column("target_weights", "float32", lambda block: block.target_weights_LK, wide=True),
    ),
    "axolotl": (
        *_TOKENS,
        _Column("attention_mask", "int8", lambda block: np.ones(len(block.token_ids_L), dtype=np.int8)),
        _Column("target_token_ids", "int32", lambda block: block.target_ids_LK, wide=True),
        _Column("target_logprobs", "float32", _log_weights, wide=True),
        _Column("target_mask", "int8", lambda block: (block.target_weights_LK > 0).astype(np.int8), wide=True),
    ),
}
"""Columns of each form, by its name; `document_id` stands before them."""


def row_schema(form: str, width: int, facts: dict[str, str]) -> Any:
    """The Arrow schema of a file, with `facts` among its metadata.

    Args:
        form: A name of `FORMS`.
        width: K.
        facts: What else the file shall say, as key-value metadata.
    """
    fields = [pa.field("document_id", pa.string(), nullable=False)]
    features: dict[str, Any] = {"document_id": {"dtype": "string", "_type": "Value"}}
    for column in FORMS[form]:
        value = getattr(pa, column.dtype)()
        feature: dict[str, Any] = {"dtype": column.dtype, "_type": "Value"}
        if column.wide:
            value = pa.list_(value, width)
            feature = {"feature": feature, "length": width, "_type": "List"}
        fields.append(pa.field(column.name, pa.list_(value), nullable=False))
        features[column.name] = {"feature": feature, "_type": "List"}
    declared = json.dumps({"info": {"features": features}})
    return pa.schema(fields, metadata={"huggingface": declared, **facts})


def row_batch(block: RowBlock, schema: Any, form: str, width: int) -> Any:
    """The documents as an Arrow record batch; the numbers are not copied."""
    offsets = pa.array(block.token_offsets_D1)
    arrays = [pa.array(block.document_ids, pa.string())]
    for column, field in zip(FORMS[form], list(schema)[1:], strict=True):
        values = pa.array(np.ascontiguousarray(column.values(block)).reshape(-1))
        if column.wide:
            values = pa.FixedSizeListArray.from_arrays(values, type=field.type.value_type)
        arrays.append(pa.ListArray.from_arrays(offsets, values, type=field.type))
    return pa.record_batch(arrays, schema=schema)
