"""From a line's tokens to documents: cut to length, and which of their positions are recorded."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from logitcask_schemas.api.requests import LossOn, Overflow
from logitcask_schemas.record.extent import WHOLE, Extent
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.lines import ChatLine, ParsedLine
from logitcask_services.corpora.spans import Span
from logitcask_services.corpora.tokenizer import Tokenised


def fit(token_ids: list[int], limit: int, policy: Overflow) -> list[list[int]]:
    """Pieces of at most `limit` tokens (at least MIN_LENGTH) and at least 2.

    truncate keeps the first `limit` tokens; split cuts end to end, every token once, and shortens the last piece but
    one where a single token would remain; skip raises LineProblem `too_long`.
    """
    total = len(token_ids)
    if total <= limit:
        return [token_ids]
    if policy == "truncate":
        return [token_ids[:limit]]
    if policy == "skip":
        raise LineProblem(
            "too_long",
            f"the document has {total} tokens, the limit is {limit}; it was skipped as asked "
            "(overflow: truncate or split would keep it)",
        )
    starts = list(range(0, total, limit))
    if total - starts[-1] == 1:
        starts[-1] -= 1
    return [token_ids[start:stop] for start, stop in zip(starts, [*starts[1:], total], strict=True)]


def fit_under(
    token_ids: list[int], context: ContextTokens, *, max_length: int, window: int, policy: Overflow
) -> list[list[int]]:
    """The one piece that the teacher reads under a context, see `fit`.

    Args:
        token_ids: the document's.
        context: what it is read under.
        max_length: most tokens of the document.
        window: most tokens that the teacher reads at once, those of the context among them.
        policy: what becomes of a longer document; it is not split, as its second half was not said under the context
            alone.

    Raises:
        LineProblem: the context leaves no room, or the document is too long and may not be cut.
    """
    room, size = window - context.shift, len(context.token_ids_C)
    if room < max(2, context.replaced + 1):
        raise LineProblem(
            "context_too_long",
            f"the context has {size} tokens, and the teacher reads {window} at once: no room is left for a document. "
            "Shorten the context",
        )
    limit = min(max_length, room)
    if policy == "skip" and len(token_ids) > limit:
        raise LineProblem(
            "too_long",
            f"the document has {len(token_ids)} tokens under a context of {size}, the limit is {limit}; it was skipped "
            "as asked (overflow: truncate would keep its beginning)",
        )
    if policy == "split" and len(token_ids) > limit:
        raise LineProblem(
            "too_long_to_split",
            f"the document has {len(token_ids)} tokens under a context of {size}, the limit is {limit}; a document "
            "under a context is not split. Use overflow `truncate`, or shorten one of the two",
        )
    return fit(token_ids, limit, policy)


def cut_spans(spans: Sequence[Span], start: int, stop: int) -> list[Span]:
    """The parts of a document's ranges that lie in its piece [start, stop), counted from the piece's start.

    `spans` ascend and do not overlap; those of other pieces are not looked at.
    """
    inside = spans[bisect_right(spans, start, key=itemgetter(1)) : bisect_left(spans, stop, key=itemgetter(0))]
    return [(max(first, start) - start, min(last, stop) - start) for first, last in inside]


def trained_tokens(line: ParsedLine, document: Tokenised, loss_on: LossOn) -> Sequence[Span] | None:
    """Ranges of the tokens whose positions are recorded; None: all of them.

    Args:
        line: where the document comes from.
        document: its tokens.
        loss_on: `assistant`: all answers; `completion`: what was written last, that is a prompt's completion, labelled
            tokens, or the last answer of `messages` (turns that touch are one).

    Raises:
        LineProblem: the line does not tell what is an answer, or has none.
    """
    if document.recorded is not None:
        return document.recorded
    if loss_on == "all":
        return None
    if document.answers is None:
        raise LineProblem(
            "answers_unknown",
            f"loss_on is `{loss_on}`, and the line does not tell which tokens are answers; send `messages`, `prompt` "
            "with `completion`, or `input_ids` with `labels`",
        )
    if not document.answers:
        if "answers_unproved" in document.notes:
            raise LineProblem(
                "answers_unproved",
                f"loss_on is `{loss_on}`, and it is not proved which tokens are answers; `logitcask submit --dry-run` "
                "shows the line as the template renders it",
            )
        raise LineProblem("no_answer", f"loss_on is `{loss_on}`, and nothing in the line is an answer")
    whole_dialogue = isinstance(line, ChatLine) and not line.is_completion
    return document.answers[-1:] if loss_on == "completion" and whole_dialogue else document.answers


def extent_of(num_tokens: int, trained: Sequence[Span] | None, context: ContextTokens | None) -> Extent | None:
    """What of a piece is recorded; None where that is nothing.

    Args:
        num_tokens: of the piece.
        trained: ranges of tokens; a token's record is that of the position before it. None: all.
        context: what the teacher reads before it.
    """
    if trained is None and context is None:
        return WHOLE
    first = context.first_position if context is not None else 0
    recorded_P = np.zeros(num_tokens - 1, dtype=np.bool_)
    for start, stop in [(0, num_tokens)] if trained is None else trained:
        recorded_P[max(start - 1, first) : stop - 1] = True
    if not recorded_P.any():
        return None
    return Extent.of_mask(recorded_P, context.identity() if context is not None else None)
