"""Proofs that a student and a cask belong together, made before any work is done."""

from typing import Any

from logitcask_consumer.data import Packing
from logitcask_consumer.losses import check_head
from logitcask_consumer.student_forward import check_packing
from logitcask_consumer.vocabulary import StudentVocabulary
from logitcask_schemas.manifest import CaskManifest


def check_student(model: Any, manifest: CaskManifest, packing: Packing, *, tokens: int | None = None) -> None:
    """Vocabulary, head and packing of a student fit the records it is used with.

    Args:
        model: a causal LM.
        manifest: of the records.
        packing: how documents are put into sequences.
        tokens: one more than the largest id of the tokenizer, which a student narrower than the teacher must have.

    Raises:
        IdentityMismatchError: its vocabulary lacks tokens.
        ModelError: its logits are not its head's, or it cannot keep packed documents apart.
    """
    StudentVocabulary.of(model, manifest.teacher.vocab_size).require_tokens(tokens)
    check_head(model)
    if packing != "none":
        check_packing(model)
