"""Documents with their records as one Arrow IPC stream, so that they cross a network without an object per token.

One record batch, a row per document; a list column per column of `Records`, in its own dtype, so readers get views of
the bytes they were sent. The schema's metadata say the capture spec (`logitcask.capture`) and the teacher
(`logitcask.teacher`), both as JSON, and `logitcask.frame` the version of this layout.

Shape legend: D documents, L tokens, P positions with records, H head entries, N tail draws, R ranges; W values of a
column per position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from logitcask_schemas.errors import DocumentMismatchError, InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Context, Extent
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.position_columns import stored_columns
from logitcask_schemas.record.records import DocumentRecords, Records

MEDIA_TYPE: Final = "application/vnd.apache.arrow.stream"
FRAME_VERSION: Final = "1"
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a stream holds."""

    documents: list[DocumentRecords]
    capture: CaptureSpec
    teacher: TeacherIdentity


def encode_frame(frame: Frame) -> bytes:
    """The stream of some documents, at least one, whose records are all of the frame's spec."""
    documents, spec = frame.documents, frame.capture
    columns = {
        "token_ids": _lists([np.asarray(each.token_ids_L, dtype=np.uint32) for each in documents]),
        "recorded": _lists([_ranges(each.extent) for each in documents]),
        "context_length": pa.array([_context(each)[0] for each in documents], pa.uint32()),
        "context_digest": pa.array([_context(each)[1] for each in documents], pa.binary(_DIGEST_BYTES)),
        **{name: _lists([part(each.records) for each in documents]) for name, part in _columns(spec).items()},
    }
    metadata = {
        "logitcask.frame": FRAME_VERSION,
        "logitcask.capture": spec.model_dump_json(),
        "logitcask.teacher": frame.teacher.model_dump_json(),
    }
    batch = pa.RecordBatch.from_pydict(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def decode_frame(content: bytes) -> Frame:
    """The documents of a stream; arrays are views of `content`.

    Raises:
        InvalidRecordError: no such stream, of another version, or its documents break a rule of the format.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
            batch = reader.read_next_batch()
        batch.validate(full=True)
        metadata = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
        if (version := metadata.get("logitcask.frame")) != FRAME_VERSION:
            raise InvalidRecordError(f"a stream of documents of version {version!r}; this reader knows {FRAME_VERSION}")
        spec = CaptureSpec.model_validate_json(metadata["logitcask.capture"])
        teacher = TeacherIdentity.model_validate_json(metadata["logitcask.teacher"])
        documents = [_document(batch, row, spec, teacher) for row in range(batch.num_rows)]
    except (pa.ArrowException, OSError, StopIteration, UnicodeDecodeError, KeyError, ValidationError) as error:
        raise InvalidRecordError(f"no Arrow stream of documents: {error}") from error
    except DocumentMismatchError as error:
        raise InvalidRecordError(str(error)) from error
    return Frame(documents=documents, capture=spec, teacher=teacher)


def _columns(spec: CaptureSpec) -> dict[str, Callable[[Records], NDArray[Any]]]:
    """How each column of records is taken out of them, in the order of the stream."""
    columns: dict[str, Callable[[Records], NDArray[Any]]] = {
        "head_counts": lambda records: records.head_counts_P,
        "head_ids": lambda records: records.head_ids_H.astype(np.uint32),
        "head_logprobs": lambda records: records.head_logprobs_H,
        "tail_counts": lambda records: records.tail_counts_P,
        "tail_ids": lambda records: records.tail_ids_N.astype(np.uint32),
    }
    if spec.tail_logprobs and spec.mode != "topk":
        columns["tail_logprobs"] = _draws
    for column in stored_columns(spec):
        columns[column.name] = _position_column(column.name)
    return columns


def _position_column(name: str) -> Callable[[Records], NDArray[Any]]:
    def part(records: Records) -> NDArray[Any]:
        return records.position_columns[name].reshape(-1)

    return part


def _draws(records: Records) -> NDArray[Any]:
    if records.tail_logprobs_N is None:
        raise InvalidRecordError("the capture spec asks for log-probabilities of draws, these records have none")
    return records.tail_logprobs_N


def _lists(parts: Sequence[NDArray[Any]]) -> Any:
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(parts)))


def _ranges(extent: Extent) -> NDArray[np.uint32]:
    return np.empty(0, dtype=np.uint32) if extent.recorded_R2 is None else extent.recorded_R2.reshape(-1)


def _context(document: DocumentRecords) -> tuple[int, bytes]:
    context = document.extent.context
    return (0, bytes(_DIGEST_BYTES)) if context is None else (context.length, context.digest)


def _document(batch: Any, row: int, spec: CaptureSpec, teacher: TeacherIdentity) -> DocumentRecords:
    def values(name: str) -> NDArray[Any]:
        array: NDArray[Any] = batch.column(name)[row].values.to_numpy(zero_copy_only=True)
        return array

    widths = {column.name: column.width_of(spec) for column in stored_columns(spec)}
    recorded = values("recorded")
    length = batch.column("context_length")[row].as_py()
    digest = batch.column("context_digest")[row].as_py()
    document = DocumentRecords(
        token_ids_L=values("token_ids"),
        records=Records(
            head_counts_P=values("head_counts"),
            head_ids_H=values("head_ids"),
            head_logprobs_H=values("head_logprobs"),
            tail_counts_P=values("tail_counts"),
            tail_ids_N=values("tail_ids"),
            position_columns={
                name: values(name) if width is None else values(name).reshape(-1, width)
                for name, width in widths.items()
            },
            tail_logprobs_N=values("tail_logprobs") if "tail_logprobs" in _columns(spec) else None,
        ),
        extent=Extent(
            recorded_R2=recorded.reshape(-1, 2) if len(recorded) else None,
            context=Context(digest=digest, length=length) if length else None,
        ),
    )
    document.check(teacher.vocab_size, where=f"document {row}")
    return document
