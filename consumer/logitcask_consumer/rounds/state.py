"""What a run in rounds has come to: one file, rounds.json, replaced atomically whenever something is safe."""

import json
import secrets
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from logitcask_consumer.run_document import RunFolderError, explained_writes, replace_file
from logitcask_schemas.record.identity import TeacherIdentity

STATE_NAME: Final = "rounds.json"
_ADVICE: Final = "Free space, or mend what is wrong, and give the same command again; no round is lost"

Stage = Literal["sampling", "sampled", "captured", "trained"]
STAGES: Final[tuple[Stage, ...]] = ("sampling", "sampled", "captured", "trained")


class SampledCounts(BaseModel):
    """What the student wrote in a round."""

    model_config = ConfigDict(extra="forbid")

    texts: int
    """All that it wrote."""
    tokens: int
    """Of these, sampled ones."""
    kept: int
    """That go to the teacher."""
    empty: int
    """Without a token before the end; left out."""
    looping: int
    """That repeat themselves."""
    looping_left_out: int
    """Of these, more than `max_looping` allows; left out."""
    duplicates: int
    """Written twice; left out."""
    unfinished: int
    """Cut at `max_new_tokens`, of the kept ones."""
    by_teacher: int = 0
    """Of all, those that the teacher wrote in the student's place."""


class RoundState(BaseModel):
    """One round."""

    model_config = ConfigDict(extra="forbid")

    number: int = Field(ge=1)
    stage: Stage = "sampling"
    """What is done: `sampling` nothing yet, `sampled` the texts are written."""
    share: float = Field(ge=0.0, le=1.0)
    """Lambda."""
    sampled: SampledCounts | None = None
    """None where lambda is 0."""
    writing: int = 0
    """How often the service's texts were refused as another student's, and asked for anew."""
    attempt: int = 0
    """How often an extraction was begun: a cancelled one is not taken up again."""
    extraction: str | None = None
    cask: str | None = None
    """Where its cask lies."""
    documents: int | None = None
    """In that cask."""
    held_out: dict[str, float] | None = None
    """After the phase, means over positions: `kl`, `nll`, `acceptance` as far as the cask has them."""
    seconds: dict[str, float] = {}
    """By stage, over all calls."""


class RunState(BaseModel):
    """A run in rounds."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["logitcask-rounds"] = "logitcask-rounds"
    version: Literal[1] = 1
    run: str
    """Name and random number: no other run has its keys at the service."""
    status: Literal["running", "finished"] = "running"
    settings: dict[str, Any]
    teacher: TeacherIdentity | None = None
    """Of the first cask; all others must have the same."""
    held_out: dict[str, float] | None = None
    """Of the student before the first phase."""
    rounds: list[RoundState] = []

    @model_validator(mode="after")
    def _rounds_follow_each_other(self) -> Self:
        """Refuse what no run writes: a phase would be left out, or trained on another round's texts."""
        for number, own in enumerate(self.rounds, start=1):
            if own.number != number:
                raise ValueError(f"round {number} says that it is round {own.number}")
            if own.stage != "trained" and (number < len(self.rounds) or self.status == "finished"):
                raise ValueError(f"round {number} is {own.stage}, and what follows it is done")
            if own.stage in ("captured", "trained") and own.share > 0 and own.cask is None:
                raise ValueError(f"round {number} is {own.stage} and has no cask")
        return self

    @classmethod
    def new(cls, name: str, settings: dict[str, Any]) -> "RunState":
        """A run that begins."""
        return cls(run=f"{name}-{secrets.token_hex(4)}", settings=settings)

    def round(self, number: int, share: float) -> RoundState:
        """A round, which begins with this lambda where it has not begun."""
        if number > len(self.rounds):
            self.rounds.append(RoundState(number=number, share=share))
        return self.rounds[number - 1]


def read_state(output: Path) -> RunState | None:
    """The state of the run in a folder; None where there is none.

    Raises:
        RunFolderError: the file is damaged, or of another version.
    """
    path = output / STATE_NAME
    if not path.exists():
        return None
    try:
        return RunState.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RunFolderError(
            f"{path} is not the state of a run in rounds ({reason}); use another output folder, or bring the file back"
        ) from error


def write_state(output: Path, state: RunState) -> None:
    """Replace the state, atomically and durably.

    Raises:
        RunWriteError: it cannot be written.
    """
    with explained_writes(output / STATE_NAME, _ADVICE):
        replace_file(output / STATE_NAME, json.dumps(state.model_dump(mode="json"), indent=2) + "\n")


def require_same_settings(state: RunState, output: Path, settings: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise RunFolderError where a run was begun with other settings.

    Args:
        state: of the run.
        output: its folder, for messages.
        settings: those of this call.
        defaults: what a setting was that did not exist when the run was begun.
    """
    before = {name: value for name, value in defaults.items() if name in settings} | state.settings
    names = sorted(before.keys() | settings.keys())
    if differing := [name for name in names if before.get(name) != settings.get(name)]:
        listing = "; ".join(f"{name}: {before.get(name)!r} there, {settings.get(name)!r} now" for name in differing)
        raise RunFolderError(
            f"{output} holds a run in rounds with other settings ({listing}). Use the same settings to continue it, or "
            "another output folder"
        )
