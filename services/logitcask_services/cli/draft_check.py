"""`logitcask draft-check`: a student as the draft model of its teacher, measured by vLLM beside what was foretold."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.table import Table

from logitcask_schemas.cli.output import JsonOption, console
from logitcask_schemas.errors import OptionError
from logitcask_schemas.terminal import EXIT_PROBLEMS, counted
from logitcask_services.cli.connection import say
from logitcask_services.cli.request_options import values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from logitcask_services.draft_check import DraftCheck
    from logitcask_services.draft_check.check import Figures
    from logitcask_services.draft_check.speculation import Speculation
    from logitcask_services.engines.model_folder import ModelFolder

Drafts = Literal["greedy", "sampled"]
_LONGEST: Final = 512
"""Tokens of a held-out document that the share is measured on."""

app = typer.Typer(add_completion=False)


@app.command()
def draft_check(
    teacher: Annotated[
        Path, typer.Option(help="Folder of the teacher model, or a Hugging Face Hub id such as ORG/NAME@REVISION.")
    ],
    draft: Annotated[Path, typer.Option(help="Folder of the student.")],
    cask: Annotated[
        str | None, typer.Option(help="Held-out cask, a folder or URL: prompts are the beginnings of its documents.")
    ] = None,
    sample: Annotated[
        Path | None, typer.Option(help="Instead: held-out text as JSON lines like those of a corpus.", dir_okay=False)
    ] = None,
    texts: Annotated[int, typer.Option(help="Texts to write.", min=1)] = 32,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 32,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a text.", min=2)] = 64,
    draft_length: Annotated[int, typer.Option(help="Tokens drafted for a step.", min=1, max=64)] = 4,
    temperature: Annotated[float, typer.Option(help="0: the most likely tokens; 1: sampled from the teacher.")] = 0.0,
    drafts: Annotated[
        Drafts, typer.Option(help="At temperature 1: the student's most likely tokens, or sampled ones.")
    ] = "greedy",
    report: Annotated[
        Path | None,
        typer.Option(help="report.json of `logitcask report`, to foretell from; else it is measured on the text."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Of the student in that report.")] = None,
    dtype: Annotated[str, typer.Option(help="Compute dtype; `auto` fits the machine.")] = "auto",
    engine_option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE of vLLM's EngineArgs, such as tensor_parallel_size=2; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run vLLM with the student as draft model: which drafts are kept, and how many tokens a step gives.

    Exit code 3 where the texts are not the teacher's, so that the measured figures are withheld.
    """
    if (cask is None) == (sample is None):
        raise OptionError("expected one of --cask and --sample: held-out documents, whose beginnings are the prompts")
    if temperature not in (0.0, 1.0):
        raise OptionError(f"--temperature {temperature:g}: expected 0 or 1; at others the teacher's own is not known")
    if temperature == 0 and drafts == "sampled":
        raise OptionError("--drafts sampled: at --temperature 1; at 0 vLLM drafts the most likely tokens")
    if label is not None and report is None:
        raise OptionError("--label: of --report; name the report, or leave the label out")

    from logitcask_services.draft_check import check_draft, require_draft
    from logitcask_services.draft_check.foretold import metric_of, of_report
    from logitcask_services.draft_check.speculation import lacks_generation_config
    from logitcask_services.engines.model_folder import ModelFolder
    from logitcask_services.engines.transformers_engine import TransformersEngine
    from logitcask_services.teachers.engine_options import require_engine_options
    from logitcask_services.teachers.outline import outline

    of_engine = values(engine_option, "--engine-option")
    require_engine_options("vllm", of_engine, where="--engine-option")
    stderr = Console(stderr=True)
    folder, longest = ModelFolder.open(teacher), prompt_tokens + max_tokens + draft_length
    student = require_draft(folder, draft, tokens=longest)
    if lacks_generation_config(student):
        say(
            stderr,
            f"{student.path.name} has no generation_config.json; nothing is lost: texts end where the teacher's do",
        )
    sampled = drafts == "sampled"
    foretold = None if report is None else of_report(report, label, metric_of(temperature, sampled=sampled))
    # Held-out documents are read whole, by both.
    windows = [facts.max_model_len for model in (folder, student) if (facts := outline(model, None)) is not None]
    documents = _documents(folder, cask, sample, texts, prompt_tokens, longest=min([_LONGEST, *windows]))
    speculation = _written(
        stderr,
        folder,
        student,
        [ids[:prompt_tokens] for ids in documents],
        max_tokens=max_tokens,
        temperature=temperature,
        drafted=draft_length,
        sampled=sampled,
        dtype=dtype,
        longest=longest,
        options=of_engine,
    )
    plain = [TransformersEngine(each, dtype="float32") for each in (folder, student)]
    with stderr.status("plain forward passes") as status:
        checked = check_draft(
            speculation,
            plain[0].logits,
            plain[1].logits,
            names=(folder.name, student.name),
            drafted=draft_length,
            temperature=temperature,
            sampled=sampled,
            foretold=foretold,
            held_out=documents if foretold is None else (),
            done=status.update,
        )
    if as_json:
        typer.echo(json.dumps(checked.as_dict()))
    else:
        show(checked)
    raise typer.Exit(0 if checked.measured is not None else EXIT_PROBLEMS)


