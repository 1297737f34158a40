"""What the engine is asked: every document alone, all of them in company, and records as the spec has them.

The first two differ in the shape of the batches alone, so what is between them is the noise of the engine itself: no
record can be nearer to the teacher than the teacher is to itself.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.engines.engine import CaptureTask, Engine
from logitcask_services.fidelity.sample import FidelityError, Sample

NAMED: Final = 200
"""Most probable tokens of a position that the engine is asked for; all others are one part."""
_FINE: Final = CaptureSpec(mode="topk", k=NAMED, logprob_codec="f32")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePasses:
    """Records of the same documents, in their order."""

    identity: TeacherIdentity
    alone: tuple[DocumentRecords, ...]
    """Of `NAMED` tokens in float32, each document by itself."""
    together: tuple[DocumentRecords, ...]
    """The same of all documents at once, the last one first."""
    sample: Sample
    """With what a cask says of each document: the one it comes from, or one that was made of it."""


def engine_passes(engine: Engine, sample: Sample) -> EnginePasses:
    """Ask the engine two times, and a third time where there is no cask yet.

    Raises:
        FidelityError: the teacher failed on a document.
        CaptureSpecError: the teacher cannot give what the spec asks for.
        EngineError: the engine died.
    """
    alone = [captured(engine, [task], _FINE)[0] for task in sample.tasks]
    together = captured(engine, sample.tasks[::-1], _FINE)
    if sample.stored is None:
        spec = plain_spec(sample.spec)
        sample = sample.with_stored(through_a_cask(captured(engine, sample.tasks, spec), engine.identity, spec))
    return EnginePasses(identity=engine.identity, alone=tuple(alone), together=tuple(together), sample=sample)


def plain_spec(spec: CaptureSpec) -> CaptureSpec:
    """A spec by which anything that gives logits can be captured: no hints, nothing of where records came from."""
    return spec.model_copy(update={"hints": None, "imported": False, "entropy": "exact"})


def captured(engine: Engine, tasks: Sequence[CaptureTask], spec: CaptureSpec) -> list[DocumentRecords]:
    """The records of some documents, by `key`.

    Raises:
        FidelityError: the teacher failed on one.
    """
    document_of: dict[int, DocumentRecords] = {}
    for result in engine.capture(tasks, spec):
        if result.document is None:
            raise FidelityError(f"document {result.key} of the sample, counted from 0: {result.error}")
        document_of[int(str(result.key))] = result.document
    return [document_of[key] for key in sorted(document_of)]


def through_a_cask(
    documents: Sequence[DocumentRecords], teacher: TeacherIdentity, spec: CaptureSpec
) -> list[DocumentRecords]:
    """Records as they come back from a cask, in the same order: rounded by the spec's codec.

    Equal documents are stored once, and come back as often as they were given.
    """
    with tempfile.TemporaryDirectory(prefix="logitcask-fidelity-") as folder:
        with CaskWriter.create(Path(folder) / "cask", teacher=teacher, capture=spec, version=2) as writer:
            writer.publish(documents)
        cask = Cask.open(Path(folder) / "cask")
        numbers = [cask.find(document.id) for document in documents]
        return [_copy(cask.read(number)) for number in numbers if number is not None]


def _copy(document: DocumentRecords) -> DocumentRecords:
    """Apart from the file, which is about to go."""
    keep_P = np.ones(document.records.num_positions, dtype=np.bool_)
    return DocumentRecords(
        token_ids_L=document.token_ids_L.copy(), records=document.records.select(keep_P), extent=document.extent
    )
