"""The tokenizer of a folder that a command names."""

from pathlib import Path
from typing import Any

from logitcask_schemas.errors import MissingExtraError, ModelError


def load_tokenizer(folder: Path, *, command: str) -> Any:
    """The tokenizer in a folder.

    Args:
        folder: of a model or a tokenizer; nothing is downloaded.
        command: that needs it, for the message.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: the folder holds no tokenizer that loads.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{command} --tokenizer", "trainer", "transformers") from error
    if not folder.is_dir():
        raise ModelError(f"--tokenizer {folder} is no folder; name that of a model with the teacher's tokenizer")
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        if not any(part in path.name for path in folder.iterdir() for part in ("token", "vocab", "spiece")):
            raise ModelError(
                f"--tokenizer {folder} holds no files of a tokenizer (tokenizer.json, tokenizer_config.json); name the "
                "folder of the teacher's model, or of its tokenizer"
            ) from error
        raise ModelError(f"--tokenizer {folder} holds no tokenizer that loads: {error}") from error
