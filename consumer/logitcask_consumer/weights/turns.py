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
_REASONS: Final = ("Seven thoughts came first.", "Some doubt remains here.")
"""Of the answers, in the message's member `reasoning_content`."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendering:
    """A conversation as the template writes it."""

    text: str
    turns: Sequence[tuple[str, str]]
    """Its questions and answers."""
    exact: bool
    """Whether nothing but the answers may come out; else the questions may not."""


def proved_limits(tokenizer: Any) -> TurnLimits:
    """The limits that the tokenizer's chat template suggests, where they give exactly the answers.

    Tried in turn: the generation prompt, what stands between the rendering of a question and its answer, and what
    stands between their words; each with what stands behind the last answer of a conversation.

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
        fault = next(filter(None, (_fault(tokenizer, limits, rendering) for rendering in conversations)), None)
        if fault is None:
            return limits
        faults.append(f"between {json.dumps(after)} and {json.dumps(until)} {fault}")
    reason = "; ".join(faults[:2]) or "it marks no start and end of a turn"
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
    between = before.rpartition(question)[2]
    texts = [text.removeprefix(asked) for text in (prompted, before) if text.startswith(asked)]
    # A space before an answer is mostly part of its first token.
    for after in (*texts, between, between.rstrip(" ")):
        if after.strip() and until:
            yield after, until


def _conversations(tokenizer: Any) -> Iterator[_Rendering]:
    for turns in _CONVERSATIONS:
        messages = []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        plain = _rendered(tokenizer, messages)
        yield _Rendering(text=plain, turns=turns, exact=True)
        for message, reason in zip(messages[1::2], _REASONS, strict=True):
            message["reasoning_content"] = reason
        reasoned = _rendered(tokenizer, messages)
        if reasoned != plain:
            # Whether what is written around the reasons is the assistant's is for each template to say.
            yield _Rendering(text=reasoned, turns=turns, exact=False)


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def _fault(tokenizer: Any, limits: TurnLimits, rendering: _Rendering) -> str | None:
    """What is wrong with the spans of one rendering; None where they are the answers and what ends them."""
    answers, text = [], rendering.text
    for _, answer in rendering.turns:
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
    questions = [(start := text.find(question), start + len(question)) for question, _ in rendering.turns]
    must_L = _touching(text, encoded["offset_mapping"], answers)
    other_L = _touching(text, encoded["offset_mapping"], _others(answers, len(text)) if rendering.exact else questions)
    if (must_L & ~inside_L).any():
        return f"{_quoted(tokenizer, ids_L[must_L & ~inside_L])} of the answers is missing"
    if (inside_L & other_L).any():
        return f"{_quoted(tokenizer, ids_L[inside_L & other_L])} comes out that is no answer"
    return None


def _others(parts: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """What lies between parts of a text, before the first and behind the last."""
    edges = [0, *(edge for part in parts for edge in part), size]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _touching(text: str, offsets: Sequence[tuple[int, int]], parts: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which tokens hold a character, other than white space, of some parts of the text, [L]."""
    letter = np.array([not character.isspace() for character in text], dtype=np.bool_)
    chosen = np.zeros(len(letter), dtype=np.bool_)
    for start, stop in parts:
        chosen[start:stop] = letter[start:stop]
    return np.array([chosen[start:stop].any() for start, stop in offsets], dtype=np.bool_)


def _quoted(tokenizer: Any, ids: NDArray[np.uint32]) -> str:
    text = str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
    return json.dumps(text if len(text) <= 60 else text[:57] + "...", ensure_ascii=False)
