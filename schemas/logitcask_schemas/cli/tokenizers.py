"""Tokenizers for commands: the one of a folder that a person names, by a transformers that leaves torch out."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.errors import MissingExtraError, ModelError

_QUIET: Final = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def leave_torch_out() -> None:
    """Import transformers as it is where torch is not installed: tokenizers and configurations, no models.

    For a process that computes with no model, which torch would only cost memory and seconds at its start. transformers
    asks once, when it is imported, whether there is a torch, and offers its tokenizers without it; no setting says so
    to it (decision 0050). Call this before anything else imports transformers, and while there is one thread. Nothing
    is done where transformers or torch is imported already, or transformers is not installed. torch itself can still
    be imported afterwards; models of transformers cannot be had in this process any more.
    """
    if {"transformers", "torch"} & sys.modules.keys() or importlib.util.find_spec("transformers") is None:
        return
    before = os.environ.get(_QUIET)
    os.environ[_QUIET] = "1"  # or it advises everybody to install torch
    sys.modules["torch"] = None  # type: ignore[assignment]  # what Python has for a module that is not there
    try:
        importlib.import_module("transformers")
    finally:
        del sys.modules["torch"]
        if before is None:
            del os.environ[_QUIET]
        else:
            os.environ[_QUIET] = before


def load_tokenizer(folder: Path, *, command: str) -> Any:
    """The tokenizer in a folder.

    Args:
        folder: of a model or a tokenizer; nothing is downloaded.
        command: that needs it, for the message.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: the folder holds no tokenizer that loads.
    """
    leave_torch_out()
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{command} --tokenizer", "trainer", "transformers") from error
    if not folder.is_dir():
        raise ModelError(f"--tokenizer {folder} is no folder; name that of a model with the teacher's tokenizer")
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the Rust backend raises bare Exception on a damaged file
        if not any(part in path.name for path in folder.iterdir() for part in ("token", "vocab", "spiece")):
            raise ModelError(
                f"--tokenizer {folder} holds no files of a tokenizer (tokenizer.json, tokenizer_config.json); name the "
                "folder of the teacher's model, or of its tokenizer"
            ) from error
        raise ModelError(f"--tokenizer {folder} holds no tokenizer that loads: {error}") from error
