"""What a model's folder says of a teacher without its weights: facts for requests and tokens, and its stamp."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

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


def file_stamp(files: Iterable[Path]) -> str:
    """What tells at a glance that files may have changed.

    Returns:
        SHA-256 (hex) over the name, size, time and inode of each file, in the given order.

    Raises:
        OSError: a file is gone, or cannot be looked at.
    """
    states = [(file.name, file.stat()) for file in files]
    seen = [(own, state.st_size, state.st_mtime_ns, state.st_ino) for own, state in states]
    return hashlib.sha256(repr(seen).encode()).hexdigest()
