"""Made-up hints for documents of the tests, and casks that have some."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import make_documents, make_teacher

WIDTH = 24


def hint_values(document: DocumentRecords, spec: HintSpec, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """[R, K, D] float32, of the size of a residual stream."""
    rows = spec.num_rows(document.records.num_positions)
    random = np.random.default_rng([seed, len(document.token_ids_L)])
    return (10 * random.normal(size=(rows, len(spec.layers), width))).astype(np.float32)


def with_hints(document: DocumentRecords, spec: HintSpec, width: int = WIDTH) -> DocumentRecords:
    return replace(document, hints=HintRows.encode(hint_values(document, spec, width=width), spec))


def documents_with_hints(lengths: Sequence[int], seed: int, spec: HintSpec) -> list[DocumentRecords]:
    return [with_hints(document, spec) for document in make_documents(lengths, seed, extents=True)]


def cask_with_hints(path: Path, spec: HintSpec, shards: Sequence[Sequence[int]], carrier: str = "arrow") -> Path:
    """A cask with one shard per list of lengths."""
    capture = CaptureSpec(tau=0.05, hints=spec)
    with CaskWriter.create(path, teacher=make_teacher(), capture=capture, version=2, carrier=carrier) as writer:
        for seed, lengths in enumerate(shards):
            writer.publish(documents_with_hints(lengths, seed, spec))
    return path


def assert_same_rows(actual: HintRows, expected: HintRows) -> None:
    """Equal width, arrays, dtypes, shapes and bits."""
    assert actual.width == expected.width
    assert actual.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert actual.arrays[name].dtype == array.dtype, name
        assert actual.arrays[name].shape == array.shape, name
        assert actual.arrays[name].tobytes() == array.tobytes(), name
