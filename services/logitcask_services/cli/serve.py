"""`logitcask serve`: run the teacher service."""

import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from logitcask_schemas.errors import MissingExtraError, OptionError
from logitcask_services.cli.setting_options import option_of, parameters, settings_given

if TYPE_CHECKING:
    from logitcask_schemas.model_source import ModelSource
    from logitcask_schemas.record.hint_spec import HintSpec
    from logitcask_services.engines.engine import Engine
    from logitcask_services.engines.generator import Generator
    from logitcask_services.jobs.loaded_teacher import Role, Teacher
    from logitcask_services.jobs.roster import Roster
    from logitcask_services.settings import ServiceSettings

app = typer.Typer(help="Run the teacher service.", add_completion=False)


def serve(**options: Any) -> None:
    """Run the teacher service until it is told to stop. Every option can also be set as LOGITCASK_<NAME>."""
    from pydantic import ValidationError

    from logitcask_schemas.cli.tokenizers import leave_torch_out
    from logitcask_services import tracing
    from logitcask_services.http.server import configure_logging
    from logitcask_services.http.server import serve as run
    from logitcask_services.settings import ServiceSettings

    try:
        settings = ServiceSettings(**settings_given(options))
    except ValidationError as error:
        faults = "; ".join(
            f"{_option(fault['loc'])}: {_said(fault)}" if fault["loc"] else _said(fault) for fault in error.errors()
        )
        raise OptionError(faults) from error
    if settings.engine_process:
        leave_torch_out()
    roster = require_teachers(settings)
    configure_logging(settings.log_format)
    tracing.configure()
    announce, complain = _speakers(settings.log_format)
    raise typer.Exit(run(settings, roster, announce=announce, complain=complain))


serve.__signature__ = inspect.Signature(parameters())  # type: ignore[attr-defined] # which Typer reads
app.command()(serve)


def require_teachers(settings: "ServiceSettings") -> "Roster":
    """All that may be loaded, each on this machine's disk; a restart loads these again.

    Raises ModelError, MissingExtraError, OptionError, TeachersFileError or CaptureStoppedError (a Ray cluster that does
    not answer) where one cannot be, before anything starts.
    """
    from logitcask_services.cli.teams import require_team
    from logitcask_services.jobs.teacher_names import STUDENTS, name_of_model
    from logitcask_services.teachers.adapters import merged_teacher
    from logitcask_services.teachers.engine_options import require_engine_options
    from logitcask_services.teachers.entry import TeacherEntry
    from logitcask_services.teachers.file import read_teachers
    from logitcask_services.teachers.listed import ListedTeachers
    from logitcask_services.teachers.students import StudentFolders

    def settings_of(entry: TeacherEntry) -> "ServiceSettings":
        return settings.model_copy(
            update={
                "teacher": Path(entry.model),
                "engine": entry.engine,
                "dtype": entry.dtype,
                "max_model_len": entry.max_model_len,
                "engine_options": entry.options,
                "resident": "one" if entry.name == students.name else settings.resident,  # students only write
            }
        )

    def load(entry: TeacherEntry, source: "ModelSource", role: "Role", hints: "HintSpec | None") -> "Teacher":
        return load_teacher(settings_of(entry), source, role, hints)

    if settings.teachers is not None:
        listed = read_teachers(settings.teachers)
        entries, students = listed.teachers, listed.students
    else:
        require_engine_options(settings.engine, settings.engine_options, where="--engine-option")
        entries = (
            TeacherEntry(
                name=name_of_model(settings.teacher),
                model=str(settings.teacher),
                engine=settings.engine,
                dtype=settings.dtype,
                max_model_len=settings.max_model_len,
                options=settings.engine_options,
            ),
        )
        # A student is another model: what was chosen for the teacher's size and weights need not be right for it.
        students = TeacherEntry(
            name=STUDENTS.rstrip("/"), model="", engine="vllm" if settings.engine == "openai" else settings.engine
        )

    def source_of(entry: TeacherEntry) -> "ModelSource":
        source = require_teacher(settings_of(entry))
        return source if entry.adapter is None else merged_teacher(source, entry.adapter, settings.state_dir / "merged")

    for entry in entries:
        require_team(settings_of(entry))
    folders = None if settings.students is None else StudentFolders(settings.students)
    return ListedTeachers([(entry, source_of(entry)) for entry in entries], load, folders, students)


def require_teacher(settings: "ServiceSettings") -> "ModelSource":
    """The teacher on this machine's disk, downloaded where it was not; a restart loads this one again.

    Raises ModelError or MissingExtraError where it cannot load, before anything is started.
    """
    from logitcask_schemas.model_source import find_model
    from logitcask_services.engines.model_folder import ModelFolder

    assert settings.teacher is not None  # with a file of them, each is asked for by itself
    if settings.engine == "openai":
        remote_options(settings)
        return find_model(settings.teacher, weights=False)
    source = find_model(settings.teacher)
    ModelFolder.open(source)
    if importlib.util.find_spec(settings.engine) is None:
        raise MissingExtraError("logitcask serve", "teacher", settings.engine)
    return source


