"""Pre-tokenised rows as trainers write them: `input_ids` with `attention_mask` and `labels`, padded or not.

Padding is what the mask says (0 at either end) and is cut off. Labels are never padding by themselves: -100 also stands
on prompts. Where a label is not -100 it must be the token at its own place, as transformers' collators write it, and
the tokens so labelled are the document's answers.
"""

from itertools import groupby
from typing import Any, NoReturn

from logitcask_services.corpora.line_problems import LineProblem, kind_of_value

IGNORED = -100
"""The label of a token that is not trained."""
_RUN = 8
"""Equal tokens at an end from which on a row without a mask looks padded."""
_UNTRAINED_RUNS = {"last": 2, "first": 4}
"""The same, where they are labelled IGNORED; a prompt may well begin with two equal tokens."""


def read_row(entry: dict[str, Any]) -> tuple[list[int], tuple[tuple[int, int], ...] | None, tuple[str, ...]]:
    """Ids without padding, ranges of answers (None without labels), notes. Raises LineProblem."""
    ids = _integers(entry["input_ids"], "input_ids")
    if not ids:
        raise LineProblem("empty", "`input_ids` is empty; there is nothing to capture")
    mask, labels = _column(entry, "attention_mask", ids), _column(entry, "labels", ids)
    if labels is not None:
        _check_labels(ids, labels)
    notes: tuple[str, ...] = ()
    if mask is not None:
        start, stop = _kept(mask)
        if stop - start < len(ids):
            notes = ("padding_removed",)
        if labels is not None and any(label != IGNORED for label in (*labels[:start], *labels[stop:])):
            raise LineProblem("bad_labels", "`labels` trains tokens that `attention_mask` hides; mend one of the two")
        ids = ids[start:stop]
        labels = labels[start:stop] if labels is not None else None
    elif entry.get("recorded") is None:  # which says that there is no padding
        notes = _suspicion(ids, labels)
    if labels is None:
        return ids, None, notes
    answers = _ranges(labels)
    return ids, answers, notes if answers else (*notes, "no_answer")


def read_context(entry: dict[str, Any]) -> list[int] | None:
    """Ids that the teacher reads before the row's; None where there are none. Raises LineProblem."""
    values = entry.get("context_ids")
    return None if values is None else _integers(values, "context_ids") or None


def read_recorded(entry: dict[str, Any], num_tokens: int) -> tuple[tuple[int, int], ...] | None:
    """Ranges [start, stop) of the positions to record, as the row says them; None where it does not.

    Raises:
        LineProblem: they do not ascend, are empty or reach beyond the row's positions, or there is padding beside them.
    """
    if (values := entry.get("recorded")) is None:
        return None
    if entry.get("attention_mask") is not None:
        raise LineProblem("bad_recorded", "`recorded` counts positions of a row without padding; cut the row first")
    ranges = [_integers(pair, f"recorded[{at}]") for at, pair in enumerate(_pairs(values))]
    after = 0
    for at, (start, stop) in enumerate(ranges):
        if not after <= start < stop <= num_tokens - 1:
            raise LineProblem(
                "bad_recorded",
                f"`recorded[{at}]` is [{str(start)[:24]}, {str(stop)[:24]}]; expected a range [start, stop) of the "
                f"{num_tokens - 1} positions that {num_tokens} tokens have, from {after} on",
            )
        after = stop
    return tuple((start, stop) for start, stop in ranges)


def read_replaced(
    entry: dict[str, Any],
    num_tokens: int,
    *,
    context_ids: list[int] | None,
    recorded: tuple[tuple[int, int], ...] | None,
) -> int:
    """How many of the row's first tokens the context stands in place of, 0 where it does not say.

    The teacher reads the context, then the tokens from there on. So the first token that it can say something about is
    the first of these.

    Args:
        entry: the row.
        num_tokens: of the row, without padding.
        context_ids: see `read_context`.
        recorded: see `read_recorded`.

    Raises:
        LineProblem: it is no number of the row's tokens, there is no context or there is padding, or a position is to
            be recorded whose next token the teacher does not read.
    """
    replaced = entry.get("context_replaces")
    if replaced is None:
        return 0
    if type(replaced) is not int:
        raise LineProblem(
            "wrong_type", f"`context_replaces` is a JSON {kind_of_value(replaced)}; expected a number of tokens"
        )
    if context_ids is None:
        raise LineProblem(
            "bad_context_replaces", "`context_replaces` has no `context_ids` beside it; give them, or leave it out"
        )
    if entry.get("attention_mask") is not None:
        raise LineProblem(
            "bad_context_replaces", "`context_replaces` counts tokens of a row without padding; cut the row first"
        )
    most = num_tokens - 1 if recorded is None else recorded[0][0] + 1
    if not 0 <= replaced <= most:
        until = "the last token" if recorded is None else "the first token whose position is `recorded`"
        raise LineProblem(
            "bad_context_replaces",
            f"`context_replaces` is {str(replaced)[:24]}; expected 0 to {most}: the teacher reads {until} of the row",
        )
    return replaced


