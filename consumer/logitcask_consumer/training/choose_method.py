"""Which method a training run has: by the loss of its casks, and a mixture where these are of several kinds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.cross_tokenizer.losses import ChunkObjective
from logitcask_consumer.cross_tokenizer.method import CrossTokenizerMethod
from logitcask_consumer.data import CaskGroup
from logitcask_consumer.hints import HintMismatchError
from logitcask_consumer.methods import Method, MixtureMethod, MixturePart, TokenMethod
from logitcask_consumer.student.loading import folder_with_tokenizer
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.hint_spec import HintSpec


def method_class(loss: str) -> type[TokenMethod] | type[CrossTokenizerMethod]:
    """The method that a loss belongs to."""
    return CrossTokenizerMethod if ChunkObjective.needs_chunks(loss) else TokenMethod


def choose_method(config: TrainConfig, groups: Sequence[CaskGroup], tokenizer: Any) -> Method:
    """The method of a run, not yet bound to its casks.

    Args:
        config: whose losses `check_config` of their methods has passed.
        groups: of the run's casks; those of one group have one method.
        tokenizer: the student's.

    Raises:
        ModelError: a teacher's folder holds no tokenizer that can be used.
        IdentityMismatchError: of several teachers' folders none has the tokenizer of a cask; or hints of several
            teachers are to be learned.
        HintMismatchError: casks have hints of different layers or codecs.
    """
    if len(groups) == 1:
        return _of_group(config, groups[0], tokenizer, part="")
    if config.hints is not None or config.target == "dense":
        _require_same_hints(groups)
    parts = [
        MixturePart(
            method=_of_group(config, group, tokenizer, part=group.label),
            weight=group.weight,
            loss=group.loss,
            label=group.label,
            num_casks=len(group.casks),
        )
        for group in groups
    ]
    return MixtureMethod(parts=tuple(parts))


def _require_same_hints(groups: Sequence[CaskGroup]) -> None:
    """One student has one set of projections, so its casks one kind of hints, of one teacher.

    Raises:
        IdentityMismatchError, HintMismatchError: they differ; names both.
    """
    first = groups[0].casks[0]
    for group in groups[1:]:
        other = group.casks[0]
        teachers = first.manifest.teacher.explain(other.manifest.teacher)
        if teachers:
            raise IdentityMismatchError(
                f"hints and target dense are of one teacher; {first.place} and {other.place} are of two ({teachers}). "
                "Train on the hints of one of them"
            )
        ours, theirs = first.manifest.capture.hints, other.manifest.capture.hints
        if ours != theirs:
            raise HintMismatchError(
                f"{first.place} has hints {_written(ours)}, {other.place} {_written(theirs)}: hints that are trained "
                "together have the same layers, kind and codec"
            )


def _written(spec: HintSpec | None) -> str:
    return "of nothing" if spec is None else str(spec.model_dump(mode="json"))


def _of_group(config: TrainConfig, group: CaskGroup, tokenizer: Any, *, part: str) -> Method:
    config = replace(config, loss=group.loss)
    if not ChunkObjective.needs_chunks(group.loss):
        return replace(TokenMethod.from_config(config, tokenizer), samples=group.samples)
    if config.other_teachers:
        config = replace(config, teacher=_teacher_of(config, group))
    return CrossTokenizerMethod.from_config(config, tokenizer, part=part)


def _teacher_of(config: TrainConfig, group: CaskGroup) -> Path:
    """The folder, among several, whose tokenizer is that of a group's casks."""
    folders = [folder for folder in (config.teacher, *config.other_teachers) if folder is not None]
    expected = group.casks[0].manifest.teacher.tokenizer_fingerprint
    if (teacher := folder_with_tokenizer(folders, expected)) is not None:
        return teacher
    raise IdentityMismatchError(
        f"{group.casks[0].path} was made with a tokenizer of fingerprint {expected}, the teachers named "
        f"({', '.join(map(str, folders))}) have others; name the folder of its teacher with --teacher too"
    )
