"""`logitcask submit --dry-run`: what would become of a corpus, shown before anything is captured."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from logitcask_schemas.api.objects import Preview, PreviewDocument
from logitcask_schemas.terminal import bytes_text, counted, printable
from logitcask_services.cli.connection import duration, when_loaded
from logitcask_services.cli.corpus_file import LocalCorpus
from logitcask_services.cli.pilot import draw_lines, pilot_json, show_pilot
from logitcask_services.corpora.line_problems import sentence_of

if TYPE_CHECKING:
    from logitcask_schemas.api.client import ServiceClient

SAMPLE_BYTES = 16 << 20
PILOT_LINES = 100
"""Of a pilot that is proposed."""
STYLES = {"text": "", "answer": "bold green", "control": "dim reverse", "answer_control": "green reverse"}
_BASES = {
    "cask": "as the cask's shards so far",
    "measured_elsewhere": "as SmolLM2-135M took on Python sources; another teacher and text will differ",
    "bounds": "bounds of the capture spec; no measurement fits it",
}
_FORM = {"\n": "⏎\n", "\t": "→\t", "\r": "␍"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of the whole corpus, from a preview of its beginning, by bytes."""

    documents: int
    tokens: int
    recorded_positions: int
    context_tokens: int
    cask_bytes: int | None
    cask_bytes_low: int
    cask_bytes_high: int
    hint_bytes: int
    """Beside these."""
    seconds: float | None
    """Of the teacher's work, contexts included; None where its pace is not known."""
    price: float | None
    """Of these seconds; None where they, or a price per hour, are not known."""


def dry_run(
    local: LocalCorpus,
    request: dict[str, Any],
    source: "ServiceClient | Path",
    *,
    documents: int,
    as_json: bool,
    price_per_hour: float | None = None,
    pilot_lines: int | None = None,
) -> None:
    """Preview the beginning of a corpus, through a service or with a teacher's folder, and print it.

    Args:
        local: The corpus here.
        request: As it would be submitted.
        source: What knows the teacher.
        documents: How many are shown.
        as_json: Print one JSON document.
        price_per_hour: Of the machine with the teacher, in any currency.
        pilot_lines: So many lines from all over the corpus are captured by the service, to measure; None: no teacher
            runs.
    """
    drawn = None if pilot_lines is None else draw_lines(local.path, pilot_lines)
    with local.path.open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
        if len(sample) < local.bytes:
            whole = sample.rfind(b"\n") + 1
            if not whole:
                raise typer.BadParameter(f"the first line is longer than {SAMPLE_BYTES:,} bytes", param_hint="CORPUS")
            sample = sample[:whole]
    preview = (
        _with_folder(source, sample, request, documents)
        if isinstance(source, Path)
        else when_loaded(lambda: source.preview(sample, request, documents=documents), Console(stderr=True))
    )
    share = len(sample) / local.bytes if local.bytes else 1.0
    estimate = _estimate(preview, share, price_per_hour)
    pilot = None
    if drawn is not None:
        assert not isinstance(source, Path)  # `submit` refuses a pilot without a service
        pilot = source.pilot(drawn.content, request, corpus_lines=drawn.corpus_lines, corpus_bytes=drawn.corpus_bytes)
    if as_json:
        report = preview.model_dump(mode="json")
        report |= {"corpus_bytes": local.bytes, "previewed_bytes": len(sample)}
        measured = None if pilot is None else pilot_json(pilot, price_per_hour)
        report |= {"estimate": asdict(estimate), "pilot": measured}
        typer.echo(json.dumps(report))
        return
    _show(preview, estimate, share, Console(), is_piloted=pilot is not None)
    if pilot is not None:
        show_pilot(pilot, price_per_hour, Console())


