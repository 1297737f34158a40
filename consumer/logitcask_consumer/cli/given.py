"""Values of options that must not be empty: `Path` takes an empty one, a variable that was not set, for this folder."""

from pathlib import Path

import typer


def given_text(text: str) -> str:
    """The text; refuses an empty one."""
    if not text.strip():
        raise typer.BadParameter("is empty; was a variable of the shell not set?")
    return text


def given_path(text: str) -> Path:
    """The path; refuses an empty one."""
    return Path(given_text(text))


def labelled_path(text: str) -> tuple[str, Path]:
    """label=folder, or a folder whose name is its label; refuses an empty label or folder."""
    label, separator, folder = text.partition("=")
    if not separator:
        label, folder = Path(text).name, text
    if not label.strip() or not folder.strip():
        raise typer.BadParameter(f"{text!r}: expected label=folder, or a folder")
    return label, Path(folder)
