"""What a training run does differently where student and teacher have tokenizers of their own."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from logitcask_consumer.config import TrainConfig, TrainConfigError
from logitcask_consumer.cross_tokenizer.corpus import AlignedCorpus
from logitcask_consumer.cross_tokenizer.dataset import CrossTokenizerDataset
from logitcask_consumer.cross_tokenizer.documents import DocumentAligner
from logitcask_consumer.data import Packing
from logitcask_consumer.losses import LMHead, check_head
from logitcask_consumer.processes import processes
from logitcask_consumer.student_forward import check_packing
from logitcask_consumer.students import load_tokenizer
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError, ModelError
from logitcask_schemas.tokenizer_fingerprint import tokenizer_fingerprint

ALIGNED_NAME = "aligned"
"""Folder of the aligned corpus, in the run's output."""


def require_same_tokenizer(casks: Sequence[Cask], tokenizer: Any) -> None:
    """Refuse a student whose token ids are not the records'.

    Raises:
        IdentityMismatchError: with the losses that such a student can be trained with.
    """
    stored, own = casks[0].manifest.teacher.tokenizer_fingerprint, tokenizer_fingerprint(tokenizer)
    if stored != own:
        raise IdentityMismatchError(
            f"{casks[0].path}: tokenizer_fingerprint: {stored!r} in the cask, {own!r} offered. This loss compares "
            "token ids, which needs a student with the teacher's tokenizer. A student with its own can be trained "
            "with --loss alm or --loss '1.5*uld + cross_entropy', and --teacher for the teacher's tokenizer "
            "(docs/cross_tokenizer.md)"
        )


def aligner_of(config: TrainConfig, casks: Sequence[Cask], tokenizer: Any) -> DocumentAligner:
    """The aligner of the casks' teacher and a student.

    Args:
        config: names the teacher's folder, whose tokenizer turns the records' ids into text.
        casks: of one teacher.
        tokenizer: the student's.

    Raises:
        TrainConfigError: no teacher folder was named.
        IdentityMismatchError: its tokenizer is not the one of the records.
        UnsupportedTokenizerError: one of the tokenizers does not tell its tokens' bytes.
    """
    if config.teacher is None:
        raise TrainConfigError(
            f"loss {config.loss!r} needs the text of the documents: name the teacher's folder with --teacher (only its "
            "tokenizer is read)"
        )
    teacher = load_tokenizer(config.teacher)
    stored, own = casks[0].manifest.teacher.tokenizer_fingerprint, tokenizer_fingerprint(teacher)
    if stored != own:
        raise IdentityMismatchError(
            f"{config.teacher}: this tokenizer's fingerprint is {own!r}, the cask's teacher had {stored!r}; name the "
            "folder of the teacher that the cask was made with"
        )
    return DocumentAligner(teacher, tokenizer)


def aligned_dataset(
    config: TrainConfig, casks: Sequence[Cask], aligner: DocumentAligner, tokenizer: Any, say: Callable[[str], None]
) -> CrossTokenizerDataset:
    """The training sequences; the main process aligns the documents, once.

    Raises:
        NothingAlignedError: no document can be aligned.
    """
    own, folder = processes(), config.output / ALIGNED_NAME
    key = hashlib.sha256(
        json.dumps(
            [
                [[cask.manifest.identity_digest(), sorted(entry.name for entry in cask.entries)] for cask in casks],
                tokenizer_fingerprint(tokenizer),
                # Two tokenizers with one vocabulary may still cut text differently.
                hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            ]
        ).encode()
    ).hexdigest()
    if own.is_main_process:
        AlignedCorpus.open_or_make(folder, casks, aligner, key=key)
    own.wait_for_everyone()
    corpus = AlignedCorpus.open_or_make(folder, casks, aligner, key=key)
    found = corpus.summary
    left_out = "".join(f"; {count:,} left out: {reason}" for reason, count in found.left_out.items())
    say(
        f"aligned {found.documents:,} documents: {found.teacher_tokens:,} tokens of the teacher, "
        f"{found.student_tokens:,} of the student, {found.chunks:,} chunks{left_out}"
    )
    return CrossTokenizerDataset(
        casks, corpus, seq_len=config.seq_len, overlap=config.context, packing=config.packing, seed=config.seed
    )


def check_own_student(model: Any, tokenizer: Any, packing: Packing) -> None:
    """Vocabulary, head and packing of a student fit its own tokenizer.

    Raises:
        ModelError: it has fewer ids than its tokenizer, its logits are not its head's, or it cannot keep packed
            documents apart.
    """
    width, needed = LMHead.from_model(model).vocab_size, max(tokenizer.get_vocab().values()) + 1
    if width < needed:
        raise ModelError(
            f"the student's vocabulary has {width} ids, its tokenizer {needed}; resize the student's embeddings "
            "(resize_token_embeddings)"
        )
    check_head(model)
    if packing != "none":
        check_packing(model)