def _documents(
    folder: "ModelFolder", cask: str | None, sample: Path | None, texts: int, prompt_tokens: int, *, longest: int
) -> "list[NDArray[np.uint32]]":
    """Token ids of held-out documents that are longer than a prompt, at most the first `longest` of each.

    Raises DraftCheckError, FidelityError, PilotError, CaskError or IdentityMismatchError where there are none.
    """
    from itertools import islice

    import numpy as np

    from logitcask_schemas.cli.cask import default_cache
    from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
    from logitcask_services.draft_check import DraftCheckError
    from logitcask_services.fidelity import Sample
    from logitcask_services.pilot.pilot import sample_documents

    if cask is not None:
        held = Sample.of_cask(cask, positions=4 * longest * texts, cache=default_cache())
        held.require_fits(folder.tokenizer_fingerprint, vocab_size=None, max_model_len=None)
        token_ids = (task.token_ids_L for task in held.tasks)
    else:
        assert sample is not None  # one of the two was given
        if not sample.is_file():
            raise OptionError(f"--sample {sample}: no such file; expected JSON lines such as those of a corpus")
        tokenizer = HuggingFaceTokenizer.load(folder.path)
        token_ids = (np.array(ids, np.uint32) for ids in sample_documents(sample, tokenizer, longest))
    documents = list(islice((ids[:longest] for ids in token_ids if len(ids) > prompt_tokens), texts))
    if not documents:
        raise DraftCheckError(
            f"{cask or sample} holds no document of more than {prompt_tokens} tokens, to begin texts with; lower "
            "--prompt-tokens, or name longer ones"
        )
    return documents


def _written(
    stderr: Console,
    folder: "ModelFolder",
    student: "ModelFolder",
    prompts: "list[NDArray[np.uint32]]",
    *,
    max_tokens: int,
    temperature: float,
    drafted: int,
    sampled: bool,
    dtype: str,
    longest: int,
    options: dict[str, Any],
) -> "Speculation":
    """What vLLM writes and counts; it is closed again, so that its memory is free for the plain passes."""
    from logitcask_services.draft_check import speculate
    from logitcask_services.draft_check.speculation import draft_options
    from logitcask_services.engines.factory import load_generator

    with stderr.status(f"loading {folder.name} in vLLM, {student.name} as its draft model") as status:
        generator = load_generator(
            "vllm",
            folder.path,
            dtype=dtype,
            max_model_len=longest,
            options=draft_options(student.path, drafted, sampled=sampled, options=options),
        )
        try:
            status.update(f"writing {counted(len(prompts), 'text')}")
            return speculate(generator, prompts, max_tokens=max_tokens, temperature=temperature, drafted=drafted)
        finally:
            generator.close()


def show(checked: "DraftCheck") -> None:
    """The table on stdout, and whether the control passed."""
    table = Table(
        title=f"{checked.draft} drafts {checked.drafted} tokens for {checked.teacher} at temperature "
        f"{checked.temperature:g}: {counted(checked.texts, 'text')}, {counted(checked.tokens, 'token')}, "
        f"{counted(checked.steps, 'step')}",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("first draft kept, %", justify="right")
    table.add_column("up to each place, %", justify="right")
    table.add_column("tokens per step", justify="right")
    on_text = "replayed on the text" if checked.temperature == 0 else "share on the text"
    table.add_row(f"foretold: {checked.foretold_by}", *_cells(checked.foretold))
    table.add_row(f"{on_text}, plain passes", *_cells(checked.on_text))
    if checked.measured is not None:
        table.add_row("measured by vLLM", *_cells(checked.measured))
    else:
        table.add_row("measured by vLLM", "withheld", "", "")
    console().print(table)
    verdict = "control passed" if checked.control.passed else "control failed, so vLLM's figures are withheld"
    typer.echo(f"{verdict}: {checked.control.says}")


def _cells(figures: "Figures") -> tuple[str, str, str]:
    interval = "" if figures.low is None or figures.high is None else f"[{figures.low:.1%}, {figures.high:.1%}]"
    first = "" if figures.first is None else f"{100 * figures.first:.1f}"
    rates = "" if figures.rates_g is None else " ".join(f"{100 * rate:.1f}" for rate in figures.rates_g)
    tokens = "" if figures.tokens_per_step is None else f"{figures.tokens_per_step:.2f}"
    return f"{first} {interval.replace('%', '')}".strip(), rates, tokens
