"""`logitcask serve`: run the teacher service."""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitcask_schemas.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from logitcask_schemas.model_source import ModelSource
    from logitcask_schemas.record.hint_spec import HintSpec
    from logitcask_services.jobs.teacher import Role, Teacher
    from logitcask_services.settings import ServiceSettings

app = typer.Typer(help="Run the teacher service.", add_completion=False)


@app.command()
def serve(
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the teacher model, or a Hugging Face Hub id such as ORG/NAME or ORG/NAME@REVISION. With "
            "--engine openai only its tokenizer is read."
        ),
    ] = None,
    cask_root: Annotated[Path | None, typer.Option(help="Folder under which casks are made.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless there is an API key.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 8000.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="vllm (default), transformers, or openai (served elsewhere).")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute dtype; `auto` fits the machine.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Most tokens of a document.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with one Bearer key per line.")] = None,
    accept_teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Go on with casks of this teacher by another version of the engine (engine_version), or made before "
            "its configuration was recorded (unrecorded); may be repeated."
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the job database and the corpora.")] = None,
    templates: Annotated[
        Path | None, typer.Option(help="Folder with templates (*.md) and recipes (*.yaml) of your own.")
    ] = None,
    sandbox: Annotated[
        str | None,
        typer.Option(help="Command that runs programs of recipe `program` beyond arithmetic, from its standard input."),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of training runs and reports, whose curves the page shows.")
    ] = None,
    resident: Annotated[
        str | None,
        typer.Option(
            help="`one` (default): the teacher is loaded to capture or to write; `both`, where there is room."
        ),
    ] = None,
    remote_url: Annotated[
        str | None, typer.Option(help="With --engine openai: where the teacher is served, such as http://HOST:8000.")
    ] = None,
    remote_model: Annotated[str | None, typer.Option(help="Its name there, if more than one is served.")] = None,
    remote_key_file: Annotated[
        Path | None, typer.Option(help="File with the key for that server; or LOGITCASK_REMOTE_KEY.")
    ] = None,
    remote_dialect: Annotated[str | None, typer.Option(help="What serves it: vllm (default) or sglang.")] = None,
    remote_concurrency: Annotated[int | None, typer.Option(help="Requests in flight at most; 16.")] = None,
    remote_requests_per_minute: Annotated[float | None, typer.Option(help="Rate limit; none.")] = None,
) -> None:
    """Run the teacher service until it is told to stop. Every option can also be set as LOGITCASK_<NAME>."""
    from pydantic import ValidationError

    from logitcask_services.http.server import configure_logging
    from logitcask_services.http.server import serve as run
    from logitcask_services.settings import ServiceSettings

    options: dict[str, Any] = {
        name: value
        for name, value in {
            "teacher": teacher,
            "cask_root": cask_root,
            "host": host,
            "port": port,
            "engine": engine,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "api_key_file": api_key_file,
            "data_dir": data_dir,
            "templates": templates,
            "sandbox": sandbox,
            "runs": runs,
            "resident": resident,
            "accept_teacher": tuple(accept_teacher) if accept_teacher else None,
            "remote_url": remote_url,
            "remote_model": remote_model,
            "remote_key_file": remote_key_file,
            "remote_dialect": remote_dialect,
            "remote_concurrency": remote_concurrency,
            "remote_requests_per_minute": remote_requests_per_minute,
        }.items()
        if value is not None
    }
    try:
        settings = ServiceSettings(**options)
    except ValidationError as error:
        faults = "; ".join(
            f"{_option(fault['loc'])}: {_said(fault)}" if fault["loc"] else fault["msg"] for fault in error.errors()
        )
        raise OptionError(faults) from error
    source = require_teacher(settings)
    configure_logging()
    raise typer.Exit(
        run(
            settings,
            lambda role: load_teacher(settings, source, role),
            load_hinted=lambda hints: load_teacher(settings, source, "capture", hints),
            announce=lambda line: typer.echo(line, err=True),
        )
    )


def require_teacher(settings: "ServiceSettings") -> "ModelSource":
    """The teacher on this machine's disk, downloaded where it was not; a restart loads this one again.

    Raises ModelError or MissingExtraError where it cannot load, before anything is started.
    """
    from logitcask_schemas.model_source import find_model
    from logitcask_services.engines.model_folder import ModelFolder

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
    """The tokenizer, then what captures or what writes, or both. Raises ModelError.

    Args:
        settings: Where and how.
        source: The teacher.
        role: What it is loaded for, where not both are.
        hints: Whose layers its engine is to give.
    """
    from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
    from logitcask_services.engines.factory import load_engine, load_generator
    from logitcask_services.engines.hint_shape import HintShape
    from logitcask_services.engines.model_folder import ModelFolder
    from logitcask_services.jobs.teacher import Teacher

    tokenizer = HuggingFaceTokenizer.load(source.folder)
    remote = settings.engine == "openai"
    options = remote_options(settings) if remote else None
    # One that is served elsewhere takes no memory here: nothing is loaded by turns.
    configured = None if remote else HintShape.of_config(ModelFolder.open(source).config)
    teacher, both = Teacher(tokenizer=tokenizer, configured=configured), remote or settings.resident == "both"
    if both or role == "capture":
        engine = load_engine(
            settings.engine,
            source,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            options=options,
            hints=hints,
        )
        teacher = replace(teacher, engine=engine)
    if both or role == "generate":
        try:
            generator = load_generator(
                settings.engine, source, dtype=settings.dtype, max_model_len=settings.max_model_len, options=options
            )
        except BaseException:
            if teacher.engine is not None:
                teacher.engine.close()
            raise
        teacher = replace(teacher, generator=generator)
    return teacher


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


def _said(fault: Mapping[str, Any]) -> str:
    """What is wrong with an option, as a person would say it."""
    if fault["type"] == "missing":
        name = ".".join(map(str, fault["loc"]))
        return f"is needed, here or as LOGITCASK_{name.upper()}; `logitcask serve --help` lists all options"
    return str(fault["msg"])


def _option(location: tuple[int | str, ...]) -> str:
    return "--" + ".".join(str(part) for part in location).replace("_", "-")
