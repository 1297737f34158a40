"""`logitcask fidelity`: what lies between a teacher and the records of it, in nats."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.table import Table

from logitcask_schemas.api.requests import MIN_LENGTH
from logitcask_schemas.cli.output import JsonOption, console
from logitcask_schemas.errors import ModelError, OptionError
from logitcask_schemas.terminal import counted
from logitcask_services.cli import capture_options as options
from logitcask_services.cli.connection import say
from logitcask_services.cli.request_options import specified, values
from logitcask_services.engines.dtypes import COMPUTE_DTYPES

if TYPE_CHECKING:
    from logitcask_services.engines.model_folder import ModelFolder
    from logitcask_services.fidelity import EnginePasses, FidelityReport, Sample
    from logitcask_services.jobs.loaded_teacher import TeacherFacts

EngineName = Literal["vllm", "transformers"]
_LONGEST: Final = 1024
_IN_COMPANY: Final = 4
"""Documents that the engine of transformers reads in one pass: another batch shape than each alone."""

app = typer.Typer(add_completion=False)


@app.command()
def fidelity(
    teacher: Annotated[
        Path, typer.Option(help="Folder of the teacher model, or a Hugging Face Hub id such as ORG/NAME@REVISION.")
    ],
    cask: Annotated[str | None, typer.Option(help="The cask, a folder or URL: documents from all over it.")] = None,
    sample: Annotated[
        Path | None,
        typer.Option(help="Instead: JSON lines from all over a corpus, which are captured here.", dir_okay=False),
    ] = None,
    positions: Annotated[int, typer.Option(help="How much to look at.", min=64)] = 4096,
    window: Annotated[
        list[int] | None,
        typer.Option(min=MIN_LENGTH, help="Also: what documents lose that are cut to so many tokens; may be repeated."),
    ] = None,
    mode: options.ModeOption = None,
    tau: options.TauOption = None,
    head_max: options.HeadMaxOption = None,
    tail_max: options.TailMaxOption = None,
    k: options.KOption = None,
    draws: options.DrawsOption = None,
    sampler: options.SamplerOption = None,
    pin: options.PinOption = None,
    seed: options.SeedOption = None,
    codec: options.CodecOption = None,
    max_length: Annotated[
        int | None, typer.Option(min=MIN_LENGTH, help=f"Of --sample: tokens of a document that are used; {_LONGEST}.")
    ] = None,
    engine: Annotated[
        EngineName | None, typer.Option(help="Default: the one that made the cask; of --sample: vllm.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Compute dtype; default: the cask's, or what fits the machine.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Most tokens of a document, as the engine is loaded.", min=MIN_LENGTH)
    ] = None,
    engine_option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE of vLLM's EngineArgs, such as tensor_parallel_size=2; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for fidelity.md and fidelity.json.", file_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell where each nat goes between a teacher and the records of it.

    The engine reads the documents twice, alone and in company: what differs is its own noise. Then a plain forward
    pass of transformers tells what is true, and the rows what capture, codec, draws, a top-k and windows do to it.
    """
    chosen = specified(
        {
            "mode": mode,
            "tau": tau,
            "head_max": head_max,
            "tail_max": tail_max,
            "k": k,
            "draws": draws,
            "sampler": sampler,
            "pin": pin or None,
            "seed": seed,
            "codec": codec,
            "max_length": max_length,
        }
    )
    if (cask is None) == (sample is None):
        raise OptionError("expected one of --cask and --sample: the records to look at, or a corpus to make some of")
    if cask is not None and chosen:
        names = ", ".join("--" + name.replace("_", "-") for name in chosen)
        raise OptionError(f"{names}: of --sample; a cask says itself how it was captured: leave it out")

    from logitcask_schemas.cask.publication import cask_around
    from logitcask_schemas.cli.cask import default_cache
    from logitcask_services.cask_places import make_writable
    from logitcask_services.engines.model_folder import ModelFolder
    from logitcask_services.fidelity import Sample
    from logitcask_services.teachers.engine_options import require_engine_options
    from logitcask_services.teachers.outline import outline

    if output is not None:
        if (around := cask_around(output)) is not None:
            raise OptionError(f"--output {output}: lies in the cask {around}, which holds nothing else; name another")
        make_writable(output, "--output")
    folder = ModelFolder.open(teacher)
    facts = outline(folder, max_model_len)
    if facts is None:
        raise ModelError(f"the config.json of {folder.path} has no `vocab_size`; add it")
    if cask is not None:
        documents = Sample.of_cask(cask, positions, cache=default_cache())
    else:
        assert sample is not None  # one of the two was given
        documents = _of_lines(sample, facts, chosen, positions)
    documents.require_fits(facts.tokenizer_fingerprint, vocab_size=facts.vocab_size, max_model_len=facts.max_model_len)
    made_by = documents.teacher
    if engine is None:
        engine = "transformers" if made_by is not None and made_by.engine == "transformers" else "vllm"
    of_engine = values(engine_option, "--engine-option")
    require_engine_options(engine, of_engine, where="--engine-option")
    stderr = Console(stderr=True)
    passes = _asked(
        stderr,
        engine,
        folder,
        documents,
        # Of a cask from elsewhere nobody knows it.
        dtype=dtype or (made_by.dtype if made_by is not None and made_by.dtype in COMPUTE_DTYPES else "auto"),
        max_model_len=max_model_len,
        engine_options=of_engine,
    )
    report = _measured(stderr, folder, passes, tuple(window or ()), max_model_len)
    if output is not None:
        (output / "fidelity.md").write_text(report.as_markdown(), encoding="utf-8")
        (output / "fidelity.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
        say(stderr, f"{output / 'fidelity.md'} and {output / 'fidelity.json'} are written")
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        show(report)


def _of_lines(path: Path, facts: "TeacherFacts", chosen: dict[str, Any], positions: int) -> "Sample":
    """Documents of a corpus. Raises FidelityError, PilotError, CaptureSpecError or OptionError."""
    from logitcask_schemas.record.capture_spec import capture_spec
    from logitcask_services.fidelity import Sample

    if not path.is_file():
        raise OptionError(f"--sample {path}: no such file; expected JSON lines such as those of the corpus")
    fields = dict(chosen)
    limit = min(int(fields.pop("max_length", _LONGEST)), facts.max_model_len)
    for option, field in (("pin", "pinned_ids"), ("codec", "logprob_codec")):
        if option in fields:
            fields[field] = fields.pop(option)
    spec = capture_spec(**fields)
    spec.require_vocabulary(facts.vocab_size)
    return Sample.of_lines(path, facts.tokenizer, spec, positions=positions, max_length=limit)


def _asked(
    stderr: Console,
    engine: EngineName,
    folder: "ModelFolder",
    documents: "Sample",
    *,
    dtype: str,
    max_model_len: int | None,
    engine_options: dict[str, Any],
) -> "EnginePasses":
    """What the engine says; it is closed again, so that its memory is free for the plain pass."""
    from logitcask_services.engines.factory import load_engine
    from logitcask_services.fidelity import engine_passes

    if engine == "transformers":
        engine_options = {"batch_documents": _IN_COMPANY, **engine_options}
    with stderr.status(f"loading the teacher in {engine}") as status:
        loaded = load_engine(engine, folder.path, dtype=dtype, max_model_len=max_model_len, options=engine_options)
        try:
            status.update(f"{counted(documents.positions, 'position')}: each document alone, then all in company")
            return engine_passes(loaded, documents)
        finally:
            loaded.close()


def _measured(
    stderr: Console,
    folder: "ModelFolder",
    passes: "EnginePasses",
    windows: tuple[int, ...],
    max_model_len: int | None,
) -> "FidelityReport":
    """The table, from plain forward passes in float32."""
    from logitcask_services.engines.transformers_engine import TransformersEngine
    from logitcask_services.fidelity import fidelity_report

    total, so_far = passes.sample.positions, 0
    with stderr.status("plain forward passes") as status:

        def done(positions: int) -> None:
            nonlocal so_far
            so_far += positions
            status.update(f"plain forward passes: {so_far:,} of {counted(total, 'position')}")

        plain = TransformersEngine(folder, dtype="float32", max_model_len=max_model_len)
        try:
            return fidelity_report(passes, plain.logits, windows=windows, done=done)
        finally:
            plain.close()


def show(report: "FidelityReport") -> None:
    """The table on stdout."""
    from logitcask_services.fidelity.report import interval_text, nats_text

    table = Table(
        title=f"{counted(report.positions, 'position')} of {counted(report.documents, 'document')}; the teacher's "
        f"entropy is {nats_text(report.entropy)} nats per position",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("nats per position", justify="right")
    table.add_column("95 %", justify="right")
    table.add_column("")
    for row in report.rows:
        note = "; ".join(text for text in (row.kind, row.note) if text)
        table.add_row(f"{row.name}: {row.what}", nats_text(row.nats), interval_text(row.nats), note)
    console().print(table)
    for name, (stored, here) in report.differences.items():
        typer.echo(f"{name}: {stored!r} in the cask, {here!r} here; the row of the cask counts it")
