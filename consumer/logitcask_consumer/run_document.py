"""The output folder of a run, and the document in it that says what was trained, on what, and how far it is.

output/
logitcask.json          what was trained, on what, how; `status` is running or finished. Replaced atomically
metrics.jsonl           one line per logged step
held_out.jsonl          one line per evaluation on held-out casks, where there are some
initial/                the student before training, where it exists nowhere else
checkpoints/checkpoint-N   complete; what is being written, or removed, has another name
config.json, model.safetensors, tokenizer files   the trained student, when finished

A model that was quantised without training has logitcask-origin.json instead: the runs that trained what it is made of.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from logitcask_schemas.cask.publication import cask_around
from logitcask_schemas.errors import LogitcaskError

RUN_NAME = "logitcask.json"
ORIGIN_NAME = "logitcask-origin.json"
"""In the folder of a model that was made of a trained one without training."""
METRICS_NAME = "metrics.jsonl"
HELD_OUT_NAME = "held_out.jsonl"
INITIAL_NAME = "initial"
CHECKPOINTS_NAME = "checkpoints"
FILTERS_NAME = "hint_filters.safetensors"
"""Filters of the teacher's layers, for a run that needs some: they are there before the run is written down."""
PARTIAL_NAME = ".partial"
"""Folder of what is not complete, in the output folder and in that of the checkpoints."""
_NOT_OURS = (
    ("cask.json", "a cask"),
    ("config.json", "a model"),
    ("adapter_config.json", "adapters"),
    ("*.safetensors", "a model"),
    ("tokenizer*.json", "a tokenizer"),
)
"""Files that tell what a folder is, and what that is."""
_OF_WRITING = re.compile(
    r"PytorchStreamWriter|inline_container|iostream error|unexpected pos|Errno \d+|CheckpointException"
)
"""How torch's own errors say that a file could not be written; it has no class for them."""
_FORMAT = {"format": "logitcask-run", "version": 1}


class RunFolderError(LogitcaskError, ValueError):
    """An output folder cannot be used for this run."""


class RunWriteError(LogitcaskError, OSError):
    """The file system refused to take bytes; what was complete before still is."""


@contextmanager
def explained_writes(place: Path, advice: str) -> Iterator[None]:
    """Turn what fails while files are written into one sentence.

    Args:
        place: what is written.
        advice: what to do.

    Raises:
        RunWriteError: the disk is full, or another fault of the file system.
    """
    try:
        yield
    except LogitcaskError:
        raise
    # torch and safetensors have errors of their own, whose texts do not always name the system's.
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not _OF_WRITING.search(str(error)):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        standing = next((folder for folder in (place, *place.parents) if folder.exists()), Path())
        free = shutil.disk_usage(standing).free
        raise RunWriteError(f"{place} cannot be written: {reason} ({free:,} bytes are free there). {advice}") from error


def read_run(output: Path) -> dict[str, Any] | None:
    """The run document of a folder, or None where there is none.

    Raises:
        RunFolderError: it is damaged or of another format.
    """
    path = output / RUN_NAME
    if not path.is_file():
        return None
    try:
        run: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(run, dict):
            raise TypeError("it is no object")
    except (ValueError, TypeError, RecursionError) as error:
        raise RunFolderError(f"{path} is not the JSON of a run ({error}); use another output folder") from error
    if {name: run.get(name) for name in _FORMAT} != _FORMAT:
        stated = {name: run.get(name) for name in _FORMAT}
        raise RunFolderError(f"{path} should say {_FORMAT}, it says {stated}; use another output folder")
    return run


def write_run(output: Path, status: Literal["running", "finished"], content: dict[str, Any]) -> None:
    """Replace the run document atomically and durably.

    Raises:
        RunWriteError: it cannot be written.
    """
    with explained_writes(output / RUN_NAME, "Free space, or mend what is wrong, and give the same command again"):
        output.mkdir(parents=True, exist_ok=True)
        replace_file(output / RUN_NAME, json.dumps({**_FORMAT, "status": status, **content}, indent=2) + "\n")


def require_unused(output: Path) -> None:
    """Raise RunFolderError where an output folder without a run holds a model or a cask, or lies in one.

    A run would write over it. The folder of the teacher or of the student may have been named by mistake, and could not
    be had again.
    """
    if (output / RUN_NAME).exists():
        return
    for pattern, what in _NOT_OURS:
        if path := next((path for path in output.glob(pattern) if path.name != FILTERS_NAME), None):
            raise RunFolderError(
                f"the output folder {output} holds {what} that no run made ({path.name}); a run would write over it. "
                "Name another folder (--output)"
            )
    if (cask := cask_around(output)) is not None:
        raise RunFolderError(
            f"the output folder {output} lies in the cask {cask}, which holds nothing else. Name another folder "
            "(--output)"
        )


def require_finished(folder: Path) -> None:
    """Raise RunFolderError where a model folder is the output of a run that has not ended."""
    run = read_run(folder)
    if run is None or run["status"] == "finished":
        return
    last = latest_checkpoint(folder)
    raise RunFolderError(
        f"{folder} holds a training run that has not finished, so no model yet. Give its command again to finish it"
        + (f", or name its last checkpoint, {last}" if last else "")
    )


def run_folder_of(folder: Path) -> Path:
    """The output folder of the run that a model folder belongs to, if one made it: itself, or its checkpoint's."""
    is_checkpoint = (folder / "trainer_state.json").is_file() and folder.absolute().parent.name == CHECKPOINTS_NAME
    return folder.absolute().parent.parent if is_checkpoint else folder


def run_of(folder: Path) -> dict[str, Any] | None:
    """The run that a model folder comes from, also where it is one of the run's checkpoints; None where no run made it.

    Raises:
        RunFolderError: see `read_run`.
    """
    return read_run(run_folder_of(folder))


def earlier_runs(folder: Path | None) -> list[dict[str, Any]]:
    """Casks and their places of the runs that trained a model folder before, the latest first.

    `chosen_by` of one describes the held-out documents by which its student was chosen among its checkpoints.
    """
    run = None if folder is None else run_of(folder)
    if run is None or folder is None:
        return [] if folder is None else list(origin_of(folder).get("earlier", []))
    last = {"casks": run["casks"], "places": run.get("places")}
    is_choice = run["status"] == "finished" and run["settings"].get("load_best") and "held_out" in run
    if is_choice and run_folder_of(folder) == folder:  # a checkpoint is no choice
        last["chosen_by"] = run["held_out"]
    return [last, *run.get("earlier", [])]


def extra_ids_of(folder: Path) -> Any:
    """What becomes of a model's ids beyond the teacher's: as in the run that made it, `keep` where none did."""
    run = run_of(folder)
    return (origin_of(folder) if run is None else run["settings"]).get("extra_ids", "keep")


def origin_of(folder: Path) -> dict[str, Any]:
    """What a model keeps of the one that it was made of: `earlier` (see `earlier_runs`), `extra_ids`; empty for others.

    Raises:
        RunFolderError: it is damaged.
    """
    path = folder / ORIGIN_NAME
    if not path.is_file():
        return {}
    try:
        origin: dict[str, Any] = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is not JSON ({error}), so what the model was trained on is not known") from error
    return origin


def write_origin(folder: Path, source: Path) -> None:
    """Note in a model's folder by which runs the model in another folder was trained, which it was made of."""
    origin = {"earlier": earlier_runs(source), "extra_ids": extra_ids_of(source)}
    replace_file(folder / ORIGIN_NAME, json.dumps(origin, indent=2) + "\n")


def latest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint; one that lacks its last file, left by an older version, is passed over."""
    complete = [path for path in checkpoints_in(output / CHECKPOINTS_NAME) if (path / "trainer_state.json").is_file()]
    return complete[-1] if complete else None


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints of a folder, the newest last."""
    named = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(named, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def replace_file(path: Path, text: str) -> None:
    """Give a file another text, atomically and durably: after a crash it has the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def share_weights(folder: Path) -> None:
    """Give the weights below a folder the permissions that its umask gives all other files; see `share_file`."""
    for path in folder.rglob("*.safetensors"):
        share_file(path)


def share_file(path: Path) -> None:
    """Give a file of safetensors the permissions that the umask gives all other files.

    safetensors 0.8 writes it for its owner alone: a service of another user could not read the student. One that lacks
    nothing is left alone: file systems without permissions give all files the same, and refuse a change.
    """
    permissions, of_others = path.stat().st_mode, path.parent.stat().st_mode & 0o666
    if of_others & ~permissions:
        path.chmod((permissions | of_others) & 0o777)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
