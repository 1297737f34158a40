"""What a completed generation lacks: rows that were left out, by which step and what to do; corpora without a row."""

from collections.abc import Iterator, Mapping
from typing import Final

from logitcask_schemas.api.generation import Generation

ADVICE: Final[Mapping[str, str]] = {
    "unfinished": "raise max_tokens: their texts were cut off",
    "unparsed_answer": "look at a few texts with `generate show --step`, then change template, marker or `answer`",
    "wrong_answer": "more samples (--n), demonstrations, or a stronger teacher",
    "no_reference": "give the line the field that `check` names, with a value that can be compared",
    "no_match": "look at a few texts with `generate show --step`, then change the pattern or the template",
    "no_majority": "more samples (--n), or a lower min_share",
    "duplicate": "raise rouge_l to keep texts that are more alike",
    "unknown_field": "give the line the field that the template reads, or take another template",
    "prompt_too_long": "shorten the line, show fewer demonstrations, or lower max_tokens",
    "too_few_demonstrations": "lower k, or give a larger file of demonstrations",
    "not_accepted": "look at the verdicts with `generate show --step`, then change `accept` or the judge's template",
    "budget_spent": "raise --budget",
    "teacher_failed": "read the reasons with `jobs errors`",
    "empty_completion": "keep rows with `min_tokens: 1`",
}
"""By code. What a vote or a bound leaves out on purpose needs none."""


def dropped_rows(generation: Generation) -> Iterator[str]:
    """A line for each step and code: how many, where, and what to do. Empty until the generation has ended."""
    for entry in generation.rows.dropped_by_step:
        advice = f"; {ADVICE[entry.code]}" if entry.code in ADVICE else ""
        yield f"{entry.rows:,} left out: {entry.code}, {_place(generation, entry.step)}{advice}"


def missing_corpora(generation: Generation) -> Iterator[str]:
    """A line for each suffix of a completed generation that has no corpus."""
    if generation.status != "completed":
        return
    written = {corpus.suffix for corpus in generation.corpora}
    for suffix in dict.fromkeys(emit.suffix for emit in generation.emit):
        if suffix not in written:
            yield f"no corpus{f' ({suffix})' if suffix else ''}: no row could be written for it"


def _place(generation: Generation, step: int) -> str:
    if step < 0:
        return "as the line was read"
    if step >= len(generation.steps):
        return "as it was written"
    return f"step {step} ({generation.steps[step].kind})"
