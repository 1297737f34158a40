"""Loss on the assistant's turns of conversations."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.registry import register
from logitcask_consumer.weights.spans import TokenIds, inside_spans, tokenise
from logitcask_consumer.weights.weight import Positions, RecordWeight, WeightParameterError

_USER, _ASSISTANT = "first question", "first answer"
_EXPLICIT: Final = (
    '; give both texts: assistant_only:after="TEXT BEFORE THE ASSISTANT\'S WORDS",until="TEXT THAT ENDS THE TURN"'
)


@register
@dataclass(frozen=True, kw_only=True)
class AssistantOnly(RecordWeight):
    """1 for the tokens of the assistant's turns, the end of the turn among them, 0 for all others.

    A turn runs from the text `after` to the next text `until`, which is trained too: the student must learn to stop.
    Without both they come from the tokenizer's chat template: what it adds as generation prompt, and what it puts
    behind an assistant's message. A position counts by the token it predicts. Texts are looked for as tokens; a
    document without a turn is not trained.
    """

    name: ClassVar[str] = "assistant_only"
    after: str = ""
    until: str = ""
    after_ids: TokenIds = field(default=(), repr=False)
    until_ids: TokenIds = field(default=(), repr=False)

    def bind(self, tokenizer: Any) -> Self:
        """Find the turn's limits and tokenise them; see `Weight.bind`."""
        if bool(self.after) != bool(self.until):
            raise WeightParameterError("weight 'assistant_only' takes after and until together" + _EXPLICIT)
        after, until = (self.after, self.until) if self.after else _from_template(tokenizer)
        return replace(
            self,
            after_ids=tokenise(tokenizer, after, what="assistant_only:after"),
            until_ids=tokenise(tokenizer, until, what="assistant_only:until"),
        )

    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """See `RecordWeight.of`."""
        assert self.after_ids, "bind comes first"
        inside_L = inside_spans(positions.token_ids_L, positions.token_offsets_W1, self.after_ids, self.until_ids)
        return inside_L[positions.targets_P]


def _from_template(tokenizer: Any) -> tuple[str, str]:
    """The generation prompt, and what ends an assistant's message."""
    if not getattr(tokenizer, "chat_template", None):
        raise WeightParameterError("weight 'assistant_only': the student's tokenizer has no chat template" + _EXPLICIT)
    question = [{"role": "user", "content": _USER}]
    answered = [*question, {"role": "assistant", "content": _ASSISTANT}]
    asked = tokenizer.apply_chat_template(question, tokenize=False)
    prompted = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    after, until = prompted.removeprefix(asked), whole.rpartition(_ASSISTANT)[2].strip()
    if not prompted.startswith(asked) or not after.strip() or not until:
        raise WeightParameterError(
            "weight 'assistant_only': the chat template of the student's tokenizer marks no start and end of the "
            "assistant's turns" + _EXPLICIT
        )
    return after, until
