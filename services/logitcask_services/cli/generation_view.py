"""How a generation is followed and shown: its progress, what came of it, its rows, its prompts before it begins."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.progress import TaskID
from rich.table import Column, Table
from rich.text import Text

from logitcask_schemas.api.generation import (
    GeneratedCorpus,
    GeneratedRow,
    GeneratedRowList,
    Generation,
    GenerationPreview,
    GenerationProgress,
    PreviewedLoss,
    RecipeSummary,
)
from logitcask_schemas.api.objects import Event
from logitcask_schemas.terminal import counted, printable
from logitcask_services.cli.connection import duration, following, list_failures, pace, say, show_event
from logitcask_services.cli.dropped_rows import dropped_rows, missing_corpora

if TYPE_CHECKING:
    from logitcask_schemas.api.client import ServiceClient

SHORT = 300
"""Characters of a text that are shown where more follow."""
SHOWN_ROWS_LEFT_OUT = 5
"""Rows that were left out, in a summary: most recipes leave many out, for few reasons."""


def follow_generation(client: "ServiceClient", generation_id: str, console: Console) -> Generation:
    """Show a generation's progress until it ends; the ended generation. Ctrl-C leaves it running (exit code 130)."""
    with following("generation", generation_id, console, unit="requests") as (bar, task):
        for event in client.generations.follow(generation_id):
            match event:
                case GenerationProgress():
                    _show_progress(bar, task, event)
                case Event(type="chunk", data=counts):
                    bar.update(task, completed=counts["requests_done"], total=counts["requests_total"])
                case Event(type="stage", data=stage):
                    bar.update(task, description=f"step {stage['stage']}", completed=0, total=stage["requests"])
                case Event():
                    show_event(bar, task, console, event)
        generation = client.generations.get(generation_id)
        # The log of one that was resumed and cancelled ends, for this reader, at its first end.
        bar.update(task, description=generation.status)
        return generation


def _show_progress(bar: ProgressBar, task: TaskID, now: GenerationProgress) -> None:
    fields = pace(now.throughput_tps, now.eta_seconds)
    if now.stages:
        fields |= {"completed": now.stages[-1].requests_done, "total": now.stages[-1].requests_total}
    bar.update(task, **fields)


def summarise_generation(generation: Generation, client: "ServiceClient", console: Console) -> None:
    """The outcome in a few lines, with the first rows that were left out."""
    rows = generation.rows
    name = f"recipe {generation.recipe}" if generation.recipe else counted(len(generation.steps), "step")
    what = f"{generation.id}: {generation.status}; {name}"
    if generation.status == "completed" or rows.source:
        what += f": {counted(rows.kept, 'row')} kept of {counted(rows.source, 'line')}"
    say(console, f"{what}, {counted(generation.generated_tokens, 'token')} written")
    if generation.waiting:
        say(console, f"waiting: {generation.waiting.message}", style="yellow")
    if generation.error:
        say(console, f"error: {generation.error.message}", style="red")
    for stage in generation.stages:
        parts = [f"{stage.requests_done:,} of {counted(stage.requests_total, 'request')}"]
        parts += [f"{stage.failed:,} failed"] if stage.failed else []
        parts += [f"{counted(stage.generated_tokens, 'token')} written"] if stage.generated_tokens else []
        template = f", template {stage.template}" if stage.template else ""
        say(console, f"step {stage.stage} ({stage.kind}{template}): {', '.join(parts)}")
    if generation.status == "in_progress" and generation.throughput_tps is not None:
        eta = f", {duration(generation.eta_seconds)} to go in this step" if generation.eta_seconds is not None else ""
        say(console, f"{generation.throughput_tps:,.0f} tokens a second{eta}")
    for corpus in generation.corpora:
        to = f"; cask {corpus.cask}: {corpus.extraction_id}" if corpus.extraction_id else ""
        of = f" ({corpus.suffix})" if corpus.suffix else ""
        say(console, f"corpus {corpus.corpus_id}{of}: {counted(corpus.rows, 'row')}{_alike(corpus)}{to}")
    for line in (*missing_corpora(generation), *dropped_rows(generation)):
        say(console, line, style="yellow")
    if rows.dropped:
        list_failures(client.generations.failures(generation.id), generation.id, console, SHOWN_ROWS_LEFT_OUT)


def _alike(corpus: GeneratedCorpus) -> str:
    if corpus.documents is None or corpus.documents == corpus.rows:
        return ""
    return f", {counted(corpus.documents, 'document')} (alike to the token are one in a cask)"


def show_rows(page: GeneratedRowList, generation: Generation, after: int, out: Console) -> None:
    """Rows behind a step, so that a person can read them: fields, texts cut, checks, and why they were left out."""
    kind = f"behind step {page.step} ({generation.steps[page.step].kind})" if page.step >= 0 else "as the lines came"
    for number, row in enumerate(page.data, after):
        _show_row(number, row, out)
    if not page.data:
        say(out, f"no rows {kind}{' yet' if page.is_open else ''}")
        if not after and not page.is_open and page.step >= 0:
            say(out, f"`--step {page.step - 1}` shows the rows before it, `--dropped` those left out, with the reason")
        return
    which = f"rows {after:,} to {after + len(page.data) - 1:,} {kind}"
    more = f"; more: --after {after + len(page.data)}" if page.has_more else ""
    waits = "; further rows wait for the teacher" if page.is_open else ""
    say(out, f"{which}{more}{waits}")


