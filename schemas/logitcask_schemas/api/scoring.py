"""Wire types of scoring now: sequences in, what the teacher says of them out.

Position i of a sequence predicts its token i + 1. Values in nats; null stands for minus infinity.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from logitcask_schemas.api.objects import ApiObject
from logitcask_schemas.api.requests import TeacherName
from logitcask_schemas.record.capture_spec import MAX_ENTRIES, CaptureSpec

MAX_SEQUENCES: Final = 1024
MAX_TIMEOUT: Final = 600.0
DEFAULT_TIMEOUT: Final = 60.0
MAX_PROMPT_LOGPROBS: Final = MAX_ENTRIES - 1
"""The head of a record holds these and the next token."""

TokenId = Annotated[int, Field(ge=0, lt=2**24, strict=True)]
Tokens = list[TokenId]


class ScoreRequest(BaseModel):
    """Which sequences to score, and what to keep of each distribution."""

    model_config = ConfigDict(extra="forbid")

    input_ids: Annotated[list[Tokens], Field(min_length=1, max_length=MAX_SEQUENCES)]
    first: Annotated[
        list[Annotated[int, Field(ge=0, strict=True)]] | None,
        Field(description="Per sequence, its first position with a record: p - 1 after a prompt of p tokens."),
    ] = None
    context_ids: Annotated[
        list[Tokens] | None, Field(description="Per sequence, what the teacher reads before it; empty for nothing.")
    ] = None
    capture: CaptureSpec = CaptureSpec()
    teacher: Annotated[TeacherName | None, Field(description="Who scores; default: the one that is loaded.")] = None
    timeout: Annotated[
        float, Field(gt=0, le=MAX_TIMEOUT, allow_inf_nan=False, description="Seconds after which nobody waits for it.")
    ] = DEFAULT_TIMEOUT


Values = list[float | None]


class SequenceScores(ApiObject):
    """What the teacher says at the positions of one sequence from `first` on; one entry per position in every list."""

    first: int
    head_ids: list[list[int]]
    head_logprobs: list[Values]
    next_logprobs: Annotated[Values, Field(description="Log-probability of the token that comes next.")]
    tail_mass: Annotated[list[float], Field(description="Probability of all that is not in the head.")]
    entropy: Values
    tail_ids: Annotated[list[list[int]], Field(description="Draws from the tail; n of them stand for its mass / n.")]
    tail_logprobs: list[Values] | None = None
    log_z: Annotated[
        list[Values] | None, Field(description="Log of the sum of t^(1/T), per temperature of the capture spec.")
    ] = None


class Scores(ApiObject):
    """Scores of the sequences of a request, in its order."""

    object: Literal["scores"] = "scores"
    model: str
    data: list[SequenceScores]


class CompletionRequest(BaseModel):
    """What TRL's trainers ask of a teacher's server: the top log-probabilities at every token of given sequences.

    A subset of the completions of OpenAI and vLLM; nothing is generated.
    """

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str | None, Field(description="The id that /v1/models gives.")] = None
    prompt: Annotated[
        list[Annotated[Tokens, Field(min_length=1)]] | Annotated[Tokens, Field(min_length=1)],
        Field(description="Token ids of one sequence, or of several."),
    ]
    max_tokens: Annotated[int, Field(ge=0, description="0 or 1; the one token is not generated.")] = 1
    temperature: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_PROMPT_LOGPROBS)]

    @property
    def sequences(self) -> list[Tokens]:
        """The prompt as sequences."""
        several = [each for each in self.prompt if isinstance(each, list)]
        return several or [[each for each in self.prompt if isinstance(each, int)]]


class PromptLogprob(BaseModel):
    """One token at one place."""

    logprob: float
    rank: Annotated[int, Field(description="1 for the most probable; one more than asked for where it is beyond.")]
    decoded_token: None = None


class CompletionChoice(BaseModel):
    """One sequence's answer."""

    index: int
    text: Literal[""] = ""
    finish_reason: Literal["length"] = "length"
    logprobs: None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None]


class CompletionUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: Literal[0] = 0
    total_tokens: int


class Completion(BaseModel):
    """The answer, as OpenAI's clients know it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage
