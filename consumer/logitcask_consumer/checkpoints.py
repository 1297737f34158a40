"""The output folder of a run: what state it is in, and which checkpoint to continue from.

output/
logitcask.json          what was trained, on what, how; `status` is running or finished. Replaced atomically
metrics.jsonl           one line per logged step
initial/                the student before training, where it exists nowhere else
checkpoints/checkpoint-N
config.json, model.safetensors, tokenizer files   the trained student, when finished
"""

import json
import os
from pathlib import Path
from typing import Any, Literal

from logitcask_consumer.config import TrainConfig
from logitcask_schemas.errors import LogitcaskError

RUN_NAME = "logitcask.json"
METRICS_NAME = "metrics.jsonl"
INITIAL_NAME = "initial"
CHECKPOINTS_NAME = "checkpoints"
_FORMAT = {"format": "logitcask-run", "version": 1}


class RunFolderError(LogitcaskError, ValueError):
    """An output folder cannot be used for this run."""


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
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON ({error}); use another output folder") from error
    if {name: run.get(name) for name in _FORMAT} != _FORMAT:
        found = {name: run.get(name) for name in _FORMAT}
        raise RunFolderError(f"{path} should say {_FORMAT}, it says {found}; use another output folder")
    return run


def write_run(output: Path, status: Literal["running", "finished"], content: dict[str, Any]) -> None:
    """Replace the run document atomically and durably."""
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / f".{RUN_NAME}.tmp"
    with temporary.open("w") as file:
        json.dump({**_FORMAT, "status": status, **content}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(output / RUN_NAME)


def require_same_run(run: dict[str, Any], output: Path, settings: dict[str, Any], casks: list[dict[str, Any]]) -> None:
    """Raise RunFolderError where the folder's run was started with other settings or other casks."""
    # A setting that did not exist when the run was started had its default.
    unset = {name: value for name, value in TrainConfig.defaults().items() if name in settings}
    before, now = {**unset, **run["settings"], "casks": run["casks"]}, {**settings, "casks": casks}
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if differing:
        listing = "; ".join(f"{name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in differing)
        raise RunFolderError(
            f"{output} holds a run with other settings ({listing}). Use the same settings to continue it, or "
            "another output folder"
        )


def latest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint; one that a crash left unfinished lacks its last file and is passed over."""
    found = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in (output / CHECKPOINTS_NAME).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal() and (path / "trainer_state.json").is_file()
    ]
    return max(found)[1] if found else None


def choose_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint to continue from, as `config.resume` says, or None to start anew.

    Raises:
        RunFolderError: `never` in a used folder, or a path that is no complete checkpoint.
    """
    if config.resume == "auto":
        return latest_checkpoint(config.output)
    if config.resume == "never":
        if (config.output / RUN_NAME).exists():
            raise RunFolderError(f"{config.output} already holds a run; use --resume auto, or another output folder")
        return None
    path = Path(config.resume)
    if not (path / "trainer_state.json").is_file():
        raise RunFolderError(f"{path} is no complete checkpoint (it has no trainer_state.json)")
    return path
