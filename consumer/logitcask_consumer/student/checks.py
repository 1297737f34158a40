"""Proofs that a student and a cask belong together, made before any work is done."""

from typing import Any

from logitcask_consumer.data import Packing
from logitcask_consumer.data.vocabulary import StudentVocabulary
from logitcask_consumer.head import check_head
from logitcask_consumer.student.forward import check_packing
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.errors import ModelError


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


def context_of(config: Any) -> int | None:
    """Tokens that a model is made for; None where its config names no limit.

    Scaled rotary positions reach as far as their factor says, which some configs leave out of their own figure.
    """
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    limit = next((int(value) for value in limits if isinstance(value, int) and value > 0), None)
    if limit is None:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    # Some models have one such description for each kind of layer.
    for scaled in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        original = scaled.get("original_max_position_embeddings") or limit
        limit = max(limit, int(original * float(scaled.get("factor") or 1.0)))
    return limit


def check_context(model: Any, seq_len: int) -> None:
    """A student's context holds a whole sequence: one rule, whether its positions are learned, rotary or else.

    A table of positions has no row beyond its end. Rotary positions would go on, but the saved config would promise
    less than the student was trained for, and what reads it cuts texts there.

    Raises:
        ModelError: it does not.
    """
    context = context_of(model.config)
    if context is not None and context < seq_len:
        raise ModelError(
            f"the student's context is {context} tokens (max_position_embeddings of its config), a training sequence "
            f"has {seq_len}. Give --seq-len {context}, or less; or a student whose config names a longer context"
        )
