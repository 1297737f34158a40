"""Whether a student can draft for a teacher: what their folders say, before an engine is started."""

from pathlib import Path

from logitcask_schemas.errors import IdentityMismatchError, ModelError
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.teachers.outline import outline


def require_draft(teacher: ModelFolder, draft: Path, *, tokens: int) -> ModelFolder:
    """The student's folder, opened.

    Args:
        teacher: its folder.
        draft: the student's.
        tokens: of the longest text with its prompt.

    Raises:
        ModelError: it is no folder of a model, gives logits of another width, or cannot read so many tokens.
        IdentityMismatchError: its token ids mean other tokens.
    """
    if not draft.exists():
        raise ModelError(f"--draft {draft}: no such folder; expected that of a student, with config.json and weights")
    try:
        folder = ModelFolder.open(draft)
    except ModelError as error:
        raise ModelError(f"--draft: {error}") from error
    if folder.tokenizer_fingerprint != teacher.tokenizer_fingerprint:
        raise IdentityMismatchError(
            f"--draft {draft} has another vocabulary than the teacher {teacher.name} (tokenizer_fingerprint "
            f"{folder.tokenizer_fingerprint[:16]}... and {teacher.tokenizer_fingerprint[:16]}...); a draft model "
            "writes the teacher's own tokens, so take a student with its tokenizer"
        )
    mine, theirs = (outline(each, None) for each in (folder, teacher))
    if mine is not None and theirs is not None and mine.vocab_size != theirs.vocab_size:
        raise ModelError(
            f"--draft {draft} has {mine.vocab_size} logits, the teacher {theirs.vocab_size}: vLLM takes drafts of the "
            "same width alone; resize the student's embeddings to it"
        )
    for option, facts in (("--draft", mine), ("--teacher", theirs)):
        if facts is not None and tokens > facts.max_model_len:
            raise ModelError(
                f"{option} {facts.model} reads {facts.max_model_len} tokens, and prompt, text and drafts have up to "
                f"{tokens}; lower --prompt-tokens or --max-tokens"
            )
    return folder


def lacks_generation_config(folder: ModelFolder) -> bool:
    """Whether a folder does not say itself where its texts end; a draft need not, the teacher's are the texts."""
    return not (folder.path / "generation_config.json").is_file()
