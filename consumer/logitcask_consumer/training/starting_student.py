"""The student that a run begins with, or goes on from, as far as training changes it; the text that it is chosen by."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.run_document import INITIAL_NAME
from logitcask_consumer.student.adapters import LoraSpec, freeze_head, require_mergeable
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.quantization import (
    fake_quantize,
    fitting_layers,
    read_scheme,
    require_unrounded,
)
from logitcask_consumer.student.students import StudentSpec
from logitcask_schemas.cask import Cask
from logitcask_schemas.record.identity import tokenizer_fingerprint
from logitcask_schemas.terminal import counted


def starting_student(
    config: TrainConfig,
    spec: StudentSpec,
    checkpoint: Path | None,
    casks: Sequence[Cask],
    tokenizer: Any,
    say: Callable[[str], None] = lambda message: None,
) -> Any:
    """The student as training starts, or continues, from; of adapters the base, which no checkpoint holds.

    Args:
        config: the run.
        spec: its student.
        checkpoint: which it goes on from; None where it begins.
        casks: of the run; by their text the teacher's layers, heads and channels are chosen.
        tokenizer: the student's.
        say: is told before the teacher reads text, which may take minutes, and which layers that chose.

    Raises:
        ModelError: it cannot be made, or loaded; or it is to be quantised, and is already.
        QuantizationError: its layers do not fit the scheme.
    """
    if config.quantize is None:
        return _plain_student(config, spec, checkpoint, casks, tokenizer, say)
    origin = spec.origin(config.teacher)
    if checkpoint is None and origin is not None:
        require_unrounded(origin, what="student" if spec.parts is None else "teacher")
    model = _plain_student(config, spec, checkpoint, casks, tokenizer, say)
    fitting_layers(model, read_scheme(config.quantize))
    return model


def _plain_student(
    config: TrainConfig,
    spec: StudentSpec,
    checkpoint: Path | None,
    casks: Sequence[Cask],
    tokenizer: Any,
    say: Callable[[str], None],
) -> Any:
    """As `starting_student`, whatever becomes of its layers."""
    if checkpoint is not None:
        folder = checkpoint if config.lora is None else spec.first_folder or config.output / INITIAL_NAME
        return load_model(folder)
    fingerprint = tokenizer_fingerprint(tokenizer)
    same_tokenizer = [cask for cask in casks if cask.manifest.teacher.tokenizer_fingerprint == fingerprint]

    def texts(tokens: int) -> list[NDArray[Any]]:
        chosen = cask_texts(same_tokenizer, tokens, longest=config.seq_len)
        say(
            f"the teacher reads {counted(sum(map(len, chosen)), 'token')} of the casks' text, by which the parts "
            "that are kept of it are chosen; tokens=N in --student sets how many"
        )
        return chosen

    return spec.build(config.teacher, seed=config.seed, texts=texts, say=say)


def trained_part(model: Any, config: TrainConfig, spec: StudentSpec) -> Any:
    """The student with its adapters, where it is to have some, a head that is not trained, or quantised layers.

    Args:
        model: from `starting_student`, saved where it exists nowhere else.
        config: the run.
        spec: its student.

    Raises:
        AdapterError: nothing would be left to train, or the adapters could not be merged.
        QuantizationError: its layers do not fit the scheme.
        MissingExtraError: peft, or torchao, is not installed.
        ModelError: the model has no such layers.
    """
    if config.lora is not None:
        base = spec.first_folder or config.output / INITIAL_NAME
        model = LoraSpec.parse(config.lora).applied(model, base=base, seed=config.seed)
        if config.merge:
            require_mergeable(model)
    if config.freeze_head:
        freeze_head(model)
    if config.quantize is not None:
        fake_quantize(model, read_scheme(config.quantize))
    return model


def cask_texts(casks: Sequence[Cask], tokens: int, *, longest: int) -> list[NDArray[Any]]:
    """Token ids of documents that are evenly spread over casks, each from its beginning.

    Of a cask in an object store the shards that hold them are fetched.

    Args:
        casks: those whose documents are meant.
        tokens: about how many in all, and no fewer where the casks have them.
        longest: most tokens of a document; the rest of it is left out.

    Returns:
        One array [L] for each document, in the order of the casks.

    Raises:
        CaskCorruptionError, CaskNotFoundError: a shard is damaged or gone.
    """
    lengths_D = np.concatenate([np.zeros(0, np.int64), *(cask.document_lengths() for cask in casks)])
    lengths_D = np.minimum(lengths_D, longest)
    total = len(lengths_D)
    if not total:
        return []
    count = min(total, int(np.ceil(tokens / lengths_D.mean())))
    while True:
        chosen = np.unique(np.linspace(0, total - 1, count).round().astype(np.int64))
        if count == total or lengths_D[chosen].sum() >= tokens:
            break
        count = min(total, count + max(1, count // 8))
    first_C = np.cumsum([0, *(len(cask) for cask in casks)])
    return [_document(casks, first_C, int(number), int(lengths_D[number])) for number in chosen]


def _document(casks: Sequence[Cask], first_C: NDArray[np.int64], number: int, length: int) -> NDArray[Any]:
    """The beginning of a document, by its number over all casks."""
    at = int(np.searchsorted(first_C, number, side="right")) - 1
    return casks[at].read(number - int(first_C[at])).token_ids_L[:length]