def load_teacher(
    settings: "ServiceSettings", source: "ModelSource", role: "Role", hints: "HintSpec | None" = None
) -> "Teacher":
    """The tokenizer, then what captures or what writes, or both.

    Args:
        settings: Where and how.
        source: The teacher.
        role: What it is loaded for; where both are, what it must be able to do.
        hints: Whose layers its engine is to give.

    Raises:
        ModelError: It cannot be loaded; RoleError: not for this role.
    """
    from logitcask_services.cli.teams import load_team
    from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
    from logitcask_services.engines import factory
    from logitcask_services.engines.hint_shape import HintShape
    from logitcask_services.engines.model_folder import ModelFolder
    from logitcask_services.engines.process import door
    from logitcask_services.jobs.loaded_teacher import Teacher

    tokenizer = HuggingFaceTokenizer.load(source.folder)
    remote = settings.engine == "openai"
    options = _options_of(settings)
    # One that is served elsewhere takes no memory here: nothing is loaded by turns.
    configured = None if remote else HintShape.of_config(ModelFolder.open(source).config)
    teacher, both = Teacher(tokenizer=tokenizer, configured=configured), remote or settings.resident == "both"
    load_generator: Callable[..., Generator] = partial(factory.load_generator, settings.engine)
    if settings.engine_process and settings.engine != "openai":  # which has nothing here to die of
        load_generator = partial(door.start_generator, settings.engine)
    how: dict[str, Any] = {"dtype": settings.dtype, "max_model_len": settings.max_model_len, "options": options}
    try:
        if both or role == "capture":
            with _may_lack("capture", needed=role):
                engine, team = load_team(settings, source, hints, engine_loader(settings, source, hints))
                teacher = replace(teacher, engine=engine, team=team)
        if both or role == "generate":
            with _may_lack("generate", needed=role):
                teacher = replace(teacher, generator=load_generator(source, **how))
    except BaseException:
        if teacher.engine is not None:
            teacher.engine.close()
        raise
    return teacher


def engine_loader(
    settings: "ServiceSettings", source: "ModelSource", hints: "HintSpec | None"
) -> "Callable[..., Engine]":
    """Loads what captures; in a process of its own it may be told `devices`. The function raises as `load_engine`."""
    from logitcask_services.engines import factory
    from logitcask_services.engines.process import door

    load: Callable[..., Engine] = partial(factory.load_engine, settings.engine)
    if settings.engine_process and settings.engine != "openai":
        load = partial(door.start_engine, settings.engine)
    return partial(
        load,
        source,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        options=_options_of(settings),
        hints=hints,
    )


def _options_of(settings: "ServiceSettings") -> dict[str, Any]:
    if settings.engine == "openai":
        return remote_options(settings)
    if settings.engine_metrics and settings.engine == "vllm":
        return {"disable_log_stats": False, **settings.engine_options}
    return dict(settings.engine_options)


@contextmanager
def _may_lack(part: "Role", *, needed: "Role") -> Iterator[None]:
    """While the block runs, a part of the teacher is loaded, which it may lack where the other one is needed."""
    from logitcask_services.engines.engine import RoleError

    try:
        yield
    except RoleError as error:
        if part == needed:
            raise
        logging.getLogger(__name__).warning("the teacher is served without this: %s", error)


def remote_options(settings: "ServiceSettings") -> dict[str, Any]:
    """Where a teacher is served elsewhere, as `load_engine` takes it. Raises SettingsError, ServerUrlError."""
    from logitcask_schemas.api.server_url import service_url

    assert settings.remote_url is not None  # the settings say so
    return {
        "url": service_url(settings.remote_url),
        "model": settings.remote_model,
        "key": settings.key_of_remote(),
        "dialect": settings.remote_dialect,
        "concurrency": settings.remote_concurrency,
        "requests_per_minute": settings.remote_requests_per_minute,
        "timeout_seconds": settings.remote_timeout_seconds,
        "patience_seconds": settings.remote_patience_seconds,
    }


def _speakers(log_format: str) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """What tells the address, and why the service ended: plain lines for people, lines of the log for programs."""
    if log_format == "json":
        logger = logging.getLogger(__name__)
        return logger.info, logger.error

    def plainly(line: str) -> None:
        typer.echo(line, err=True)

    return plainly, plainly


def _said(fault: Mapping[str, Any]) -> str:
    """What is wrong with an option, as a person would say it."""
    if fault["type"] == "missing":
        name = ".".join(map(str, fault["loc"]))
        return f"is needed, here or as LOGITCASK_{name.upper()}; `logitcask serve --help` lists all options"
    if fault["type"] == "value_error":  # one of the settings' own sentences, without pydantic's words before it
        return str(fault["ctx"]["error"])
    return str(fault["msg"])


def _option(location: tuple[int | str, ...]) -> str:
    return ".".join((option_of(str(location[0])), *map(str, location[1:])))
