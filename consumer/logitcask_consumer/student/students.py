"""Where students come from: layers of the teacher, an existing model, or a fresh initialisation.

A student is written as one string:

    from-teacher:layers=10        10 layers of the teacher, evenly spread, the first and the last among them
    from-teacher:layers=0,4,9     exactly these layers of the teacher
    from-teacher:heads=6,mlp=1024 narrower layers of the teacher; see `from_teacher.TeacherParts`
    path of a folder              a Hugging Face model folder with weights
    ORGANISATION/NAME[@REVISION]  a repository of the Hugging Face Hub, downloaded or in its cache on this machine
    path of a config.json         that architecture, freshly initialised
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from logitcask_consumer.run_document import RUN_NAME, latest_checkpoint
from logitcask_consumer.student.adapters import ADAPTER_NAME, base_folder, with_adapters
from logitcask_consumer.student.fresh_model import fresh_model
from logitcask_consumer.student.from_teacher import FROM_TEACHER, StudentSpecError, TeacherParts, Texts
from logitcask_consumer.student.layer_proof import FAILURES, first_line
from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import find_model, is_hub_id
from logitcask_schemas.record.identity import tokenizer_fingerprint

_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """A parsed student; exactly one of the three sources is set."""

    text: str
    parts: TeacherParts | None = None
    """What to take from the teacher."""
    folder: Path | None = None
    config: Path | None = None
    revision: str | None = None
    """Commit of the Hub's repository that the folder was downloaded from."""

    @classmethod
    def parse(cls, text: str, *, revision: str | None = None) -> Self:
        """Parse a student's description.

        Args:
            text: one of the forms above.
            revision: commit that an interrupted run took a repository at, which goes on with it.

        Raises:
            StudentSpecError: it is none of these forms, or names what does not exist.
            ModelError: the Hub has no such repository, or cannot be reached.
        """
        if text.startswith(FROM_TEACHER):
            return cls(text=text, parts=TeacherParts.parse(text.removeprefix(FROM_TEACHER)))
        path = Path(text)
        if path.is_dir():
            return cls(text=text, folder=require_model_folder(path, what="student"))
        if path.is_file() and path.suffix == ".json":
            return cls(text=text, config=path)
        if is_hub_id(text):
            source = find_model(text if revision is None else f"{text.partition('@')[0]}@{revision}")
            folder = require_model_folder(source.folder, what="student")
            return cls(text=text, folder=folder, revision=source.revision)
        raise StudentSpecError(
            f"student {text!r} is neither `{FROM_TEACHER}layers=N` (or a list of layer numbers, or heads=, mlp=, "
            "hidden=), nor a folder with a model, nor a config.json file, nor ORGANISATION/NAME of a repository of the "
            "Hub"
        )

    def tokenizer_folder(self, teacher: Path | None) -> Path:
        """The folder whose tokenizer the student uses.

        Raises:
            StudentSpecError: the student has none of its own and no teacher folder was given.
        """
        own = self.folder or (self.config.parent if self.config else None)
        if own is not None and (own / "tokenizer_config.json").is_file():
            return own
        if teacher is None:
            raise StudentSpecError(
                f"student {self.text!r} brings no tokenizer; name the teacher's folder with --teacher"
            )
        return teacher

    def build(self, teacher: Path | None, *, seed: int, texts: Texts | None = None) -> Any:
        """The student as a transformers causal LM in float32.

        Args:
            teacher: the teacher's folder, where weights are taken from it.
            seed: of a fresh initialisation.
            texts: gives the text that heads and channels of the teacher are chosen by.

        Raises:
            StudentSpecError: the parts asked for do not exist, or the teacher's folder or the text is needed and
                missing.
            ModelError: a folder or config is not a causal LM.
        """
        if self.parts is not None:
            if teacher is None:
                raise StudentSpecError(
                    f"student {self.text!r} takes weights from the teacher; name its folder with --teacher"
                )
            whole = load_model(require_model_folder(teacher, what="teacher"))
            return self.parts.student(whole, teacher, texts)
        if self.folder is not None:
            return load_model(self.folder)
        assert self.config is not None
        return _fresh(self.config, seed)


def require_model_folder(folder: Path, *, what: str) -> Path:
    """The folder itself, after proving that it holds a model's config, or that of adapters.

    Raises:
        ModelError: it does not exist, holds no config.json, or belongs to a run that has not finished.
    """
    if not (folder / "config.json").is_file() and not (folder / ADAPTER_NAME).is_file():
        raise ModelError(_what_is_missing(folder, what, "config.json", "a Hugging Face model folder"))
    return folder


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """A causal LM from a folder, or adapters with their base; safetensors only, no code from the folder is run.

    Raises:
        ModelError: transformers cannot load it as a causal LM, or the base of adapters is not there.
    """
    require_model_folder(folder, what="model")
    if (folder / "config.json").is_file():
        return _loaded(folder, dtype)
    base = base_folder(folder)
    return with_adapters(_loaded(base, dtype), folder)


def _loaded(folder: Path, dtype: torch.dtype) -> Any:
    """A causal LM of a folder with a config.json."""
    from transformers import AutoModelForCausalLM

    from logitcask_consumer.student.sharded_state import has_shards, load_student

    if has_shards(folder):
        model = _fresh(folder / "config.json", seed=0)
        load_student(model, folder)
        return model.to(dtype).eval()
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except (OSError, *FAILURES) as error:
        raise ModelError(
            f"{folder} cannot be loaded as a causal LM with safetensors weights: {first_line(error)}"
        ) from error


def folder_with_tokenizer(folders: Sequence[Path], fingerprint: str) -> Path | None:
    """The first of some model folders whose tokenizer has a fingerprint; None where none has.

    Raises:
        ModelError: a folder holds no tokenizer that can be loaded.
    """
    return next((folder for folder in folders if tokenizer_fingerprint(load_tokenizer(folder)) == fingerprint), None)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        ModelError: there is none that transformers can load, or the folder belongs to a run that has not finished.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(_what_is_missing(folder, "tokenizer", _TOKENIZER_FILES[0], "a folder with a tokenizer"))
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, *FAILURES) as error:
        raise ModelError(f"{folder} holds no tokenizer that can be loaded: {first_line(error)}") from error


def _what_is_missing(folder: Path, what: str, file: str, needed: str) -> str:
    """One line: what a folder lacks, and what to do."""
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        return f"{what} folder {folder} {state}; {needed} is needed"
    if (folder / RUN_NAME).is_file():
        checkpoint = latest_checkpoint(folder)
        instead = f", or name its latest checkpoint {checkpoint}" if checkpoint else ""
        return (
            f"no {file} in {folder}: the run is unfinished. Give the `logitcask train` command that began it again, "
            f"which continues it{instead}"
        )
    return f"{what} folder {folder} has no {file}; {needed} is needed"


def _fresh(path: Path, seed: int) -> Any:
    """A freshly initialised model of the architecture in a config.json."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        torch.manual_seed(seed)
        return fresh_model(config)
    except (OSError, *FAILURES) as error:
        raise ModelError(
            f"{path} does not describe a causal LM that transformers knows: {first_line(error)}"
        ) from error
