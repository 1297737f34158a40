"""The student that a run begins with, or goes on from, as far as training changes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data.cask_texts import cask_texts
from logitcask_consumer.run_document import INITIAL_NAME
from logitcask_consumer.student.adapters import LoraSpec, freeze_head, require_mergeable
from logitcask_consumer.student.students import StudentSpec, load_model
from logitcask_schemas.cask import Cask
from logitcask_schemas.record.identity import tokenizer_fingerprint


def starting_student(
    config: TrainConfig, spec: StudentSpec, checkpoint: Path | None, casks: Sequence[Cask], tokenizer: Any
) -> Any:
    """The student as training starts, or continues, from; of adapters the base, which no checkpoint holds.

    Args:
        config: the run.
        spec: its student.
        checkpoint: which it goes on from; None where it begins.
        casks: of the run; by their text the teacher's heads and channels are chosen.
        tokenizer: the student's.

    Raises:
        ModelError: it cannot be made, or loaded.
    """
    if checkpoint is not None:
        folder = checkpoint if config.lora is None else spec.folder or config.output / INITIAL_NAME
        return load_model(folder)
    fingerprint = tokenizer_fingerprint(tokenizer)
    own = [cask for cask in casks if cask.manifest.teacher.tokenizer_fingerprint == fingerprint]

    def texts(tokens: int) -> list[NDArray[Any]]:
        return cask_texts(own, tokens, longest=config.seq_len)

    return spec.build(config.teacher, seed=config.seed, texts=texts)


def trained_part(model: Any, config: TrainConfig, spec: StudentSpec) -> Any:
    """The student with its adapters, where it is to have some, or a head that is not trained.

    Args:
        model: from `starting_student`, saved where it exists nowhere else.
        config: the run.
        spec: its student.

    Raises:
        AdapterError: nothing would be left to train, or the adapters could not be merged.
        MissingExtraError: peft is not installed.
        ModelError: the model has no such layers.
    """
    if config.lora is not None:
        base = spec.folder or config.output / INITIAL_NAME
        model = LoraSpec.parse(config.lora).applied(model, base=base, seed=config.seed)
        if config.merge:
            require_mergeable(model)
    if config.freeze_head:
        freeze_head(model)
    return model
