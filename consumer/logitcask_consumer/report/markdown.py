"""The report as Markdown: plots of what it comes to, the models' table, and a section for each further question."""

from collections.abc import Callable, Sequence
from typing import Any

from logitcask_consumer.report.tables import (
    bucket_tables,
    cell,
    control_table,
    cost_table,
    draft_table,
    escaped,
    pairs_table,
    short_cell,
    texts_table,
)
from logitcask_consumer.report.task_tables import task_rows, task_tables
from logitcask_schemas.terminal import counted

TITLE = "# Distillation report"
_ROWS: tuple[tuple[str, str, str], ...] = (
    ("kl", "KL to the teacher, nats/token", "{:.4f}"),
    ("kl_bound", "KL of head and tail bucket, nats/token", "{:.4f}"),
    ("perplexity", "perplexity", "{:,.2f}"),
    ("nll", "-log p of the real token, nats/token", "{:.4f}"),
    ("entropy", "entropy, nats/token", "{:.4f}"),
    ("agreement", "same top token as the teacher", "{:.2%}"),
    ("top5_agreement", "top token is among the teacher's five", "{:.2%}"),
    ("acceptance", "expected acceptance as a draft model", "{:.2%}"),
    ("greedy_acceptance", "expected acceptance of greedy drafts", "{:.2%}"),
    ("tvd", "total variation distance to the teacher", "{:.4f}"),
    ("tail_error", "tail mass error, student - teacher", "{:+.4f}"),
    ("accuracy", "top token is the real one", "{:.2%}"),
    ("calibration_error", "calibration error (15 bins)", "{:.4f}"),
)
_BYTES = (
    ("bits_per_byte", "bits per byte", "{:.4f}"),
    ("teacher_bits_per_byte", "the teacher's, on the same bytes", "{:.4f}"),
    ("difference", "difference", "{:+.4f}"),
)
_FEW_DOCUMENTS = 20
"""Below that a bootstrap's intervals are too narrow."""
_COARSE_CODECS = ("u8", "u8all")
_TEACHERS_OWN = {
    "kl": 0.0,
    "kl_bound": 0.0,
    "agreement": 1.0,
    "top5_agreement": 1.0,
    "acceptance": 1.0,
    "tvd": 0.0,
    "tail_error": 0.0,
}


