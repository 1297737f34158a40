"""What `train` and `report` have in common: options that must not be empty, and how the commands speak."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from logitcask_schemas.local_paths import local_path

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]


def nonempty_text(text: str) -> str:
    """The text; refuses an empty one, which is a variable of the shell that was not set."""
    if not text.strip():
        raise typer.BadParameter("is empty; was a variable of the shell not set?")
    return text


def nonempty_path(text: str) -> Path:
    """The path; refuses an empty one, which `Path` takes for this folder, and the address of an object store."""
    return local_path(nonempty_text(text))


def labelled_path(text: str) -> tuple[str, Path]:
    """label=folder, or a folder whose name is its label; refuses an empty label or folder."""
    label, separator, folder = text.partition("=")
    if not separator:
        label, folder = Path(text).name, text
    if not label.strip() or not folder.strip():
        raise typer.BadParameter(f"{text!r}: expected label=folder, or a folder")
    return label, Path(folder)


def output_option(help_text: str) -> Any:
    """The option --output, a folder."""
    return typer.Option("--output", "-o", help=help_text, show_default=False, parser=nonempty_path, metavar="PATH")


def messages(*, quiet: bool = False) -> Console:
    """Where people are told what happens: stderr, or nowhere. Names in brackets are names, not styles."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, quiet=quiet)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def quiet_transformers() -> None:
    """No bars and hints of transformers among ours; its warnings stay. To be called before models are imported.

    Where torchao is installed, transformers imports it, which tells of compiled parts that are for other machines.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers").setLevel(logging.WARNING)
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
