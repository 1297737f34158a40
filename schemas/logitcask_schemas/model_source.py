"""Where a model comes from: a folder on this machine, or a repository of the Hugging Face Hub at one revision."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from logitcask_schemas.errors import ModelError
from logitcask_schemas.terminal import counted

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_NAMED: Final = 5
"""Folders that an error names."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HUB_FILES: Final = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.txt")
"""What engines and tokenizers load; no pickles, no other formats of the same weights."""
_WEIGHTS: Final = "*.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model on this machine's disk."""

    folder: Path
    name: str
    """For people: the folder's or the repository's."""
    revision: str | None = None
    """Commit of the repository it was downloaded from; None of a folder that a person named."""


def is_hub_id(text: str) -> bool:
    """Whether a text has the form ORGANISATION/NAME[@REVISION], and no file or folder has its name."""
    return _HUB_ID.fullmatch(text) is not None and not Path(text).exists()


def find_model(model: Path | str, *, weights: bool = True) -> ModelSource:
    """The model that a person names; one of the Hub is downloaded, or found in the Hub's cache on this machine.

    Args:
        model: A folder, or where there is none of that name ORGANISATION/NAME, or ORGANISATION/NAME@REVISION with a
            branch, tag or commit. The revision is resolved to a commit once, here.
        weights: Whether to download the weights, too.

    Raises:
        ModelError: It is no folder, and the Hub has no such repository or cannot be reached.
    """
    text, path = str(model), Path(model)
    if not is_hub_id(text):
        return ModelSource(folder=path, name=path.resolve().name)
    from huggingface_hub import snapshot_download

    repository, _, revision = text.partition("@")
    patterns = [pattern for pattern in _HUB_FILES if weights or pattern != _WEIGHTS]
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # the Hub's own errors are among these
        others = sorted(each.name for each in path.parent.iterdir()) if path.parent.is_dir() else []
        listing = f" ({path.parent} holds {', '.join(others[:_NAMED])})" if others else ""
        raise ModelError(
            f"{text} is no folder here{listing}, and the Hugging Face Hub did not give a repository of that name: "
            f"{type(error).__name__}: {error}. Name a folder, or check the name, the network and HF_TOKEN"
        ) from error
    if not _COMMIT.fullmatch(folder.name):
        raise ModelError(f"{text} was downloaded to {folder}, whose name is no commit: its revision cannot be pinned")
    return ModelSource(folder=folder, name=repository, revision=folder.name)


def require_all_weights(folder: Path, missing: Iterable[str]) -> None:
    """Refuse a model some of whose weights transformers did not find, and would put random numbers in their place.

    Args:
        folder: of the model.
        missing: `missing_keys` of what `from_pretrained(output_loading_info=True)` gives.

    Raises:
        ModelError: there are some.
    """
    if names := sorted(missing):
        more = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
        raise ModelError(
            f"{folder} lacks the weights {names[0]}{more}, which its config.json asks for. Its files are incomplete, "
            "or of another model; fetch or save it again"
        )
