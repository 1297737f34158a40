"""The texts between which the assistant speaks, from a chat template, proved on conversations before they are used.

For documents that do not say which of their tokens are answers. Whether two texts around a turn can tell that at all
depends on the template: some end the last turn unlike the others, some put text before an answer in one place and not
in another. So the texts are tried on renderings of known conversations, and exactly the answers must come out.

Shape legend: L tokens of a rendering.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jinja2
import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.spans import TokenIds, inside_spans, tokenise
from logitcask_consumer.weights.weight import WeightParameterError

_CONVERSATIONS: Final = (
    (
        ("What is the first colour?", "Answer one is violet."),
        ("And which comes next?", "Reply two, after that: orange."),
    ),
    (("count 17 ships", "23 boats in a row"), ("name (some) trees", "(elm) and yew")),
)
"""Questions and answers, all different; the answers begin with a capital, a digit and a bracket."""
_TEMPLATE_ERRORS: Final = (jinja2.TemplateError, ValueError, TypeError, LookupError, AttributeError)
"""What a template can raise that cannot render a conversation; its expressions are Python's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """What stands before the assistant's words, and what ends them and is trained too."""

    after: str
    until: str
    after_ids: TokenIds
    until_ids: TokenIds

    @classmethod
    def of_texts(cls, tokenizer: Any, after: str, until: str) -> "TurnLimits":
        """These texts as tokens; WeightParameterError where the tokenizer has none for them."""
        return cls(
            after=after,
            until=until,
            after_ids=tokenise(tokenizer, after, what="assistant_only:after"),
            until_ids=tokenise(tokenizer, until, what="assistant_only:until"),
        )


def proved_limits(tokenizer: Any) -> TurnLimits:
    """The limits that the tokenizer's chat template suggests, where they give exactly the answers.

    Tried in turn: the generation prompt, and what really stands before the first answer of a conversation; each with
    what stands behind its last answer.

    Raises:
        WeightParameterError: the tokenizer has no template, or none of the limits is right; says what came out.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise WeightParameterError("weight 'assistant_only': the student's tokenizer has no chat template")
    try:
        conversations = list(_conversations(tokenizer))
        candidates = list(dict.fromkeys(_candidates(tokenizer)))
    except _TEMPLATE_ERRORS as error:
        raise WeightParameterError(
            f"weight 'assistant_only': the chat template of the student's tokenizer cannot render a question and an "
            f"answer ({type(error).__name__}: {error})"
        ) from error
    faults = []
    for after, until in candidates:
        limits = TurnLimits.of_texts(tokenizer, after, until)
        fault = next(filter(None, (_fault(tokenizer, limits, *one) for one in conversations)), None)
        if fault is None:
            return limits
        faults.append(f"between {json.dumps(after)} and {json.dumps(until)} {fault}")
    reason = "; ".join(faults) or "it marks no start and end of a turn"
    raise WeightParameterError(
        "weight 'assistant_only': the chat template of the student's tokenizer does not tell the assistant's turns by "
        f"the text around them: {reason}"
    )


def _candidates(tokenizer: Any) -> Iterator[tuple[str, str]]:
    (question, answer), _ = _CONVERSATIONS[0]
    asked_messages = [{"role": "user", "content": question}]
    asked = _rendered(tokenizer, asked_messages)
    prompted = _rendered(tokenizer, asked_messages, add_generation_prompt=True)
    whole = _rendered(tokenizer, [*asked_messages, {"role": "assistant", "content": answer}])
    before, _, behind = whole.rpartition(answer)
    until = behind.strip()
    for text in (prompted, before):
        after = text.removeprefix(asked)
        if text.startswith(asked) and after.strip() and until:
            yield after, until


def _conversations(tokenizer: Any) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
    """Renderings, with the questions and answers in them."""
    for turns in _CONVERSATIONS:
        messages = []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield _rendered(tokenizer, messages), turns


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def _fault(tokenizer: Any, limits: TurnLimits, text: str, turns: Sequence[tuple[str, str]]) -> str | None:
    """What is wrong with the spans of one rendering; None where they are exactly the answers and what ends them."""
    answers = []
    for _, answer in turns:
        if text.count(answer) != 1:
            return f"nothing can be told: an answer comes {text.count(answer)} times in the rendering"
        start = text.index(answer)
        stop = start + len(answer)
        end = text.find(limits.until, stop)
        if end < 0 or text[stop:end].strip():
            return f"the turn of {answer!r} does not end with that text"
        answers.append((start, end + len(limits.until)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids_L = np.array(encoded["input_ids"], dtype=np.uint32)
    inside_L = inside_spans(ids_L, np.array([0, len(ids_L)]), limits.after_ids, limits.until_ids)
    must_L, may_L = _expected(text, encoded["offset_mapping"], answers)
    if (must_L & ~inside_L).any():
        return f"{_quoted(tokenizer, ids_L[must_L & ~inside_L])} of the answers is missing"
    if (inside_L & ~may_L).any():
        return f"{_quoted(tokenizer, ids_L[inside_L & ~may_L])} comes out that is no answer"
    return None


def _expected(
    text: str, offsets: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tokens must be trained: those with a letter of an answer; and which may: these, and mere white space."""
    letter = np.array([not character.isspace() for character in text] + [False])
    answered = np.zeros(len(letter), dtype=np.bool_)
    for start, stop in answers:
        answered[start:stop] = True
    must = [(letter[a:b] & answered[a:b]).any() for a, b in offsets]
    other = [(letter[a:b] & ~answered[a:b]).any() for a, b in offsets]
    return np.array(must, dtype=np.bool_), ~np.array(other, dtype=np.bool_)


def _quoted(tokenizer: Any, ids: NDArray[np.uint32]) -> str:
    text = str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
    return json.dumps(text if len(text) <= 60 else text[:57] + "...", ensure_ascii=False)
