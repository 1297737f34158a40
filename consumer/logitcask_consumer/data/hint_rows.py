"""Rows of hints in a batch: as they are stored until they are on the device, a layer's numbers only while it is used.

Shape legend: T trained positions, K layers, W stored numbers of a vector, G groups of channels, O outlier channels.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from logitcask_schemas.record.hint_spec import GROUP
from logitcask_schemas.record.hints import HintRows

HintTensors: TypeAlias = dict[str, Tensor]
"""`codes` [T, K, W] (float16 or int8), `scales` float32 [T, K, G]; of codec i8 `outlier_channels` int64 and
`outlier_values` float32, both [T, K, O]. See `HintRows`."""


def hint_tensors(rows: HintRows) -> HintTensors:
    """The stored arrays as tensors, without a copy but for the channels."""
    return {name: torch.from_numpy(_torch_dtype(array)) for name, array in rows.arrays.items()}


def _torch_dtype(array: Any) -> Any:
    """Torch can index with int64; uint16 it can hardly convert."""
    return array.astype(np.int64) if array.dtype == np.uint16 else np.ascontiguousarray(array)


def decoded_layer(hints: HintTensors, column: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The vectors of one layer, [T, W]; those of `HintRows.decode`.

    Args:
        hints: of a batch.
        column: number of the layer in the spec's order.
        dtype: float32, or float64 in tests.
    """
    values_TW = hints["codes"][:, column].to(dtype)
    scales_TG = hints["scales"][:, column].to(dtype)
    if scales_TG.shape[1] > 1:
        scales_TG = scales_TG.repeat_interleave(GROUP, dim=1)[:, : values_TW.shape[1]]
    values_TW = values_TW * scales_TG
    if "outlier_values" in hints:
        channels_TO, outliers_TO = hints["outlier_channels"][:, column], hints["outlier_values"][:, column]
        values_TW.scatter_(1, channels_TO, outliers_TO.to(dtype))
    return values_TW


def hint_columns(hints: HintTensors, rows_K: Tensor) -> HintTensors:
    """Some rows."""
    return {name: tensor.index_select(0, rows_K) for name, tensor in hints.items()}
