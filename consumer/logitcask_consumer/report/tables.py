"""Tables in Markdown: their cells, and those by which models are compared (pairs, drafts, kinds of positions)."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from logitcask_consumer.report.texts import LEAST_TOKENS
from logitcask_schemas.terminal import bytes_text, counted

HUGE = 1e5
"""From here on numbers are written with an exponent."""
_MARKUP: Final = re.compile(r"[\\`*\[\]<>|&]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that mean something in Markdown; an underscore within a word does not."""
Row = tuple[str, str, str]
"""Name of a metric, its title, and the form of its numbers."""
_TEXTS = (
    ("rouge_l", "ROUGE-L with the recorded answer", "{:.3f}"),
    ("distinct_1", "distinct words within a text", "{:.1%}"),
    ("distinct_2", "distinct pairs of words within a text", "{:.1%}"),
    ("loops", "texts that end in a loop", "{:.1%}"),
    ("ended", "texts that ended by themselves", "{:.1%}"),
    ("tokens", "tokens of a text", "{:.1f}"),
)
_COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("parameters", "parameters", "{:,}".format),
    ("bytes", "weights on disk", bytes_text),
    ("read_tokens_per_second", "tokens read per second", "{:,.0f}".format),
    ("written_tokens_per_second", "tokens written per second", "{:,.1f}".format),
    ("memory_bytes", "memory", bytes_text),
)
_COMPARED = ("kl", "kl_bound", "nll", "agreement", "top5_agreement", "acceptance", "greedy_acceptance")


def escaped(text: str) -> str:
    """A name as Markdown that shows it as it is: no markup or link of its own, and no end of a cell or a line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def number(value: float, form: str) -> str:
    """A value in its row's form; a huge one, as perplexities of untrained students are, in three digits."""
    return form.format(value) if abs(value) < HUGE else f"{value:.2e}"


def cell(estimate: dict[str, float | None] | None, form: str) -> str:
    """An estimate with the ends of its interval; empty where there is none."""
    return _with_interval(estimate, form, lambda low, high: f"[{number(low, form)}, {number(high, form)}]")


def short_cell(estimate: dict[str, float | None] | None, form: str) -> str:
    """An estimate with half the width of its interval; empty where there is none."""
    unsigned = form.replace("+", "")
    return _with_interval(estimate, form, lambda low, high: f"± {number((high - low) / 2, unsigned)}")


def _with_interval(estimate: dict[str, float | None] | None, form: str, interval: Callable[[float, float], str]) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    value, low, high = number(estimate["value"], form), estimate["low"], estimate["high"]
    return value if low is None or high is None else f"{value} {interval(low, high)}"


def signed(form: str) -> str:
    """The form of a difference of two such numbers."""
    return form.replace("{:,", "{:").replace("{:+", "{:").replace("{:", "{:+")


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [heading, *rows]
    return "\n".join(
        f"| {' | '.join(line)} |" for line in [lines[0], ["---", *["---:"] * (len(heading) - 1)], *lines[1:]]
    )


