"""All arrays of records by name, to compare them."""

import numpy as np

from logitcask_schemas.record.records import Records


def record_arrays(records: Records) -> dict[str, np.ndarray]:
    """Ragged columns by their field, columns of positions by their own name; absent ones left out."""
    fields = {name: getattr(records, name) for name in Records.__dataclass_fields__ if name != "position_columns"}
    return {name: array for name, array in fields.items() if array is not None} | dict(records.position_columns)
