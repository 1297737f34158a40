"""The documents of a cask whose vectors are nearest to one: what retrieval-augmented distillation looks up.

Shape legend: R rows of a block, D width of the teacher's vectors, W stored numbers of one.

Of hints with a row per document (`positions` last), the teacher's state after the whole document. Every row is
compared, block by block of the mapped files: memory does not grow with the cask, and there is no index. (ReAugKD,
Zhang et al., ACL 2023: a student's prediction is mixed with those of the nearest documents.)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.errors import CaskError, OptionError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows, projection_DN

BLOCK_BYTES: Final = 32 << 20
"""Of decoded rows that are held at a time."""


class NearestError(OptionError, ValueError):
    """A question for near documents that cannot be asked of a cask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A document and how near it is."""

    document: int
    """Its number in the cask."""
    id: str
    """Its identity, in hex."""
    cosine: float
    """Of the angle between its vector and the one asked for, -1 to 1; 0 where one of the two is 0."""


def vector_of(cask: Cask, document: int, *, layer: int | None = None) -> NDArray[np.float32]:
    """The stored vector of a document, [W].

    Args:
        cask: with a row per document.
        document: its number.
        layer: of the teacher; None for the last that the cask has.

    Raises:
        NearestError: the cask has no row per document, or not this layer.
        HintsDroppedError, CaskNotFoundError, CaskCorruptionError: as `Cask.hints`.
    """
    column = _column(_spec_of(cask), layer)
    number, row = cask.locate(document)
    file = cask.hint_file(number)
    file.verify(row)
    vector_W: NDArray[np.float32] = file.columns.of(row).decode()[0, column]
    return vector_W


def as_stored(cask: Cask, vector_D: NDArray[Any]) -> NDArray[np.float32]:
    """A vector of the teacher's own width as the cask's are stored, [W]; one that has that form is left as it is.

    Raises:
        NearestError: it has another width, or holds what is no number.
    """
    spec = _spec_of(cask)
    vector = np.asarray(vector_D, dtype=np.float32).reshape(-1)
    first = next((number for number, entry in enumerate(cask.entries) if entry.documents), None)
    if first is None:
        return vector
    width = cask.hint_file(first).columns.rows.width
    stored = spec.projected or width
    if len(vector) not in (width, stored):
        either = f"{width} numbers" if stored == width else f"{width} numbers, or the {stored} of codec {spec.codec}"
        raise NearestError(f"the vector has {len(vector)} numbers; those of {cask.place} have {either}")
    if not np.isfinite(vector).all():
        raise NearestError("the vector holds a number that is not finite")
    if spec.projected is not None and len(vector) == width:
        vector = vector @ projection_DN(spec.seed, width, spec.projected)
    return vector


def nearest(
    cask: Cask,
    vector_W: NDArray[np.float32],
    *,
    count: int,
    layer: int | None = None,
    leave_out: int | None = None,
) -> list[Neighbour]:
    """The nearest documents by cosine, the nearest first; of equally near ones the first in the cask.

    Args:
        cask: with a row per document.
        vector_W: as the cask's are stored, see `as_stored`.
        count: how many.
        layer: of the teacher; None for the last that the cask has.
        leave_out: a document that is not looked at.

    Raises:
        NearestError: the cask has no row per document, or not this layer.
        HintsDroppedError, CaskNotFoundError, CaskCorruptionError: as `Cask.hints`.
    """
    column = _column(_spec_of(cask), layer)
    asked_W = vector_W.astype(np.float64)
    asked_W /= np.linalg.norm(asked_W) or 1.0
    best: list[tuple[float, int, str]] = []
    first = 0
    for number, entry in enumerate(cask.entries):
        file = cask.hint_file(number)
        rows = file.columns.rows
        step = max(1, BLOCK_BYTES // (4 * rows.codes_RKW.shape[1] * max(rows.codes_RKW.shape[2], 1)))
        for start in range(0, entry.documents, step):
            stop = min(start + step, entry.documents)
            for row in range(start, stop):
                file.verify(row)
            cosine_R = _cosines(rows.slice(slice(start, stop)), column, asked_W)
            if leave_out is not None and first + start <= leave_out < first + stop:
                cosine_R[leave_out - first - start] = -np.inf
            for at in np.argsort(-cosine_R, kind="stable")[:count].tolist():
                if np.isfinite(cosine_R[at]):
                    identity = file.document_ids[start + at].tobytes().hex()
                    best.append((float(cosine_R[at]), first + start + at, identity))
            best = sorted(best, key=lambda neighbour: (-neighbour[0], neighbour[1]))[:count]
        first += entry.documents
    return [Neighbour(document=document, id=identity, cosine=cosine) for cosine, document, identity in best]


def _cosines(rows: HintRows, column: int, asked_W: NDArray[np.float64]) -> NDArray[np.float64]:
    # The square of a number of float32 may lie beyond float32, at both ends.
    vectors_RW = rows.decode()[:, column].astype(np.float64)
    size_R = np.linalg.norm(vectors_RW, axis=1)
    cosine_R: NDArray[np.float64] = (vectors_RW @ asked_W) / np.where(size_R > 0, size_R, 1)
    return cosine_R


def _spec_of(cask: Cask) -> HintSpec:
    spec = cask.manifest.capture.hints
    if spec is None or spec.positions != "last":
        has = "no hints" if spec is None else "a row per position"
        raise NearestError(
            f"{cask.place} has {has}; near documents are told by one row per document: capture into another cask with "
            "hints.positions last (docs/hints.md)"
        )
    return spec


def _column(spec: HintSpec, layer: int | None) -> int:
    if layer is None:
        return len(spec.layers) - 1
    if layer not in spec.layers:
        raise NearestError(f"the cask has no layer {layer}; it has {', '.join(map(str, spec.layers))}")
    return spec.layers.index(layer)


def read_vector(path: Path) -> NDArray[np.float32]:
    """A vector from a file of numpy (.npy), or of JSON: a list of numbers.

    Raises:
        CaskError: there is no such file, or it holds no list of numbers.
    """
    try:
        values = _array(path) if path.suffix == ".npy" else np.array([_numbers(json.loads(path.read_bytes()))])
        if values.dtype.kind not in "fiu" or not values.ndim or not 0 < values.size == values.shape[-1]:
            raise ValueError(f"expected a list of numbers, got {values.dtype} of shape {list(values.shape)}")
    # numpy's reader of a damaged header, and JSON of numbers of 400 digits or of lists in lists.
    except (OSError, ValueError, TypeError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        raise CaskError(f"{path} holds no vector: {error}") from error
    with np.errstate(over="ignore"):  # `as_stored` refuses what is not finite
        vector: NDArray[np.float32] = values.reshape(-1).astype(np.float32)
    return vector


def _array(path: Path) -> NDArray[Any]:
    """The array of a .npy file; ValueError where it is an archive of several."""
    values = np.load(path, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        values.close()
        raise ValueError("it is an archive (.npz); expected one array, as numpy.save writes it")
    return values


def _numbers(values: Any) -> list[float]:
    """A list of numbers; ValueError for anything else that JSON can hold."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError("expected a list of numbers")
    return [float(value) for value in values]