def _with_folder(folder: Path, sample: bytes, request: dict[str, Any], documents: int) -> Preview:
    """The same preview without a service: the folder's tokenizer and configuration, no weights."""
    from logitcask_schemas.cli.tokenizers import leave_torch_out

    leave_torch_out()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from logitcask_schemas.api.requests import MIN_LENGTH
    from logitcask_schemas.errors import ModelError
    from logitcask_schemas.record.capture_spec import capture_spec
    from logitcask_services.corpora.prepare import DocumentLimits
    from logitcask_services.corpora.preview import preview
    from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
    from logitcask_services.engines.hint_shape import HintShape, resolve_hints
    from logitcask_services.pilot.expected_bytes import expected_bytes, with_hints

    spec = capture_spec(**request["capture"])
    tokenizer = HuggingFaceTokenizer.load(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(f"{folder} has no config.json that loads: {' '.join(str(error).split())}") from error
    context = getattr(config, "max_position_embeddings", None) or 1 << 30
    limits = DocumentLimits(
        vocab_size=config.vocab_size,
        max_length=min(request.get("max_length") or context, context),
        window=context,
        overflow=request.get("overflow", "truncate"),
        loss_on=request.get("loss_on", "all"),
        max_line_bytes=8 << 20,
    )
    if limits.overflow not in ("truncate", "split", "skip") or limits.max_length < MIN_LENGTH:
        raise typer.BadParameter(f"overflow is truncate, split or skip, and max_length at least {MIN_LENGTH}")
    with tempfile.TemporaryDirectory(prefix="logitcask-") as scratch:
        corpus = Path(scratch) / "corpus.jsonl"
        corpus.write_bytes(sample)
        previewed = preview(corpus, Path(scratch) / "store", tokenizer, limits, documents=documents)
    shape = HintShape.of_config(config.to_dict())
    spec = resolve_hints(spec, shape)
    figures = with_hints(expected_bytes(spec, config.vocab_size), spec.hints, shape)
    return previewed.object(figures, teacher=folder.resolve().name, limits=limits)


def _recorded(preview: Preview) -> int:
    """Positions that get a record."""
    return preview.tokens - preview.documents if preview.recorded_positions is None else preview.recorded_positions


def _estimate(preview: Preview, share: float, price_per_hour: float | None = None) -> Estimate:
    from logitcask_services.pilot.expected_bytes import ID_BYTES

    times = 1 / share if share else 1.0
    figures = preview.bytes_per_token
    # What is not recorded takes the token's id alone.
    recorded = _recorded(preview)
    without = preview.tokens - preview.documents - recorded
    tokens, bare = preview.tokens - without, without * ID_BYTES
    pace = preview.tokens_per_second
    seconds = (preview.tokens + preview.context_tokens) * times / pace if pace else None
    return Estimate(
        documents=round(preview.documents * times),
        tokens=round(preview.tokens * times),
        recorded_positions=round(recorded * times),
        context_tokens=round(preview.context_tokens * times),
        cask_bytes=None if figures.expected is None else round((tokens * figures.expected + bare) * times),
        cask_bytes_low=round((tokens * figures.low + bare) * times),
        cask_bytes_high=round((tokens * figures.high + bare) * times),
        hint_bytes=round((recorded * figures.hints + preview.documents * figures.hints_per_document) * times),
        seconds=seconds,
        price=None if seconds is None or price_per_hour is None else seconds / 3600 * price_per_hour,
    )


def _show(preview: Preview, estimate: Estimate, share: float, out: Console, *, is_piloted: bool) -> None:
    legend = Text("legend: ")
    legend.append("answer (trained by assistant_only)", STYLES["answer"])
    legend.append(", other text, ")
    legend.append("control token", STYLES["control"])
    legend.append(", ")
    legend.append("control token of an answer", STYLES["answer_control"])
    if preview.shown and out.color_system is not None:  # it explains colours
        out.print(legend)
    for document in preview.shown:
        _show_document(document, _unusual(preview, document.line), out)
    _show_counts(preview, share, out)
    _show_expectation(preview, estimate, share, out, is_piloted=is_piloted)


def _unusual(preview: Preview, line: int) -> list[str]:
    """Codes of what is unusual about a line, as far as its number is told."""
    kept = ("truncated", "split", *preview.notes)
    return [code for code in kept if line in preview.first_lines.get(code, [])]


def _show_document(document: PreviewDocument, unusual: list[str], out: Console) -> None:
    answers = document.answer_tokens
    trained = "the line does not tell what is an answer" if answers is None else f"{answers:,} of answers"
    if document.recorded_positions is not None and document.recorded_positions < document.tokens - 1:
        trained += f", {document.recorded_positions:,} recorded"
    if document.context_tokens:
        trained += f", under a context of {document.context_tokens:,}"
    facts = ", ".join([counted(document.tokens, "token"), trained, *unusual])
    out.rule(Text(f"line {document.line:,}: {facts}"), align="left", style="dim")
    text = Text()
    for piece in document.pieces:
        visible = "".join(_FORM.get(character, character) for character in piece.text)
        text.append(printable(visible, keep="\n\t"), STYLES.get(piece.kind, ""))
    if document.cut:
        text.append(" ... (more follows)", "dim")
    out.print(text, highlight=False)


def _show_counts(preview: Preview, share: float, out: Console) -> None:
    of = "the whole corpus" if share == 1 else f"the first {share:.1%} of the corpus"
    out.rule(Text(of), align="left", style="dim")
    gives = f"{counted(preview.documents, 'document')}, {counted(preview.tokens, 'token')}"
    _line(out, f"{counted(preview.lines, 'line')} {'gives' if preview.lines == 1 else 'give'} {gives}")
    if (recorded := _recorded(preview)) < (positions := preview.tokens - preview.documents):
        _line(out, f"{counted(recorded, 'position')} recorded, {recorded / positions:.1%} of all")
    if preview.context_tokens:
        _line(out, f"{counted(preview.context_tokens, 'token')} of contexts are read and not stored")
    limit = counted(preview.max_length, "token")
    for count, sentence, code in (
        (preview.truncated_lines, f"longer than {limit} and cut there (overflow: truncate)", "truncated"),
        (preview.split_lines, f"longer than {limit} and split (overflow: split)", "split"),
    ):
        if count:
            _line(out, f"{count:,} {sentence}{_where(preview, code)}", "yellow")
    for code, count in preview.notes.items():
        _line(out, f"{count:,} {code}: {sentence_of(code)}{_where(preview, code)}", "yellow")
    for code, count in preview.bad_by_code.items():
        example = next((entry.message for entry in preview.bad if entry.code == code), "")
        skipped = "skipped" if code == "too_long" else "bad"
        _line(out, f"{count:,} {skipped}, {code}{_where(preview, code)}: {example}", "red")
    if not (preview.notes or preview.bad_by_code or preview.truncated_lines or preview.split_lines):
        _line(out, "nothing is dropped, cut or unusual")


def _show_expectation(preview: Preview, estimate: Estimate, share: float, out: Console, *, is_piloted: bool) -> None:
    figures = preview.bytes_per_token
    out.rule(Text("to expect"), align="left", style="dim")
    how = "" if share == 1 else f" (estimated from the first {share:.1%})"
    _line(out, f"{counted(estimate.documents, 'document')}, {counted(estimate.tokens, 'token')}{how}")
    bounds = f"between {bytes_text(estimate.cask_bytes_low)} and {bytes_text(estimate.cask_bytes_high)}"
    if figures.expected is None or estimate.cask_bytes is None:
        _line(out, f"a cask of {bounds} ({_BASES[figures.basis]})")
    else:
        per_token = estimate.cask_bytes / max(estimate.tokens, 1)
        _line(
            out,
            f"a cask of about {bytes_text(estimate.cask_bytes)}, {per_token:.1f} bytes per token "
            f"({_BASES[figures.basis]}); {bounds} in any case",
        )
    if estimate.hint_bytes:
        each = f"{figures.hints:,.0f} bytes per recorded position"
        if figures.hints_per_document:
            each = f"{figures.hints_per_document:,.0f} bytes per document"
        _line(out, f"and {bytes_text(estimate.hint_bytes)} of hints beside it, {each}")
    if estimate.seconds is not None or not is_piloted:
        _show_time(preview, estimate, out)


def _show_time(preview: Preview, estimate: Estimate, out: Console) -> None:
    if estimate.seconds is None:
        _line(
            out,
            f"time: not known until a service has captured something with this teacher. Asked with --pilot "
            f"{PILOT_LINES}, a service captures {PILOT_LINES} lines, measures, and forgets them",
        )
        return
    price = "" if estimate.price is None else f", a price of {estimate.price:,.2f}"
    _line(
        out,
        f"about {duration(estimate.seconds)} of the teacher's time{price} (at the {preview.tokens_per_second:,.0f} "
        "tokens a second of its latest extractions)",
    )


def _where(preview: Preview, code: str) -> str:
    lines = preview.first_lines.get(code)
    return f" (line {', '.join(f'{line:,}' for line in lines)})" if lines else ""


def _line(out: Console, text: str, style: str = "") -> None:
    out.print(Text(printable(text), style), highlight=False)
