"""The command that captures again what a repair took out: into the same cask, under the same capture spec."""

import shlex
from pathlib import Path
from typing import Final

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.cask.reader import Cask

_OPTIONS: Final = {"logprob_codec": "--codec", "pinned_ids": "--pin", "temperatures": "--temperature"}
"""Of `logitcask submit`, where they are not named after the field."""


def submit_command(cask: Path, requeue: Path) -> str:
    """A line for a shell.

    The service's cask root is taken to be the folder that holds the cask. Documents that no longer fit the service's
    teacher are left out: cut short, they would be other documents.

    Args:
        cask: The repaired cask.
        requeue: The list of its documents to capture again.

    Raises:
        CaskNotFoundError, CaskCorruptionError: The cask does not open.
    """
    opened = Cask.open(cask)
    words = ["logitcask", "submit", str(requeue), "--cask", cask.resolve().name, "--overflow", "skip", "--wait"]
    usual = CaptureSpec()
    for name, value in opened.manifest.capture.canonical().items():
        if value != usual.model_dump(mode="json").get(name):
            words += _option(_OPTIONS.get(name, "--" + name.replace("_", "-")), value)
    carriers = {entry.carrier for entry in opened.entries}
    if len(carriers) == 1 and carriers != {"arrow"}:
        words += ["--carrier", *carriers]
    return shlex.join(words)


def _option(option: str, value: object) -> list[str]:
    if value is True:
        return [option]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [word for one in values for word in (option, str(one))]
