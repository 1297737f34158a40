"""Steps of a generation: rows in, rows out. A recipe is a list of them.

Teacher steps (`generate`, `score`, `verify`, `grow`) need the teacher; what it answers is kept. Row steps are pure.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FieldName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$", description="A field of a row.")]
TemplateName = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="A built-in template, or one of the operator's.")
]
Probability = Annotated[float, Field(ge=0, le=1)]
MOST_OF_A_ROUND = 65_536
"""Requests in one round of a step that grows."""


class StepBase(BaseModel):
    """Base of all steps."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sampling(StepBase):
    """How the teacher writes. Temperature 0 is greedy."""

    n: Annotated[int, Field(ge=1, le=64, description="Samples of each row.")] = 1
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1, description="0: all.")] = 0
    min_p: Probability = 0.0
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    min_tokens: Annotated[int, Field(ge=0, le=1 << 20, description="No end before so many.")] = 0
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...],
        Field(max_length=16, description="Texts that end a sample, beside the template's own; not part of it."),
    ] = ()

    @model_validator(mode="after")
    def _fits(self) -> "Sampling":
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n is {self.n} at temperature 0, which gives the same text each time; set a temperature")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        return self


class Demonstrations(StepBase):
    """Examples for a template, under the name `demonstrations`: a list of rows."""

    corpus_id: Annotated[
        str | None, Field(max_length=64, description="Where they are; null: the job's own corpus, the row left out.")
    ] = None
    k: Annotated[int, Field(ge=1, le=256)] = 4
    choose: Annotated[
        Literal["first", "seeded", "bm25", "field"],
        Field(
            description="`first` k; `seeded`: k drawn for each row from the job's seed; `bm25`: nearest by `query`; "
            "`field`: those that an earlier `score` step with `candidates` put into the field `query`."
        ),
    ] = "first"
    query: Annotated[FieldName, Field(description="Field that is compared (bm25) or holds them (field).")] = "question"


class Generate(StepBase):
    """The teacher writes. Each row becomes `n` rows, one for each sample, which holds the text in `into`."""

    kind: Literal["generate"] = "generate"
    template: TemplateName
    into: FieldName = "output"
    sampling: Sampling = Sampling()
    demonstrations: Demonstrations | None = None


class Score(StepBase):
    """The teacher's mean log-probability, in nats per token, of the text `of` after the template.

    With `candidates`, one score for each candidate as the only demonstration; `into` then holds the best `keep` of
    them, best first, and `<into>_scores` all scores in the order of the candidates (LLM-R).
    """

    kind: Literal["score"] = "score"
    template: TemplateName
    of: FieldName
    into: FieldName
    demonstrations: Demonstrations | None = None
    candidates: Demonstrations | None = None
    keep: Annotated[int, Field(ge=1, le=256)] = 1


class Verify(StepBase):
    """The teacher judges a row: its text must match `accept` (a regular expression, searched) for the row to stay."""

    kind: Literal["verify"] = "verify"
    template: TemplateName
    accept: Annotated[str, Field(min_length=1, max_length=1000)]
    into: FieldName = "verdict"
    sampling: Sampling = Sampling(max_tokens=64)
    demonstrations: Demonstrations | None = None
    otherwise: Literal["drop", "mark"] = "drop"

    @model_validator(mode="after")
    def _one_verdict(self) -> "Verify":
        if self.sampling.n != 1:
            raise ValueError("a row has one verdict: n must be 1")
        return self


class Parse(StepBase):
    """Find the answer in a text. `into` holds it; `rationale`, where given, what stands before it."""

    kind: Literal["parse"] = "parse"
    of: FieldName = "output"
    into: FieldName = "answer"
    answer: Annotated[
        Literal["number", "choice", "json", "regex", "text", "program", "list"],
        Field(
            description="`number`: the last one, or the one behind `marker`; `choice`: a letter A to Z likewise; "
            "`json`: an object; `regex`: group 1 (or all) of `pattern`; `text`: all, stripped; `program`: what its "
            "arithmetic computes; `list`: the items of a numbered list."
        ),
    ] = "number"
    marker: Annotated[str | None, Field(max_length=200, description="Text behind which the answer stands.")] = None
    pattern: Annotated[str | None, Field(max_length=1000)] = None
    rationale: FieldName | None = None
    otherwise: Annotated[Literal["drop", "mark"], Field(description="Where there is none: `mark` keeps null.")] = "drop"

    @model_validator(mode="after")
    def _has_pattern(self) -> "Parse":
        if (self.answer == "regex") != (self.pattern is not None):
            raise ValueError("`pattern` goes with answer `regex`, and only with it")
        return self


class Check(StepBase):
    """Compare a field with another. The row's `checks` say what came out."""

    kind: Literal["check"] = "check"
    of: FieldName = "answer"
    against: FieldName
    equal: Annotated[
        Literal["number", "text", "set"], Field(description="As numbers; as text without case and spaces; as lists.")
    ] = "number"
    otherwise: Literal["drop", "mark"] = "drop"


class Vote(StepBase):
    """Self-consistency: among the samples of one row, the answer most of them gave (the first of equals)."""

    kind: Literal["vote"] = "vote"
    by: FieldName = "answer"
    keep: Annotated[
        Literal["majority", "one", "all"],
        Field(description="Samples with that answer; the first of them; all of them, with what the vote said."),
    ] = "majority"
    min_share: Annotated[Probability, Field(description="Below it, no sample of the row stays.")] = 0.0
    into: Annotated[FieldName, Field(description="Holds the answer; `<into>_share` its share.")] = "majority"


