"""`logitcask capture CORPUS`: a corpus into a cask without a service, whole or in parts, here or on a Ray cluster."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from logitcask_schemas.api.requests import MIN_LENGTH
from logitcask_schemas.cli.output import JsonOption
from logitcask_schemas.errors import ModelError, OptionError
from logitcask_schemas.terminal import EXIT_PROBLEMS, counted
from logitcask_services.cli.capture_options import with_capture_options
from logitcask_services.cli.capture_places import place_of, require_usable, write_errors
from logitcask_services.cli.connection import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcask_schemas.record.hint_spec import HintSpec
    from logitcask_services.engines.engine import Engine
    from logitcask_services.jobs.executors.chunk_orders import CaptureJob, WorkerPool
    from logitcask_services.jobs.executors.corpus_capture import Part
    from logitcask_services.jobs.loaded_teacher import TeacherFacts
    from logitcask_services.settings import ServiceSettings

Executor = Literal["local", "ray"]
_LONGEST_PART = 40
"""Characters; more are no numbers of parts, and would stand in a file's name."""


@with_capture_options
def capture_corpus(
    *,
    corpus: Annotated[
        Path, typer.Argument(help="JSON lines with `text`, `messages`, `input_ids`, or prompts; `-`: standard input.")
    ],
    teacher: Annotated[
        Path, typer.Option(help="Folder of the teacher model, or a Hugging Face Hub id such as ORG/NAME@REVISION.")
    ],
    cask: Annotated[
        str,
        typer.Option(
            help="Folder of the cask, or its URL in an object store, such as s3://BUCKET/NAME; made where absent. All "
            "parts share it."
        ),
    ],
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Capture the share I of N alone, counted from 0: 0/8 to 7/8. All of them, on any machines at any "
            "time, give the cask of a single run.",
        ),
    ] = None,
    capture: dict[str, Any],
    of_corpus: dict[str, Any],
    engine: Annotated[str | None, typer.Option(help="vllm (default), transformers, or openai.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute dtype; `auto` fits the machine.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Most tokens of a document, as the engine is loaded.")
    ] = None,
    engine_option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE of vLLM's EngineArgs, such as tensor_parallel_size=2; may be repeated."),
    ] = None,
    accept_teacher: Annotated[
        list[str] | None, typer.Option(help="Go on with a cask of this teacher in another version, as `serve` does.")
    ] = None,
    chunk_positions: Annotated[
        int | None, typer.Option(min=1, help="Positions of a chunk, which is a shard; the same for all parts.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for tokens; default: CASK.work beside the cask, which all parts see. Needed where the cask is "
            "a URL; there each machine may have its own."
        ),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(
            help="File for what is not captured; default: CASK.errors.jsonl (of a URL: WORK.errors.jsonl), of a part "
            "with its number."
        ),
    ] = None,
    single_writer: Annotated[
        bool,
        typer.Option(
            help="Of a URL in a store without conditional puts (not S3's kind): nothing else writes there, which you "
            "see to yourself."
        ),
    ] = False,
    executor: Annotated[
        Executor, typer.Option(help="local: engines of this machine, each on GPUs of its own; ray: on a Ray cluster.")
    ] = "local",
    teachers: Annotated[int | None, typer.Option(min=1, help="Engines at once; 1.")] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Of the cluster, such as HOST:6379; default: RAY_ADDRESS, one on this machine, or a new one."
        ),
    ] = None,
    gpus_per_teacher: Annotated[
        float | None, typer.Option(min=0, help="Default: what an engine is parallel over, where the cluster has GPUs.")
    ] = None,
    cpus_per_teacher: Annotated[float | None, typer.Option(min=0, help="What Ray reserves for each; 1.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Capture a corpus into a cask, without a service. What the cask holds already is not captured again.

    Exit code 3 where documents could not be captured, or --on-error is fail and lines are bad; 1 where the capture
    cannot go on: the same command goes on from what is published.
    """
    console = Console(stderr=True)
    share = _part(part)
    on_ray = {
        "--ray-address": ray_address,
        "--gpus-per-teacher": gpus_per_teacher,
        "--cpus-per-teacher": cpus_per_teacher,
    }
    if executor == "local" and (for_ray := [name for name, value in on_ray.items() if value is not None]):
        raise OptionError(f"{', '.join(for_ray)}: for a Ray cluster; add --executor ray, or leave it out")

    place, beside = place_of(cask, work, errors)
    work = (work or beside.with_name(f"{beside.name}.work")).absolute()
    errors = errors or beside.with_name(f"{beside.name}.errors{_suffix(share)}.jsonl")

    from logitcask_schemas.record.capture_spec import capture_spec
    from logitcask_services.cli.capture_run import CaptureRun
    from logitcask_services.cli.corpus_file import local_corpus
    from logitcask_services.cli.request_options import specified, values
    from logitcask_services.cli.serve import require_teachers
    from logitcask_services.cli.teams import parallel_of, require_ray
    from logitcask_services.corpora.prepare import DocumentLimits
    from logitcask_services.engines.hint_shape import resolve_hints
    from logitcask_services.jobs.executors.chunk_orders import CaptureJob
    from logitcask_services.jobs.executors.prepared_corpus import prepared_corpus
    from logitcask_services.jobs.extraction import planned_chunks
    from logitcask_services.settings import ServiceSettings

    settings = ServiceSettings(
        **specified(
            {
                "teacher": teacher.absolute() if teacher.is_dir() else teacher,
                "cask_root": beside.parent,
                "engine": engine,
                "dtype": dtype,
                "max_model_len": max_model_len,
                "engine_options": values(engine_option, "--engine-option") if engine_option else None,
                "accept_teacher": tuple(accept_teacher) if accept_teacher else None,
            }
        ),
        # What the environment says of a service's many engines is not meant here.
        engines=1,
        executor="local",
        ray_address=None,
        gpus_per_engine=None,
        cpus_per_engine=None,
    )
    if executor == "ray":
        require_ray("logitcask capture --executor ray", ray_address)
    elif teachers is not None and teachers > 1:
        require_many(settings, teachers)
    require_usable(place, work, errors, corpus, single_writer=single_writer)
    roster = require_teachers(settings)
    facts = roster.facts(roster.names[0]) or _facts_of_loaded(settings)
    spec = resolve_hints(capture_spec(**capture), facts.hint_shape)
    spec.require_vocabulary(facts.vocab_size)
    length = of_corpus.get("max_length") or facts.max_model_len
    if not MIN_LENGTH <= length <= facts.max_model_len:
        raise OptionError(
            f"--max-length {length}: expected {MIN_LENGTH} to {facts.max_model_len}, the teacher's context"
        )
    limits = DocumentLimits(
        vocab_size=facts.vocab_size,
        max_length=length,
        window=facts.max_model_len,
        loss_on=of_corpus.get("loss_on", "all"),
        overflow=of_corpus.get("overflow", "truncate"),
        max_line_bytes=settings.max_line_bytes,
    )
    with local_corpus(corpus, [], lambda line: say(console, line)) as local:
        with console.status("reading the corpus"):
            lines = _unpacked(local.path.absolute(), work)
            prepared = prepared_corpus(lines, work, facts, limits, say=lambda line: say(console, line))
        if of_corpus.get("on_error") == "fail" and prepared.counts.bad_lines:
            bad = counted(write_errors(errors, prepared.bad_lines()), "bad line")
            say(console, f"{bad} and --on-error is fail; see {errors}", style="red")
            raise typer.Exit(EXIT_PROBLEMS)
        job = CaptureJob(
            tokens=prepared.tokens_folder,
            cask=place,
            spec=spec,
            carrier=of_corpus.get("carrier", "arrow"),
            needs_extents=prepared.tokens.has_extents or limits.loss_on != "all",
            accept=settings.accept_teacher,
            single_writer=single_writer,
        )
        chunks = planned_chunks(prepared.tokens.offsets_D1, spec.hints, facts.hint_shape, chunk_positions)
        run = CaptureRun(console, prepared, job, facts, share, share.of(chunks), chunks)
        load = partial(load_engine_of, settings, spec.hints)
        on_cluster = {"address": ray_address, "num_gpus": gpus_per_teacher, "num_cpus": cpus_per_teacher}
        captured = run.capture(
            lambda: (
                _local_pool(settings, job, load, teachers or 1)
                if executor == "local"
                else _ray_pool(job, load, console, parallel=parallel_of(settings), **specified(on_cluster))
            ),
            teachers or 1,
        )
        document = run.report(captured, errors)
    if as_json:
        typer.echo(json.dumps(document))
    # A part may well have nothing to do; a corpus without a document is a mistake.
    raise typer.Exit(EXIT_PROBLEMS if captured.failures or not document["corpus_documents"] else 0)


def load_engine_of(settings: "ServiceSettings", hints: "HintSpec | None", devices: tuple[str, ...] = ()) -> "Engine":
    """The engine of these settings, in a process of its own, on whichever machine this is called."""
    from logitcask_services.cli.serve import engine_loader, require_teacher

    load = engine_loader(settings, require_teacher(settings), hints)
    return load(devices=devices) if devices else load()


def require_many(settings: "ServiceSettings", teachers: int) -> None:
    """Raise OptionError where there cannot be so many engines on this machine."""
    from logitcask_services.cli.teams import device_shares

    if settings.engine == "openai" or not settings.engine_process:
        raise OptionError(
            f"--teachers {teachers}: for engines that are loaded here, in processes of their own; leave it out. Of a "
            "teacher that is served elsewhere LOGITCASK_REMOTE_CONCURRENCY says how much goes on at once"
        )
    device_shares(settings, teachers, option="--teachers")


def _local_pool(
    settings: "ServiceSettings", job: "CaptureJob", load: "Callable[..., Engine]", teachers: int
) -> "WorkerPool":
    from logitcask_services.cli.teams import fleet_of
    from logitcask_services.jobs.executors.local_pool import LocalPool

    if teachers == 1:
        return LocalPool(job, load)
    return LocalPool(job, fleet_of(settings, teachers, load, option="--teachers", keeps=False).lend)


def _ray_pool(job: "CaptureJob", load: "Callable[[], Engine]", console: Console, **on_ray: Any) -> "WorkerPool":
    from logitcask_services.jobs.executors.ray_pool import RayOptions, RayPool

    return RayPool(job, load, RayOptions(**on_ray), say=lambda line: say(console, line))


def _part(text: str | None) -> "Part":
    from logitcask_services.jobs.executors.corpus_capture import Part

    if text is None:
        return Part()
    index, slash, parts = text.partition("/")
    are_numbers = slash and index.isdecimal() and parts.isdecimal() and len(text) <= _LONGEST_PART
    if not are_numbers or int(index) >= int(parts):
        raise OptionError(f"--part {text[:_LONGEST_PART]}: expected I/N with I from 0 to N - 1, such as 0/8 to 7/8")
    return Part(index=int(index), parts=int(parts))


def _suffix(part: "Part") -> str:
    return "" if part.is_whole else f"-{part.index}-of-{part.parts}"


def _facts_of_loaded(settings: "ServiceSettings") -> "TeacherFacts":
    """Of a teacher whose folder does not say enough: one that is served elsewhere is asked there."""
    from logitcask_services.cli.serve import load_teacher, require_teacher
    from logitcask_services.jobs.loaded_teacher import TeacherFacts

    if settings.engine != "openai":
        raise ModelError(f"the config.json of {settings.teacher} has no `vocab_size`; add it")
    loaded = load_teacher(settings, require_teacher(settings), "capture")
    try:
        return TeacherFacts.of(loaded, "")
    finally:
        for each in loaded.parts.values():
            each.close()


def _unpacked(corpus: Path, work: Path) -> Path:
    """The corpus as JSON lines: itself, or what is packed in it, kept in the work folder."""
    from logitcask_services.corpora.file_kind import SNIFFED_BYTES, packing_of
    from logitcask_services.corpora.packed import UnpackLimits
    from logitcask_services.corpora.uploads import CorpusStorage

    with corpus.open("rb") as file:
        if packing_of(file.read(SNIFFED_BYTES)) is None:
            return corpus
        file.seek(0)
        storage = CorpusStorage(work / "unpacked", UnpackLimits(max_bytes=1 << 62, max_ratio=float("inf")))
        with storage.receive() as upload:
            while block := file.read(1 << 20):
                upload.write(block)
            return storage.path(upload.finish().sha256)