def to_markdown(document: dict[str, Any], plots: Sequence[str]) -> str:
    """Render the document; `plots` are file names beside the Markdown file, each shown where it belongs."""
    cask = document["cask"]
    where_they_differ = bucket_tables(document)

    def shown(*names: str) -> list[str]:
        return [f"![{_title(name)}]({name})" for name in names if name in plots]

    documents = counted(cask["documents_with_positions"], "document")
    sections = [
        TITLE,
        (
            f"{cask['positions']:,} positions of {documents}{_held_out(document)}, "
            f"recorded from **{escaped(cask['teacher']['model'])}** "
            f"({escaped(cask['teacher']['engine'])}, {cask['teacher']['dtype']})."
        ),
        *(f"> **Note**: {escaped(warning)}." for warning in document["warnings"]),
        *shown("headlines.png", "loss_curve.png"),
        models_table(document),
        acceptance_line(document, named=escaped),
        _reading_lines(document),
        _kinds_line(document),
        _change_line(document),
        *control_table(document),
        *pairs_table(document, _ROWS),
        *draft_table(document),
        *where_they_differ,
        *(shown("entropy.png", "frequency.png") if where_they_differ else []),
        *texts_table(document),
        *task_tables(document),
        *shown("tasks.png"),
        *cost_table(document),
        *_bytes_table(document),
        "## Records",
        _cask_table(cask),
        *shown("captured_mass.png"),
        *([] if where_they_differ else shown("entropy.png", "frequency.png")),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def kl_by_teacher(documents: Sequence[dict[str, Any]]) -> str:
    """What reports on several teachers come to: the models' KL to each of them, and where to read more."""
    labels = [escaped(model["label"]) for model in documents[0]["models"]]
    lines = [
        "| teacher | records | positions | " + " | ".join(labels) + " |",
        "|---|---|" + "---:|" * (1 + len(labels)),
    ]
    for document in documents:
        name = "kl" if "kl" in document["kinds"] else "kl_bound"
        form = next(form for metric, _, form in _ROWS if metric == name)
        cells = [cell(model["metrics"].get(name), form) or _bits(model) for model in document["models"]]
        kind = document["kinds"][name]
        cells = [text if kind == "exact" or not text else f"{text} ({kind})" for text in cells]
        teacher, where = escaped(document["cask"]["teacher"]["model"]), document["folder"]
        positions = f"{document['cask']['positions']:,}"
        lines.append(
            f"| {teacher} | [{escaped(document['label'])}](<{where}/report.md>) | {positions} | {' | '.join(cells)} |"
        )
    sections = [
        TITLE,
        "KL to each teacher on its own held-out records, nats/token.",
        "\n".join(lines),
    ]
    return "\n\n".join(sections) + "\n"


def _bits(model: dict[str, Any]) -> str:
    """What is known of a model with another tokenizer than the teacher's."""
    return f"{cell(model['bytes']['bits_per_byte'], '{:.4f}')} bits per byte" if "bytes" in model else ""


def short_table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows for a terminal: values with half the width of their interval."""
    models, teacher = document["models"], document["teacher"]
    rows = []
    for name, title, form in _ROWS:
        if name in document["kinds"]:
            teacher_cell = short_cell(teacher[name], form) if name in teacher else _constant(name, form)
            rows.append([title, teacher_cell, *(short_cell(model["metrics"].get(name), form) for model in models)])
    if measured := [model for model in models if "bytes" in model]:
        name, title, form = _BYTES[0]
        # The first bytes left out differ between models, so the teacher's figure may differ in its last digit.
        teachers = {short_cell(model["bytes"]["teacher_bits_per_byte"], form) for model in measured}
        teacher_cell = teachers.pop() if len(teachers) == 1 else ""
        rows.append([title, teacher_cell, *(short_cell(model.get("bytes", {}).get(name), form) for model in models)])
    rows += task_rows(document)
    return ["", "teacher", *(model["label"] for model in models)], rows


def models_table(document: dict[str, Any]) -> str:
    """The figures of teacher and models, a row for each metric."""
    models, teacher = document["models"], document["teacher"]
    lines = [
        "| | teacher | " + " | ".join(escaped(model["label"]) for model in models) + " |",
        "|---|" + "---:|" * (1 + len(models)),
    ]
    for name, title, form in _ROWS:
        teacher_cell = cell(teacher[name], form) if name in teacher else _constant(name, form)
        if name in document["kinds"]:
            kind = document["kinds"][name]
            label = title if kind == "exact" else f"{title} ({kind})"
            cells = [cell(model["metrics"].get(name), form) for model in models]
            lines.append(f"| {label} | {teacher_cell} | " + " | ".join(cells) + " |")
        brackets = [model.get("brackets", {}).get(name) for model in models]
        if any(brackets):
            ends = [
                "" if ends is None else f"{form.format(ends['low'])} to {form.format(ends['high'])}"
                for ends in brackets
            ]
            lines.append(f"| {title} (lies between) | {teacher_cell} | " + " | ".join(ends) + " |")
    return "\n".join(lines)


def _bytes_table(document: dict[str, Any]) -> list[str]:
    """What models with different tokenizers can be compared by."""
    models = [model for model in document["models"] if "bytes" in model]
    if not models:
        return []
    lines = ["| | " + " | ".join(escaped(model["label"]) for model in models) + " |", "|---|" + "---:|" * len(models)]
    for name, title, form in _BYTES:
        lines.append(f"| {title} | " + " | ".join(cell(model["bytes"][name], form) for model in models) + " |")
    for name in ("bytes", "documents"):
        lines.append(f"| {name} | " + " | ".join(f"{model['bytes'][name]:,}" for model in models) + " |")
    said = (
        "Figures per token cannot be compared between tokenizers. Here a model and the teacher predict the same bytes, "
        "each with its own tokens, in the documents that can be aligned with the tokens of every model. A document's "
        "first bytes are left out: those of a first token that nobody predicts."
    )
    changed = []
    if "bytes_change" in document:
        change = document["bytes_change"]
        form = _BYTES[2][2]
        changed = [f"{_from_to(change)}: **{cell(change['bits_per_byte'], form)}** bits per byte."]
    return ["## Bits per byte", said, "\n".join(lines), *changed]


def _constant(name: str, form: str) -> str:
    return form.format(_TEACHERS_OWN[name]) if name in _TEACHERS_OWN else ""


def _kinds_line(document: dict[str, Any]) -> str:
    """What brackets and the words behind titles mean, and what a coarse codec adds."""
    few = ", too narrow with so few" if document["cask"]["documents_with_positions"] < _FEW_DOCUMENTS else ""
    said = (
        f"Brackets: {document['confidence_level']:.0%} interval, bootstrap over documents{few}, of shares of texts "
        "and answers score intervals (standard errors: report.json). *unbiased*: an estimate from the tail draws, "
        "right on average; *bound*: the true value is on one side of it; *lies between*: ends that enclose it, with "
        "their intervals; the rest is exact. The *head* of a position is the tokens that its record names with their "
        "probabilities: those the teacher finds likeliest. The *tail* is all others. *KL of head and tail bucket* "
        "counts the tail as one token, never above the KL; *tail mass error* is the probability that a student gives "
        "the tail, less what the teacher gives it."
    )
    codec = document["cask"]["capture"]["logprob_codec"]
    if codec not in _COARSE_CODECS:
        return said
    return said + (
        f" These records keep a byte for a probability (codec {codec}): each is right on average, but acceptance comes "
        "out lower by up to one percent, and the total variation distance higher; bounds of the KL are off by up to "
        "1e-4 nats."
    )


def _change_line(document: dict[str, Any]) -> str:
    if "change" not in document:
        return ""
    change = document["change"]
    name = "kl" if "kl" in change["metrics"] else "kl_bound"
    form = {row[0]: row[2] for row in _ROWS}[name].replace("{:", "{:+")
    return f"{_from_to(change)}, KL changed by **{cell(change['metrics'][name], form)}** nats/token."


def _from_to(change: dict[str, Any]) -> str:
    return f"From {escaped(change['from'])} to {escaped(change['to'])}"


def _held_out(document: dict[str, Any]) -> str:
    """Says so where it was checked for every model that left a training run."""
    histories = [model["trained_on"] for model in document["models"] if "trained_on" in model]
    trained = [history for history in histories if history["status"] != "untrained"]
    sound = all(
        history["status"] == "checked" and not history["documents"] and not history["chosen_by"] for history in trained
    )
    return " that no training run of these models saw" if trained and sound else ""


def acceptance_line(document: dict[str, Any], *, named: Callable[[str], str] = str) -> str:
    """What is known of the acceptance where the records give no estimate of it; `named` gives how a label is shown."""
    brackets = [
        f"{named(model['label'])} between {model['acceptance_bracket']['low']:.1%} and "
        f"{model['acceptance_bracket']['high']:.1%}"
        for model in document["models"]
        if "acceptance_bracket" in model
    ]
    if not brackets:
        return ""
    return (
        "Expected acceptance as a draft model is not measured: these records hold no log-probabilities of the tail "
        "draws (capture held-out text with `logitcask submit --held-out`). It lies, for "
        + "; for ".join(brackets)
        + "."
    )


def _reading_lines(document: dict[str, Any]) -> str:
    """Windows of each model; models that read alike share a line."""
    labels: dict[str, list[str]] = {}
    for model in document["models"]:
        if "reading" not in model:
            continue
        reading = model["reading"]
        packed = "" if reading["packing"] == "best_fit" else ", one window to a sequence"
        text = (
            f"windows of at most {reading['seq_len']:,} tokens{packed}; {reading['share_with_less_context']:.1%} of "
            "the positions see less context than the teacher did"
        )
        if reading["extra_ids"] == "mask":
            text += "; its distribution is the one over the teacher's ids, as it was trained (--extra-ids mask)"
        labels.setdefault(text, []).append(escaped(model["label"]))
    return "\n".join(f"- {', '.join(names)}: {text}." for text, names in labels.items())


def _cask_table(cask: dict[str, Any]) -> str:
    captured = cask["captured_mass"]
    settings = ", ".join(f"{name} {value}" for name, value in cask["capture"].items() if value not in ([], None, False))
    rows = [
        ("bytes per token", f"{cask['bytes_per_token']:.1f}"),
        ("entries per position", f"{cask['entries_per_position']:.1f}"),
        (
            "captured mass (exact head), mean; 5 %, 50 %, 95 %",
            f"{captured['mean']:.3f}; {captured['p5']:.3f}, {captured['p50']:.3f}, {captured['p95']:.3f}",
        ),
        ("teacher entropy, nats", f"{cask['teacher_entropy']:.3f}"),
        ("capture", settings),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _title(name: str) -> str:
    return name.removesuffix(".png").replace("_", " ")
