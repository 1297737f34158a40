"""The held-out documents that a training run measures its student on: casks opened, checked and, if asked, sampled.

Shape legend: D documents of all held-out casks, N chosen ones.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data import CaskDataset, EmptyCaskError, Packing
from logitcask_consumer.data.vocabulary import token_count
from logitcask_consumer.held_out.measuring import kl_name
from logitcask_consumer.held_out.reading import Reading, reading_of
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import CaskError, IdentityMismatchError
from logitcask_schemas.record.identity import tokenizer_fingerprint


class UnmeasurableCaskError(CaskError):
    """The records of a cask do not say how far a student is from its teacher."""


def why_unmeasurable(cask: Cask) -> str | None:
    """Why the KL to a cask's teacher cannot be told from its records, with what to do; None where it can."""
    if cask.manifest.capture.imported:
        return (
            f"{cask.place} was imported from another tool's top-k: it lacks the teacher's entropy, and its probability "
            "of tokens beyond the k largest, so the teacher's loss and the KL cannot be told. Capture held-out text "
            "with logitcask (submit --held-out)"
        )
    if cask.manifest.capture.entropy_is_bound:
        return (
            f"{cask.place} holds the top-k of a teacher that was served elsewhere: of its entropy a lower bound is "
            "known, so the teacher's loss and the KL cannot be told. Capture held-out text with an engine that sees "
            "the whole distribution (serve --engine vllm; submit --held-out)"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutDocuments:
    """Documents of held-out casks, all of one teacher and capture spec."""

    casks: tuple[Cask, ...]
    numbers_N: NDArray[np.int64]
    """Which of the casks' documents are measured on, numbered one cask after the other, ascending."""
    tokenizer: Any
    """The student's, which is the teacher's."""

    @classmethod
    def open(
        cls,
        places: Sequence[Path | str],
        *,
        tokenizer: Any,
        documents: int | None = None,
        cache: Path | None = None,
        cache_bytes: int | None = None,
    ) -> Self:
        """Open casks and choose documents.

        Args:
            places: folders, or URLs of object stores.
            tokenizer: the student's.
            documents: how many to measure on; None for all. They are those with the smallest SHA-256, a sample that
                depends on nothing but the documents.
            cache: for URLs: local folder for fetched shards.
            cache_bytes: for URLs: most bytes that each cask keeps there.

        Raises:
            CaskNotFoundError, CaskCorruptionError: a cask cannot be opened.
            EmptyCaskError: there is no document of two tokens or more, as while the first shard is being written.
            IdentityMismatchError: a cask is another tokenizer's, or casks differ in teacher or capture spec.
            UnmeasurableCaskError: its records do not tell the KL.
        """
        casks = [Cask.open(place, tokenizer_fingerprint=None, cache=cache, cache_bytes=cache_bytes) for place in places]
        fingerprint = tokenizer_fingerprint(tokenizer)
        for cask in casks:
            if (stored := cask.manifest.teacher.tokenizer_fingerprint) != fingerprint:
                raise IdentityMismatchError(
                    f"--eval-cask {cask.place}: tokenizer_fingerprint: {stored!r} in the cask, {fingerprint!r} of the "
                    "student. The KL while training compares token ids. Leave --eval-cask out, and measure such a "
                    "student afterwards with `logitcask report --teacher`, which compares bits per byte"
                )
            if (reason := why_unmeasurable(cask)) is not None:
                raise UnmeasurableCaskError(f"--eval-cask: {reason}")
            if not (cask.document_lengths() > 1).any():
                raise EmptyCaskError(
                    f"--eval-cask {cask.place}: {len(cask)} documents, none of two tokens or more. If it is still "
                    "being written, wait for its first shard"
                )
            casks[0].manifest.require_same(cask.manifest.teacher, cask.manifest.capture, where=str(casks[0].path))
        lengths_D = np.concatenate([cask.document_lengths() for cask in casks])
        numbers_N = np.flatnonzero(lengths_D > 1)
        if documents is not None and documents < len(numbers_N):
            ids_N32 = np.concatenate([cask.document_ids() for cask in casks])[numbers_N]
            first_N = np.ascontiguousarray(ids_N32[:, :8]).view(">u8").reshape(-1)
            numbers_N = np.sort(numbers_N[np.argsort(first_N, kind="stable")[:documents]])
        return cls(casks=tuple(casks), numbers_N=numbers_N, tokenizer=tokenizer)

    @property
    def metric(self) -> str:
        """The figure by which students are compared."""
        return kl_name(self.casks[0].manifest.capture)

    @property
    def ids_N32(self) -> NDArray[np.uint8]:
        """SHA-256 of each document's token ids, [N, 32]."""
        return np.concatenate([cask.document_ids() for cask in self.casks])[self.numbers_N]

    def binding(self) -> dict[str, Any]:
        """What tells whether another call measures on the same documents and records; JSON types."""
        digest = hashlib.sha256(np.sort(self.ids_N32.view("V32").reshape(-1)).tobytes()).hexdigest()
        return {
            "teacher_and_spec": self.casks[0].manifest.identity_digest(),
            "documents": len(self.numbers_N),
            "documents_digest": digest,
        }

    def reading(self, model: Any, packing: Packing) -> Reading:
        """How a student reads the documents, as in a report of it.

        Args:
            model: the student.
            packing: of its training. One that is trained without packing is measured without: whether it could do with
                it is not tried, since that may change its forward pass.

        Raises:
            IdentityMismatchError, ModelError: it does not fit the records.
        """
        alone: Packing | None = "none" if packing == "none" else None
        tokens = token_count(self.tokenizer)
        return reading_of("the student", model, self.casks, None, tokens=tokens, packing=alone)

    def dataset(self, reading: Reading) -> CaskDataset:
        """The documents as a student reads them."""
        return reading.dataset(self.casks, documents=self.numbers_N)
