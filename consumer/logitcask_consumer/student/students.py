"""Where students come from: layers of the teacher, an existing model, or a fresh initialisation.

A student is written as one string:

    from-teacher:layers=10        10 layers of the teacher, evenly spread, the first and the last among them
    from-teacher:layers=0,4,9     exactly these layers of the teacher
    from-teacher:heads=6,mlp=1024 narrower layers of the teacher; see `from_teacher.TeacherParts`
    path of a folder              a Hugging Face model folder with weights, or with adapters, merged into their base
    ORGANISATION/NAME[@REVISION]  a repository of the Hugging Face Hub, downloaded or in its cache on this machine
    path of a config.json         that architecture, freshly initialised
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from logitcask_consumer.student.adapters import holds_adapters_alone
from logitcask_consumer.student.from_teacher import FROM_TEACHER, StudentSpecError, TeacherParts, Texts
from logitcask_consumer.student.loading import load_whole, model_of_config, require_model_folder
from logitcask_consumer.student.quantization import require_unquantized
from logitcask_schemas.model_source import find_model, is_hub_id


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
            ModelError: the Hub has no such repository, or cannot be reached; the student is quantised already.
        """
        if text.startswith(FROM_TEACHER):
            return cls(text=text, parts=TeacherParts.parse(text.removeprefix(FROM_TEACHER)))
        path = Path(text)
        if path.is_dir():
            return cls(text=text, folder=_whole(path, "student"))
        if path.is_file() and path.suffix == ".json":
            return cls(text=text, config=path)
        if is_hub_id(text):
            source = find_model(text if revision is None else f"{text.partition('@')[0]}@{revision}")
            return cls(text=text, folder=_whole(source.folder, "student"), revision=source.revision)
        raise StudentSpecError(
            f"student {text!r} is neither `{FROM_TEACHER}layers=N` (or a list of layer numbers, or heads=, mlp=, "
            "hidden=), nor a folder with a model, nor a config.json file, nor ORGANISATION/NAME of a repository of the "
            "Hub"
        )

    def origin(self, teacher: Path | None) -> Path | None:
        """The folder that the student's first weights come from; None of a fresh one."""
        return self.folder if self.parts is None else teacher

    @property
    def first_folder(self) -> Path | None:
        """The folder that holds the student as it is before training; None where it is made, and kept by the run."""
        return None if self.folder is not None and holds_adapters_alone(self.folder) else self.folder

    def tokenizer_folder(self, teacher: Path | None) -> Path:
        """The folder whose tokenizer the student uses.

        Raises:
            StudentSpecError: the student has none of its own and no teacher folder was given.
        """
        folder = self.folder or (self.config.parent if self.config else None)
        if folder is not None and (folder / "tokenizer_config.json").is_file():
            return folder
        if teacher is None:
            raise StudentSpecError(
                f"student {self.text!r} brings no tokenizer; name the teacher's folder with --teacher"
            )
        return teacher

    def build(
        self,
        teacher: Path | None,
        *,
        seed: int,
        texts: Texts | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> Any:
        """The student as a transformers causal LM in float32.

        Args:
            teacher: the teacher's folder, where weights are taken from it.
            seed: of a fresh initialisation.
            texts: gives the text that layers, heads and channels of the teacher are chosen by.
            say: is told which layers were chosen by text.

        Raises:
            StudentSpecError: the parts asked for do not exist, or the teacher's folder or the text is needed and
                missing.
            ModelError: a folder or config is not a causal LM, or the teacher is quantised.
            AdapterError: the folder's adapters cannot be merged into their base.
        """
        if self.parts is not None:
            if teacher is None:
                raise StudentSpecError(
                    f"student {self.text!r} takes weights from the teacher; name its folder with --teacher"
                )
            whole = load_whole(_whole(teacher, "teacher"), what="teacher")
            return self.parts.student(whole, teacher, texts, say)
        if self.folder is not None:
            return load_whole(self.folder, what="student")
        assert self.config is not None
        return model_of_config(self.config, seed)


def _whole(folder: Path, what: str) -> Path:
    """The folder of a model whose weights are numbers that can be trained."""
    require_unquantized(require_model_folder(folder, what=what), what=what)
    return folder
