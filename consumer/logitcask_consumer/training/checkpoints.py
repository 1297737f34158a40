"""Checkpoints of a run: which to continue from, and how a complete one gets its name."""

import json
import shutil
from pathlib import Path
from typing import Any

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.run_document import (
    PARTIAL_NAME,
    RUN_NAME,
    RunFolderError,
    checkpoints_in,
    latest_checkpoint,
    share_weights,
    sync,
)


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


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What transformers' trainer knew when it wrote a checkpoint.

    Raises:
        RunFolderError: it cannot be read.
    """
    path = checkpoint / "trainer_state.json"
    try:
        state: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); use another checkpoint (--resume)") from error
    return state


def require_evaluations_of(output: Path, checkpoint: Path) -> None:
    """Refuse a checkpoint of another run that was evaluated: its figures would count as those of the run in `output`.

    Raises:
        RunFolderError: it is such a one, or cannot be read.
    """
    if checkpoint.resolve().is_relative_to(output.resolve()):
        return
    if any(name.startswith("eval_") for line in read_state(checkpoint)["log_history"] for name in line):
        raise RunFolderError(
            f"{checkpoint} is of another run, whose evaluations would count as those of this one. Begin with it as the "
            "student (--student), or leave --eval-cask out"
        )


def steps_of(checkpoint: Path | None) -> int:
    """Optimizer steps that a checkpoint was made after; 0 of none."""
    return 0 if checkpoint is None else int(read_state(checkpoint)["global_step"])


def require_same_batch(checkpoint: Path, *, steps: int) -> None:
    """Raise RunFolderError where an epoch had another number of optimizer steps when a checkpoint was made.

    A run that was begun before its document held the batch shows its batch only there.
    """
    state = read_state(checkpoint)
    if not state["epoch"] or abs(state["global_step"] / state["epoch"] - steps) < 0.5:
        return
    raise RunFolderError(
        f"{checkpoint}: an epoch of this run has {round(state['global_step'] / state['epoch'])} steps, with this batch "
        f"it would have {steps}. Give the --batch-tokens, or the number of processes, that it was begun with"
    )


def partial_folder(folder: Path) -> Path:
    """Where something is written before it is published in a folder; empty."""
    partial = folder / PARTIAL_NAME
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def publish_checkpoint(partial: Path, *, keep: int | None, best: Path | None = None) -> None:
    """Give a complete checkpoint its name, durably, then remove all but the newest.

    Later ones go too: a run that was told to continue from an earlier checkpoint comes by them again.

    Args:
        partial: the checkpoint's folder, in the `partial_folder` of the checkpoints.
        keep: how many of the newest stay; None: all.
        best: one that stays, too.
    """
    folder = partial.parent.parent
    share_weights(partial)
    _sync_tree(partial)
    final = folder / partial.name
    if final.exists():
        final.rename(partial.with_name(f"old-{final.name}"))
    partial.rename(final)
    sync(folder)
    complete = checkpoints_in(folder)
    number = complete.index(final)
    oldest = 0 if keep is None else max(0, number + 1 - keep)
    for old in (*complete[:oldest], *complete[number + 1 :]):
        if old == best:
            continue
        # Renamed first: half of a checkpoint never has a checkpoint's name.
        old.rename(partial.with_name(f"old-{old.name}"))
    shutil.rmtree(partial.parent)


def publish_model(partial: Path, output: Path) -> None:
    """Move a complete model folder's files into the output folder, durably."""
    share_weights(partial)
    _sync_tree(partial)
    for path in sorted(partial.iterdir()):
        path.replace(output / path.name)
    partial.rmdir()
    sync(output)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


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
