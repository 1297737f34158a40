"""What must hold of casks, windows and tokenizers before a student is trained token by token."""

from typing import Any

from logitcask_consumer.data import CaskDataset
from logitcask_consumer.hints import HintMismatchError, HintObjective
from logitcask_consumer.losses import LossMismatchError
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.identity import tokenizer_fingerprint


def require_hints_read(dataset: CaskDataset) -> None:
    """Refuse a dataset that reads no hints. Raises HintMismatchError."""
    if not dataset.reads_hints:
        raise HintMismatchError(
            "hints and target dense need a dataset that reads hints: CaskDataset(..., hints=True), also to evaluate"
        )


def require_whole_documents(objective: HintObjective, dataset: CaskDataset) -> None:
    """Refuse windows of documents where a hint loss compares all positions of one.

    Raises:
        HintMismatchError: says which length of sequences would do.
    """
    longest = int(dataset.windows.stop_W.max(initial=0))
    if objective.whole_documents and longest > dataset.seq_len:
        raise HintMismatchError(
            f"hint loss {objective.whole_documents[0]!r} compares all positions of a document with each other, and the "
            f"longest has {longest:,}, more than a sequence of {dataset.seq_len:,}: give --seq-len {longest}, or leave "
            "long documents out"
        )


def require_records(objective: Any, cask: Cask) -> None:
    """Refuse a loss that the records of a cask cannot support. Raises LossMismatchError, which names the cask."""
    try:
        objective.require(cask.manifest.capture)
    except LossMismatchError as error:
        raise LossMismatchError(f"{cask.place}: {error}") from error


def require_tokenizer(cask: Cask, tokenizer: Any) -> None:
    """Refuse a student whose token ids are not the records'.

    Raises:
        IdentityMismatchError: names losses for such a student.
    """
    stored, own = cask.manifest.teacher.tokenizer_fingerprint, tokenizer_fingerprint(tokenizer)
    if stored != own:
        raise IdentityMismatchError(
            f"{cask.path}: tokenizer_fingerprint: {stored!r} in the cask, {own!r} offered. This loss compares "
            "token ids, which needs a student with the teacher's tokenizer. A student with its own can be trained "
            "with --loss alm or --loss '1.5*uld + cross_entropy', and --teacher for the teacher's tokenizer "
            "(docs/cross_tokenizer.md)"
        )