def _pairs(values: Any) -> list[Any]:
    pairs = isinstance(values, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in values)
    if not pairs or not values:
        raise LineProblem(
            "bad_recorded", "`recorded` should be a list of ranges [start, stop] of positions, at least one"
        )
    return list(values)


def _integers(values: Any, name: str) -> list[int]:
    if not isinstance(values, list):
        raise LineProblem("wrong_type", f"`{name}` is a JSON {kind_of_value(values)}; expected a list of integers")
    if values and set(map(type, values)) != {int}:
        at = next(at for at, value in enumerate(values) if type(value) is not int)
        raise LineProblem("wrong_type", f"`{name}[{at}]` is a JSON {kind_of_value(values[at])}; expected an integer")
    return values


def _column(entry: dict[str, Any], name: str, ids: list[int]) -> list[int] | None:
    if (values := entry.get(name)) is None:
        return None
    if name == "attention_mask" and isinstance(values, list):
        values = [int(value) if isinstance(value, bool) or value in (0.0, 1.0) else value for value in values]
    column = _integers(values, name)
    if len(column) != len(ids):
        raise LineProblem("unequal_lengths", f"`{name}` has {len(column)} values for {len(ids)} `input_ids`")
    return column


def _kept(mask: list[int]) -> tuple[int, int]:
    """The window of ones between padding on both sides."""
    if not set(mask) <= {0, 1}:
        at = next(at for at, value in enumerate(mask) if value not in (0, 1))
        raise LineProblem("bad_mask", f"`attention_mask[{at}]` is {str(mask[at])[:24]}; expected 0 or 1")
    if 1 not in mask:
        raise LineProblem("empty", "`attention_mask` hides every token; there is nothing to capture")
    start, stop = mask.index(1), len(mask) - mask[::-1].index(1)
    if 0 in mask[start:stop]:
        at = mask.index(0, start)
        raise LineProblem(
            "bad_mask",
            f"`attention_mask` has a hole at token {at}: padding stands at the ends of a row. Leave the tokens out, "
            "or send what lies before and behind as documents of their own",
        )
    return start, stop


def _check_labels(ids: list[int], labels: list[int]) -> None:
    for at, (label, token) in enumerate(zip(labels, ids, strict=True)):
        if label not in (IGNORED, token):
            _refuse_label(ids, labels, at)


def _refuse_label(ids: list[int], labels: list[int], at: int) -> NoReturn:
    shifted = all(label in (IGNORED, token) for label, token in zip(labels, ids[1:], strict=False))
    why = "; they are shifted by one token, which the model does by itself" if shifted else ""
    raise LineProblem(
        "bad_labels",
        f"`labels[{at}]` is {str(labels[at])[:24]} where `input_ids[{at}]` is {str(ids[at])[:24]}; expected the same "
        f"id, or {IGNORED} where nothing is trained{why}",
    )


def _suspicion(ids: list[int], labels: list[int] | None) -> tuple[str, ...]:
    """What a row without a mask looks like. Raises LineProblem where the labels say that its end may be padding."""
    for side, row, targets in (("last", ids[::-1], (labels or ids)[::-1]), ("first", ids, labels or ids)):
        same = next((at for at, token in enumerate(row) if token != row[0]), len(row))
        untrained = next((at for at, label in enumerate(targets) if label != IGNORED), len(row)) if labels else 0
        if (run := min(same, untrained)) >= _UNTRAINED_RUNS[side]:
            raise LineProblem(
                "padding_unclear",
                f"the {side} {run} `input_ids` are all {str(row[0])[:24]} with the label {IGNORED}, and there is no "
                "`attention_mask`: is this padding? Send the mask (0 on padding), or cut the row",
            )
        if same >= _RUN:
            return ("looks_padded",)
    return ()


def _ranges(labels: list[int]) -> tuple[tuple[int, int], ...]:
    ranges, start = [], 0
    for ignored, group in groupby(labels, IGNORED.__eq__):
        stop = start + sum(1 for _ in group)
        if not ignored:
            ranges.append((start, stop))
        start = stop
    return tuple(ranges)