class Keep(StepBase):
    """Drop rows that a bound excludes; bounds that are not given exclude none."""

    kind: Literal["keep"] = "keep"
    of: Annotated[FieldName, Field(description="The generated field that the bounds are about.")] = "output"
    finish: Annotated[Literal["stop", "length"] | None, Field(description="Why its text ended.")] = None
    min_tokens: Annotated[int | None, Field(ge=0)] = None
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    min_mean_logprob: Annotated[float | None, Field(le=0, description="Nats per token.")] = None
    matches: Annotated[str | None, Field(max_length=1000, description="Regular expression, searched.")] = None
    more: Annotated[FieldName | None, Field(description="Of two fields with numbers, this one must be larger,")] = None
    than: Annotated[FieldName | None, Field(description="than this one,")] = None
    by: Annotated[float, Field(description="by at least so much.")] = 0.0
    best: Annotated[
        int | None, Field(ge=1, description="Of the samples of one row, only so many: those with the largest `more`.")
    ] = None

    @model_validator(mode="after")
    def _pairs(self) -> "Keep":
        if (self.than is not None or self.best is not None) and self.more is None:
            raise ValueError("`than` and `best` need `more`, the field whose numbers are compared")
        if self.more is not None and self.than is None and self.best is None:
            raise ValueError("`more` needs `than` (another field) or `best` (how many samples)")
        return self


class Dedupe(StepBase):
    """Drop rows whose field is too like that of an earlier row."""

    kind: Literal["dedupe"] = "dedupe"
    field: FieldName = "output"
    rouge_l: Annotated[Probability, Field(description="ROUGE-L (F1 on words) above which a row goes; 1: equal.")] = 0.7


class Grow(StepBase):
    """Self-Instruct: the teacher writes new instructions like those of a pool, round by round, until there are enough.

    The rows before it are the seeds. Prompts of one round are made from the pool as it was when the round began: each
    shows `seeds_per_prompt` seeds and `own_per_prompt` rows of earlier rounds as `examples`. What is too like the pool
    is dropped. The rows behind it are the pool: seeds, too, where `with_seeds`.
    """

    kind: Literal["grow"] = "grow"
    template: TemplateName
    field: Annotated[FieldName, Field(description="What is grown, and compared.")] = "instruction"
    answer: Annotated[
        Literal["list", "text"], Field(description="A text holds a numbered list of new ones, or is one.")
    ] = "list"
    mode: Annotated[
        Literal["like", "evolve"],
        Field(description="`like` examples of the pool; `evolve`: each prompt rewrites one row (`parent`)."),
    ] = "like"
    sampling: Sampling = Sampling(temperature=0.7)
    seeds_per_prompt: Annotated[int, Field(ge=0, le=64)] = 6
    own_per_prompt: Annotated[int, Field(ge=0, le=64)] = 2
    prompts_per_round: Annotated[int, Field(ge=1, le=65_536)] = 32
    target: Annotated[int, Field(ge=1, le=10_000_000, description="Rows of the pool, seeds included.")]
    rounds_max: Annotated[int, Field(ge=1, le=1000)] = 20
    rouge_l: Probability = 0.7
    min_words: Annotated[int, Field(ge=1)] = 3
    max_words: Annotated[int, Field(ge=1)] = 150
    with_seeds: bool = False

    @model_validator(mode="after")
    def _round_fits(self) -> "Grow":
        requests = self.prompts_per_round * self.sampling.n
        if requests > MOST_OF_A_ROUND:
            raise ValueError(
                f"prompts_per_round {self.prompts_per_round} with n {self.sampling.n} are {requests:,} requests in a "
                f"round, which are in memory together; at most {MOST_OF_A_ROUND:,}"
            )
        return self


Step = Annotated[Generate | Score | Verify | Parse | Check | Vote | Keep | Dedupe | Grow, Field(discriminator="kind")]


class EmitRow(StepBase):
    """What a row gives the corpus that is written at the end.

    `completion` names a generated field, whose exact token ids are taken, or a template, which is rendered. `prompt` is
    the template that the student is asked with; null: the completion's own, without its demonstrations.
    """

    suffix: Annotated[
        str, Field(pattern=r"^[a-z0-9_-]{0,32}$", description="Of the cask's name; rows of one suffix are one corpus.")
    ] = ""
    prompt: TemplateName | None = None
    completion: FieldName | None = None
    completion_template: TemplateName | None = None
    context: Annotated[
        Literal["teacher", "none"],
        Field(
            description="What the teacher reads when its distributions are captured: all that it was asked with when "
            "it wrote the text, or what the student reads."
        ),
    ] = "teacher"

    @model_validator(mode="after")
    def _one_completion(self) -> "EmitRow":
        if (self.completion is None) == (self.completion_template is None):
            raise ValueError("give `completion` (a generated field) or `completion_template`, one of the two")
        if self.completion_template is not None and self.prompt is None:
            raise ValueError("a `completion_template` needs the `prompt` template that stands before it")
        if self.completion_template is not None and self.context == "teacher":
            raise ValueError("a `completion_template` has no context of the teacher's: set `context: none`")
        return self