def pairs_table(document: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """What changes from each model to each later one."""
    pairs = document.get("pairs", [])
    if not pairs:
        return []
    named = [row for row in rows if row[0] in _COMPARED and row[0] in pairs[0]["metrics"]]
    lines = [
        [
            f"{escaped(pair['from'])} → {escaped(pair['to'])}",
            *(cell(pair["metrics"][name], signed(form)) for name, _, form in named),
        ]
        for pair in pairs
    ]
    said = (
        "The second model less the first, at the same positions. Each interval holds for its own pair; of many pairs "
        "one in twenty misses."
    )
    return ["## Every two models", said, table(["", *(title for _, title, _ in named)], lines)]


def control_table(document: dict[str, Any]) -> list[str]:
    """What the teacher has brought: the student between its control and the teacher."""
    if "control" not in document:
        return []
    control = document["control"]
    titles = {"kl": "KL to the teacher", "nll": "-log p of the real token"}
    lines = [
        [titles[name], cell(own["gap"], "{:.4f}"), cell(own["share"], "{:.1%}") or "no gap to close"]
        for name, own in control["closed"].items()
    ]
    said = (
        f"{escaped(control['label'])} is {escaped(control['student'])} trained again with {control['loss']}: the same "
        "student before training, documents, order, steps and seed. The gap is from it to the teacher, in nats/token."
    )
    return ["## What the teacher brought", said, table(["", "gap", f"closed by {escaped(control['student'])}"], lines)]


def draft_table(document: dict[str, Any]) -> list[str]:
    """Tokens of a step of speculative decoding with each model as the draft."""
    models = [model for model in document["models"] if model.get("speculative")]
    if not models:
        return []
    lines = [
        [
            f"{drafts['drafted']} drafted, {way}",
            *(_step(model["speculative"][number][way]) for model in models),
        ]
        for number, drafts in enumerate(models[0]["speculative"])
        for way in ("sampled", "greedy")
    ]
    said = (
        "Expected tokens of a step of speculative decoding, the teacher's own one included, were drafts kept "
        "independently of each other on texts like these."
    )
    return ["## As a draft model", said, table(["", *(escaped(model["label"]) for model in models)], lines)]


def _step(step: dict[str, float | None]) -> str:
    if "value" in step:
        return cell(step, "{:.2f}")
    return f"between {step['low']:.2f} and {step['high']:.2f}"


def texts_table(document: dict[str, Any]) -> list[str]:
    """What the models write after prompts of the documents."""
    if "generation" not in document:
        return []
    generation = document["generation"]
    models = [model for model in document["models"] if "generation" in model]
    columns = [generation["recorded"], *(model["generation"] for model in models)]
    lines = [[title, *(_of_texts(own, name, form) for own in columns)] for name, title, form in _TEXTS]
    said = (
        f"Greedy texts after {counted(generation['prompts'], 'prompt')} of held-out documents, at most twice as long "
        f"as the recorded answer, or {LEAST_TOKENS} tokens where that is more. A text loops if it ends in the same "
        "piece three times or more."
    )
    return ["## What they write", said, table(["", "recorded", *(escaped(model["label"]) for model in models)], lines)]


def _of_texts(own: dict[str, Any], name: str, form: str) -> str:
    """A figure of texts; whoever wrote no word, or one at most, has no share of words that are new."""
    return "none written" if name in own and own[name] is None else cell(own.get(name), form)


def cost_table(document: dict[str, Any]) -> list[str]:
    """What teacher and models cost on this machine."""
    if "cost" not in document:
        return []
    on, models = document["cost"]["machine"], document["models"]
    columns = [document["cost"]["teacher"], *(model["cost"] for model in models)]
    lines = [[title, *("" if own is None else form(own[name]) for own in columns)] for name, title, form in _COSTS]
    said = (
        f"On {on['device']}, {counted(on['threads'], 'thread')}, {on['dtype']}: one text of up to {on['read_tokens']} "
        f"tokens read in one pass, up to {on['written_tokens']} tokens written one by one; medians of {on['repeats']}. "
        "Memory is the most held for weights and work."
    )
    return ["## Cost", said, table(["", "teacher", *(escaped(model["label"]) for model in models)], lines)]


def bucket_tables(document: dict[str, Any]) -> list[str]:
    """The KL where the teacher is sure or in doubt, and at rare and frequent tokens."""
    buckets = document["buckets"]
    labels = [label for bucket in buckets["entropy"][:1] for label in bucket["models"]]
    if not labels:
        return []
    what = "KL to the teacher" if buckets["metric"] == "kl" else "KL of head and tail bucket (lower bound)"
    heading = ["positions", "of documents", *map(escaped, labels)]
    return [
        "## Where they differ",
        f"{what}, nats/token, by the teacher's entropy (nats; buckets of equally many positions):",
        table(["teacher entropy", *heading], [_bucket(bucket, "{:.2f}") for bucket in buckets["entropy"]]),
        "By how often the real token occurs among the positions of this report:",
        table(["occurrences", *heading], [_bucket(bucket, "{:,.0f}") for bucket in buckets["frequency"]]),
    ]


def _bucket(bucket: dict[str, Any], form: str) -> list[str]:
    ends = f"{form.format(bucket['low'])} to {form.format(bucket['high'])}"
    cells = [cell(estimate, "{:.4f}") for estimate in bucket["models"].values()]
    return [ends, f"{bucket['positions']:,}", f"{bucket['documents']:,}", *cells]
