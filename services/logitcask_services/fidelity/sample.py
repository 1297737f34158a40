"""The documents that are looked at: some of a cask, with what it says of them, or the first ones of a corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError, LogitcaskError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.engine import CaptureTask, refusal
from logitcask_services.pilot.pilot import sample_documents

_SEED = 0
"""Of the order in which a cask's documents are taken: the same ones each time."""


class FidelityError(LogitcaskError, ValueError):
    """A fidelity report cannot be made: no usable document, or one that the teacher failed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Documents, and how they are or would be captured."""

    tasks: tuple[CaptureTask, ...]
    """One per document; `key` is its number."""
    spec: CaptureSpec
    stored: tuple[DocumentRecords, ...] | None
    """What a cask says of each; None where the documents come from a corpus."""
    teacher: TeacherIdentity | None
    """That of the cask."""

    @property
    def positions(self) -> int:
        """With records, of all documents."""
        return sum(task.extent.num_positions(len(task.token_ids_L)) for task in self.tasks)

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(len(task.token_ids_L) for task in self.tasks)

    @classmethod
    def of_cask(cls, place: str, positions: int, *, cache: Path | None = None) -> Self:
        """Documents from all over a cask, until they have so many positions.

        Args:
            place: folder or URL.
            positions: with records.
            cache: of a URL: local folder for what is fetched.

        Raises:
            CaskError: there is no cask, or it cannot be read.
            FidelityError: it holds no document, or only such as were read under contexts, which it does not keep.
        """
        cask = Cask.open(place, cache=cache)
        if not len(cask):
            raise FidelityError(f"{place} holds no document yet; capture some first")
        stored, count = list[DocumentRecords](), 0
        for number in np.random.default_rng(_SEED).permutation(len(cask)).tolist():
            if count >= positions:
                break
            document = cask.read(number)
            if document.extent.context is None:
                stored.append(document)
                count += document.records.num_positions
        if not stored:
            raise FidelityError(
                f"{place}: the teacher read all documents under contexts, of which a cask keeps digests alone, so it "
                "cannot be asked again; take a cask of documents without one, or --sample"
            )
        tasks = [
            CaptureTask(
                key=number,
                token_ids_L=document.token_ids_L.astype(np.uint32),
                recorded_R2=document.extent.recorded_R2,
            )
            for number, document in enumerate(stored)
        ]
        return cls(tasks=tuple(tasks), spec=cask.manifest.capture, stored=tuple(stored), teacher=cask.manifest.teacher)

    @classmethod
    def of_lines(
        cls, path: Path, tokenizer: DocumentTokenizer, spec: CaptureSpec, *, positions: int, max_length: int
    ) -> Self:
        """The first documents of a corpus, until they have so many positions.

        Args:
            path: JSON lines, from all over the corpus.
            tokenizer: the teacher's.
            spec: how they would be captured.
            positions: of all documents.
            max_length: tokens of a document; the rest is left out.

        Raises:
            PilotError: a line is bad.
            FidelityError: there is no document.
        """
        tasks, count = list[CaptureTask](), 0
        for ids in sample_documents(path, tokenizer, max_length):
            tasks.append(CaptureTask(key=len(tasks), token_ids_L=np.array(ids, dtype=np.uint32)))
            count += len(ids) - 1
            if count >= positions:
                break
        if not tasks:
            raise FidelityError(f"{path} holds no document of two tokens or more; expected JSON lines with some text")
        return cls(tasks=tuple(tasks), spec=spec, stored=None, teacher=None)

    def require_fits(self, fingerprint: str, *, vocab_size: int | None, max_model_len: int | None) -> None:
        """Refuse documents that a teacher cannot read, before it is loaded.

        Args:
            fingerprint: of its tokenizer.
            vocab_size: of its logits, where its folder says.
            max_model_len: tokens that it can read, where that is known.

        Raises:
            IdentityMismatchError: the cask's ids are those of another tokenizer.
            FidelityError: a document is too long, or holds an id that the teacher does not know.
        """
        if self.teacher is not None and self.teacher.tokenizer_fingerprint != fingerprint:
            raise IdentityMismatchError(
                f"the cask's token ids are those of {self.teacher.model!r}, whose tokenizer "
                f"({self.teacher.tokenizer_fingerprint[:16]}...) is another one than this teacher's "
                f"({fingerprint[:16]}...); name the teacher that the cask was made with"
            )
        for task in self.tasks:
            reason = refusal(task, max_model_len=max_model_len or 2**31, vocab_size=vocab_size or 2**24)
            if reason is not None:
                raise FidelityError(f"document {task.key} of the sample, counted from 0: {reason}")

    def with_stored(self, documents: Sequence[DocumentRecords]) -> "Sample":
        """The same with what a cask that was made of it says."""
        return Sample(tasks=self.tasks, spec=self.spec, stored=tuple(documents), teacher=self.teacher)
