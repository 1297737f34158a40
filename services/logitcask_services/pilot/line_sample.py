"""Lines drawn from a corpus, as the teacher reads them.

Shape legend: N lines, D documents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.corpora.corpus_lines import CorpusLines
from logitcask_services.corpora.prepare import DocumentLimits, prepare
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.pilot.pilot import PilotError


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSample:
    """The documents of some lines, in memory."""

    sizes_N: NDArray[np.int64]
    """Bytes of each line, without its end."""
    lines_D: NDArray[np.int64]
    """Place among these of the line that a document came from."""
    tasks: list[CaptureTask]
    """One per document."""
    bad_lines: int
    """Lines that give none, those that are skipped included."""

    @classmethod
    def prepare(
        cls,
        corpus: Path,
        scratch: Path,
        tokenizer: DocumentTokenizer,
        limits: DocumentLimits,
        *,
        stopped: Callable[[], bool],
    ) -> Self:
        """Prepare lines as an extraction would.

        Args:
            corpus: JSON lines; needed no more afterwards.
            scratch: A folder that does not exist; the caller deletes it.
            tokenizer: The teacher's.
            limits: As for an extraction.
            stopped: Whether to give up.

        Raises:
            PilotError: None of the lines gives a document; says what is wrong with the first.
            PreparationStoppedError: `stopped()` turned true.
            NotJsonLinesError, OSError: As `prepare`.
        """
        faults = list[str]()
        prepared = prepare(
            corpus,
            scratch,
            tokenizer,
            limits,
            report=lambda bad: faults.extend(f"line {each.line}: {each.message}" for each in bad[:1]),
            stopped=stopped,
        )
        if not prepared.documents:
            raise PilotError(f"none of the lines gives a document; {faults[0] if faults else 'all are blank'}")
        sizes = {number: len(content or b"") for number, _, content in CorpusLines(corpus, limits.max_line_bytes)}
        places = {number: place for place, number in enumerate(sizes)}
        store = TokenStore(scratch)
        numbers = [store.line(document)[0] for document in range(store.num_documents)]
        return cls(
            sizes_N=np.array(list(sizes.values()), dtype=np.int64),
            lines_D=np.array([places[number] for number in numbers], dtype=np.int64),
            tasks=[_task(store, document) for document in range(store.num_documents)],
            bad_lines=prepared.bad_lines + prepared.skipped_lines,
        )

    @property
    def read_tokens_D(self) -> list[int]:
        """What the teacher reads for each document, contexts included."""
        return [len(task.token_ids_L) + task.shift for task in self.tasks]

    @property
    def context_tokens(self) -> int:
        """Of all documents."""
        return sum(len(task.context.token_ids_C) for task in self.tasks if task.context is not None)

    def per_line(self, values_D: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of a value of documents, [N]."""
        weights_D = np.asarray(values_D, dtype=np.float64)
        return np.bincount(self.lines_D, weights_D, len(self.sizes_N)).astype(np.float64)


def _task(store: TokenStore, document: int) -> CaptureTask:
    """A document of a store whose files may then go."""
    recorded, context = store.recorded(document), store.context(document)
    return CaptureTask(
        key=None,
        token_ids_L=store.tokens(document).copy(),
        recorded_R2=None if recorded is None else recorded.copy(),
        context=None
        if context is None
        else ContextTokens(token_ids_C=context.token_ids_C.copy(), replaced=context.replaced),
    )
