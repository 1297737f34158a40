"""How a model reads the held-out documents: the length of its windows, and whether documents share a sequence.

This follows from the documents and the model alone, so a model's figures are the same whatever stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data import CaskDataset, Packing
from logitcask_consumer.student.checks import check_student, context_of
from logitcask_consumer.student.forward import check_packing
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.quantization import round_weights, scheme_of_checkpoint
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import LogitcaskError, ModelError

LONGEST = 4096
"""Documents beyond this many positions are evaluated in windows, unless a sequence length is asked for."""


class ContextError(LogitcaskError, ValueError):
    """A sequence length is beyond what a model can take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The sequences in which a model gets the documents. Equal ones share a dataset."""

    seq_len: int
    """Tokens of a window at most."""
    packing: Packing
    """`none` for a model that cannot keep packed documents apart."""

    @property
    def overlap(self) -> int:
        """Tokens that a later window of a document sees again, as context."""
        return self.seq_len // 2

    def dataset(self, casks: Sequence[Cask], *, documents: NDArray[np.int64] | None = None) -> CaskDataset:
        """The documents as the model reads them; those of some numbers, over all casks, or all."""
        return CaskDataset(casks, seq_len=self.seq_len, overlap=self.overlap, packing=self.packing, documents=documents)

    def describe(self, dataset: CaskDataset) -> dict[str, Any]:
        """JSON form, with the share of positions that see less context than the teacher saw."""
        windows = dataset.windows
        counts_W = windows.records_W
        later = int(counts_W[windows.start_W > 0].sum())
        return {
            "seq_len": self.seq_len,
            "overlap": self.overlap,
            "packing": self.packing,
            "share_with_less_context": later / int(counts_W.sum()),
        }


def reading_of(
    label: str,
    model: Any,
    casks: Sequence[Cask],
    seq_len: int | None,
    *,
    tokens: int,
    packing: Packing | None = None,
) -> Reading:
    """How a model is to read the documents of some casks.

    Args:
        label: of the model, for messages.
        model: a causal LM with the teacher's tokenizer.
        casks: the held-out documents.
        seq_len: tokens of a window; None for the longest document, at most `LONGEST` and the model's context.
        tokens: one more than the largest id of the tokenizer.
        packing: whether documents share a sequence; None: where the model keeps them apart, perhaps by masks that it is
            given from here on.

    Raises:
        ContextError: the model's context is below `seq_len`.
        IdentityMismatchError, ModelError: the model does not fit the records.
    """
    check_student(model, casks[0].manifest, "none", tokens=tokens)
    return Reading(seq_len=_window(label, model, casks, seq_len), packing=packing or _packing(model))


def load_reader(folder: Path, packing: Packing) -> Any:
    """A model that `reading_of` has found to read in this way, ready to; on the CPU.

    Raises:
        ModelError: the folder's model is another one by now.
    """
    model = round_as_its_run(load_model(folder), folder)
    if packing != "none":
        check_packing(model)  # gives the body masks where it needs them
    return model


def round_as_its_run(model: Any, folder: Path) -> Any:
    """The model of a folder, rounded as its run trains it, and saves it, where the folder holds weights before that."""
    if (scheme := scheme_of_checkpoint(folder)) is not None:
        round_weights(model, scheme)
    return model


def _window(label: str, model: Any, casks: Sequence[Cask], seq_len: int | None) -> int:
    context = context_of(model.config)
    longest = max((int(cask.document_lengths().max(initial=0)) for cask in casks), default=0) - 1
    if seq_len is None:
        return max(2, min(longest, LONGEST, context or LONGEST))
    if context and context < min(seq_len, longest):
        raise ContextError(
            f"--seq-len {seq_len} is beyond the context of {label}, {context} tokens; without --seq-len every model "
            "reads what it can take"
        )
    return min(seq_len, max(2, longest))


def _packing(model: Any) -> Packing:
    try:
        check_packing(model)
    except ModelError:
        return "none"
    return "best_fit"


def document_order(dataset: CaskDataset) -> NDArray[np.int64]:
    """Where in the dataset's order each position stands when they are sorted by document, then within it, [P].

    Every recorded position is in exactly one window's trained part, so columns of datasets with other windows line up.
    """
    windows_W = dataset.packs.windows_W
    windows = dataset.windows
    counts_W = windows.records_W[windows_W]
    starts_W = np.cumsum(counts_W) - counts_W
    within_P = np.arange(int(counts_W.sum())) + np.repeat(windows.trained_W[windows_W] - starts_W, counts_W)
    return np.lexsort((within_P, np.repeat(windows.document_W[windows_W], counts_W)))
