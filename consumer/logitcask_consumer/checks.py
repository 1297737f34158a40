"""Proofs that a student and a cask belong together, made before any work is done."""

from typing import Any

from logitcask_consumer.data import Packing
from logitcask_consumer.losses import LMHead, check_head
from logitcask_consumer.student_forward import check_packing
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.manifest import CaskManifest


def check_student(model: Any, manifest: CaskManifest, packing: Packing) -> None:
    """Vocabulary, head and packing of a student fit the records it is used with.

    Raises:
        IdentityMismatchError: its vocabulary has another size than the teacher's logits.
        ModelError: its logits are not its head's, or it cannot keep packed documents apart.
    """
    vocab, expected = LMHead.from_model(model).vocab_size, manifest.teacher.vocab_size
    if vocab != expected:
        raise IdentityMismatchError(
            f"the student's vocabulary has {vocab} ids, the teacher's logits had {expected}; resize the student's "
            "embeddings (resize_token_embeddings) or take a student of the teacher's family"
        )
    check_head(model)
    if packing != "none":
        check_packing(model)