def _show_row(number: int, row: GeneratedRow, out: Console) -> None:
    name = f" ({row.custom_id})" if row.custom_id else ""
    where = f"line {row.line:,}{name}" if row.line else "made of several rows"
    out.rule(Text(printable(f"{number:,}: {where}")), align="left", style="dim")
    for field, value in row.fields.items():
        written = row.written.get(field)
        style = "bold green" if written is not None else ""
        line = Text.assemble((printable(f"{field}: "), "dim"), (_short(value), style))
        if written is not None:
            facts = f"{counted(written['tokens'], 'token')}, {written['finish']}, sample {written['sample']}"
            line.append(f"  [{facts}, {written['mean_logprob']:.2f} nats per token]", "dim")
        out.print(line, highlight=False)
    if row.checks:
        checks = ", ".join(f"{check}: {_short(value)}" for check, value in row.checks.items())
        say(out, f"checks: {checks}")
    if row.dropped:
        say(out, f"left out: {row.dropped.code}: {row.dropped.message}", style="yellow")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    cut = text if len(text) <= SHORT else f"{text[:SHORT]} ... ({len(text):,} characters)"
    return printable(cut, keep="\n\t")


def show_recipes(recipes: Iterable[RecipeSummary], out: Console) -> None:
    """Recipes with their parameters and defaults."""
    for recipe in recipes:
        own = ", of the operator" if recipe.source == "operator" else ""
        out.print(Text(printable(f"{recipe.name}{own}"), "bold"), highlight=False)
        say(out, f"  {recipe.description}")
        if recipe.lines:
            say(out, f"  lines: {recipe.lines}")
        for name, default in recipe.parameters.items():
            value = "... (required)" if name in recipe.required else json.dumps(default, ensure_ascii=False)
            say(out, f"  -p {name}={value}")


def list_generations(generations: Sequence[Generation], out: Console) -> None:
    """A table, a line for each."""
    table = Table(
        Column("id", no_wrap=True, min_width=35), "status", "recipe", "step", "requests", "kept", "tokens/s", box=None
    )
    for generation in generations:
        stage = generation.stages[-1] if generation.stages else None
        table.add_row(
            generation.id,
            generation.status + (" (paused)" if generation.waiting else ""),
            printable(generation.recipe or "own steps"),
            f"{stage.stage} ({stage.kind})" if stage else "",
            f"{stage.requests_done:,}/{stage.requests_total:,}" if stage else "",
            f"{generation.rows.kept:,}" if generation.rows.source else "",
            f"{generation.throughput_tps:,.0f}" if generation.throughput_tps is not None else "",
        )
    out.print(table)


def show_preview(preview: GenerationPreview, share: float, tokens_per_second: float | None, out: Console) -> None:
    """Rendered prompts, and the cost of the whole corpus by the share of its bytes that was rendered.

    Args:
        preview: Of the beginning of the corpus, or all of it.
        share: Of the corpus' bytes that were rendered, in 0 .. 1.
        tokens_per_second: At which earlier generations wrote; None where there are none.
        out: Where to.
    """
    for prompt in preview.shown:
        facts = f"line {prompt.line:,}: {counted(prompt.tokens, 'token')}" if prompt.line else "of several rows"
        out.rule(Text(facts), align="left", style="dim")
        if prompt.error:
            say(out, f"{prompt.error.code}: {prompt.error.message}", style="red")
        else:
            out.print(Text(printable(prompt.text, keep="\n\t")), highlight=False)
    how = "" if share == 1 else f" (estimated from the first {share:.1%} of the corpus)"
    out.rule(Text(f"the first teacher step{how}"), align="left", style="dim")
    cost = estimate(preview, share)
    say(
        out,
        f"{counted(cost['lines'], 'line')} give {counted(cost['requests'], 'request')}: "
        f"{counted(cost['prompt_tokens'], 'token')} of prompts, at most "
        f"{counted(cost['generated_tokens_at_most'], 'token')} written",
    )
    if preview.note:
        say(out, preview.note, style="red")
    if preview.bad_lines:
        say(out, f"{counted(preview.bad_lines, 'line')} bad and left out", style="yellow")
        _show_losses(preview.bad, out, "yellow")
    if preview.refused:
        say(
            out,
            f"{counted(preview.refused, 'request')} cannot be made and would be left out",
            style="red",
        )
        _show_losses(preview.refusals, out, "red")
    if tokens_per_second:
        seconds = cost["generated_tokens_at_most"] / tokens_per_second
        say(
            out,
            f"at most {duration(seconds)} at {tokens_per_second:,.0f} tokens a second, as the last generation wrote",
        )


def _show_losses(losses: Iterable[PreviewedLoss], out: Console, style: str) -> None:
    for loss in losses:
        more = f" (and {loss.count - 1:,} more)" if loss.count > 1 else ""
        say(out, f"  {loss.code}: {loss.message}{more}", style=style)


def estimate(preview: GenerationPreview, share: float) -> dict[str, int]:
    """Counts of the whole corpus, from those of a share of it."""
    names = ("lines", "requests", "prompt_tokens", "generated_tokens_at_most")
    return {name: round(getattr(preview, name) / share) for name in names}
