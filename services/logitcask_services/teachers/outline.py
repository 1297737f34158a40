"""What a model's folder says of a teacher without its weights: enough to check requests and to make tokens."""

from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.jobs.loaded_teacher import TeacherFacts

_LENGTHS = ("max_position_embeddings", "n_positions")
_UNBOUNDED = 2**31 - 1


def outline(folder: ModelFolder, max_model_len: int | None, *, stamp: str = "") -> TeacherFacts | None:
    """The facts of a teacher before it is loaded; its engine settles the identity, and may settle a shorter window.

    Args:
        folder: the model's.
        max_model_len: the operator's; None: what the configuration declares.
        stamp: of the files.

    Returns:
        None where config.json does not say how large the vocabulary is.

    Raises:
        ModelError: the tokenizer cannot be used.
    """
    text = {**folder.config, **(folder.config.get("text_config") or {})}
    if not isinstance(vocab_size := text.get("vocab_size"), int):
        return None
    declared = next((length for name in _LENGTHS if isinstance(length := text.get(name), int)), _UNBOUNDED)
    return TeacherFacts(
        model=folder.name,
        vocab_size=vocab_size,
        tokenizer_fingerprint=folder.tokenizer_fingerprint,
        template_hash=folder.template_hash,
        max_model_len=max_model_len or declared,
        tokenizer=HuggingFaceTokenizer.load(folder.path),
        hint_shape=HintShape.of_config(folder.config),
        stamp=stamp,
    )
