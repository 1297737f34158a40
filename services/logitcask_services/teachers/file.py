"""The operator's file of teachers, in TOML.

    [teachers.small]
    model = "models/small"                # a folder, relative to this file; or ORG/NAME@REVISION of the Hub
    adapter = "adapters/small"            # a LoRA adapter, merged into the model at the first start; none by default
    engine = "vllm"                       # default; or transformers
    dtype = "auto"                        # default
    max_model_len = 4096                  # default: what the model was made for
    [teachers.small.options]              # further arguments of vLLM's EngineArgs
    tensor_parallel_size = 2

    [students]                            # how students are loaded, see `serve --students`; keys as above
    engine = "vllm"

The first teacher is meant where a request names none.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from logitcask_schemas.api.requests import NAME_RULE
from logitcask_schemas.errors import LogitcaskError, OptionError
from logitcask_services.jobs.teacher_names import STUDENTS
from logitcask_services.teachers.engine_options import nearest, require_engine_options
from logitcask_services.teachers.entry import LocalEngine, TeacherEntry

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PINNED: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*@[\w./-]+")
_TABLES: Final = ("teachers", "students")


class TeachersFileError(LogitcaskError, ValueError):
    """The file of teachers cannot be used."""


class _Common(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: LocalEngine = "vllm"
    dtype: str = "auto"
    max_model_len: Annotated[int | None, Field(ge=2)] = None
    options: dict[str, JsonValue] = {}


class _Listed(_Common):
    model: Annotated[str, Field(min_length=1)]
    adapter: Annotated[str | None, Field(min_length=1)] = None


_Kind = TypeVar("_Kind", bound=_Common)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachersFile:
    """What the file says."""

    teachers: tuple[TeacherEntry, ...]
    """In its order, one at least."""
    students: TeacherEntry
    """How students are loaded."""


def read_teachers(path: Path) -> TeachersFile:
    """Read the file. Nothing is loaded, and no folder is looked into.

    Raises:
        TeachersFileError: it cannot be read, is no TOML, or says what cannot be; the message names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise TeachersFileError(f"the file of teachers {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise TeachersFileError(f"{path} is not TOML, or says a thing twice: {error}") from error
    return _Reader(path, text).whole(content)


@dataclass(frozen=True, slots=True)
class _Reader:
    path: Path
    text: str

    def whole(self, content: Mapping[str, Any]) -> TeachersFile:
        for name in sorted(content.keys() - set(_TABLES)):
            raise self._fault((), name, f"`{name}` is none of its tables; {nearest(name, _TABLES)}")
        listed = content.get("teachers")
        if not isinstance(listed, dict) or not listed:
            raise self._fault((), "teachers", "expected at least one teacher, a table such as [teachers.small]")
        entries = []
        for name, fields in listed.items():
            if not _NAME.fullmatch(name):
                raise self._fault(("teachers", name), None, f"the name {name!r} cannot be asked for: {NAME_RULE}")
            entries.append(self._teacher(name, fields))
        common = self._checked(_Common, ("students",), content.get("students", {}))
        return TeachersFile(
            teachers=tuple(entries),
            students=TeacherEntry(
                name=STUDENTS.rstrip("/"),
                model="",
                engine=common.engine,
                dtype=common.dtype,
                max_model_len=common.max_model_len,
                options=common.options,
            ),
        )

    def _teacher(self, name: str, fields: object) -> TeacherEntry:
        table = ("teachers", name)
        entry = self._checked(_Listed, table, fields)
        adapter = None if entry.adapter is None else self.path.parent / entry.adapter
        if adapter is not None and not adapter.is_dir():
            raise self._fault(table, "adapter", f"{adapter} is no folder; expected one, relative to this file")
        folder = self.path.parent / entry.model
        is_folder = folder.exists()
        if not is_folder and not _PINNED.fullmatch(entry.model):
            raise self._fault(
                table,
                "model",
                f"{folder} is not there, and {entry.model!r} is no model of the Hub with a pinned revision; expected a "
                "folder, relative to this file, or ORG/NAME@REVISION (best a commit)",
            )
        return TeacherEntry(
            name=name,
            model=str(folder) if is_folder else entry.model,
            adapter=adapter,
            engine=entry.engine,
            dtype=entry.dtype,
            max_model_len=entry.max_model_len,
            options=entry.options,
        )

    def _checked(self, kind: type[_Kind], table: tuple[str, ...], fields: object) -> _Kind:
        if not isinstance(fields, dict):
            raise self._fault(table[:-1], table[-1], f"expected a table [{'.'.join(table)}], got {fields!r:.80}")
        for name in sorted(fields.keys() - kind.model_fields.keys()):
            more = nearest(name, kind.model_fields.keys())
            raise self._fault(
                table, name, f"there is no `{name}`; {more} Arguments of vLLM go into [{'.'.join(table)}.options]"
            )
        try:
            entry = kind.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = str(first["loc"][0])
            got = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
            raise self._fault(table, key, f"`{key}`: {first['msg']}{got}") from error
        where = f"{self._place(table, None)}: [{'.'.join(table)}.options]"
        try:
            require_engine_options(entry.engine, entry.options, where=where)
        except OptionError as error:
            raise TeachersFileError(str(error)) from error
        return entry

    def _fault(self, table: tuple[str, ...], key: str | None, message: str) -> TeachersFileError:
        shown = f"[{'.'.join(table)}] " if table else ""
        return TeachersFileError(f"{self._place(table, key)}: {shown}{message}")

    def _place(self, table: tuple[str, ...], key: str | None) -> str:
        """The file, with the line where that can be told (a table may be written in other ways)."""
        line = self._line(table, key)
        return str(self.path) if line is None else f"{self.path}, line {line}"

    def _line(self, table: tuple[str, ...], key: str | None) -> int | None:
        wanted, current, header = list(table), list[str](), None
        for number, content in enumerate(self.text.splitlines(), start=1):
            stripped = content.strip()
            if heading := re.fullmatch(r"\[([^\[\]]+)\]\s*(#.*)?", stripped):
                current = [part.strip().strip("\"'") for part in heading[1].split(".")]
                if current[: len(wanted)] == wanted and header is None:
                    header = number
                if key is not None and current[: len(wanted) + 1] == [*wanted, key]:
                    return number
            elif key is not None and current == wanted and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*[.=]", stripped):
                return number
        return header if wanted else None
