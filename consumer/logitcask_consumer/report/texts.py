"""What a model writes after the prompts of held-out documents: like the recorded answer, varied, or caught in a loop.

A document that says which of its tokens are answers is a prompt up to the first of these, which is the reference. Texts
are greedy, so that they depend on nothing but the model. Shape legend: D texts, one for each prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from logitcask_consumer.report.config import ReportError
from logitcask_consumer.report.estimates import DocumentBootstrap, share_right
from logitcask_consumer.student.checks import context_of
from logitcask_consumer.student.generation import ends_of, pad_of, plain_generation
from logitcask_schemas.cask import Cask
from logitcask_schemas.rouge_l import rouge_l, words_of

LEAST_TOKENS: Final = 32
"""A text may be twice as long as the recorded answer without its end, and at least as long as this."""
LOOP_TIMES: Final = 3
LOOP_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The beginning of a document, and what it goes on with."""

    document: int
    """Number in the casks."""
    ids: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenText:
    """A text without the token that ended it."""

    ids: list[int]
    text: str
    ended: bool
    """By a token that ends texts, not by its length."""


def prompts_of(casks: Sequence[Cask], count: int, *, longest: int | None, seed: int) -> list[Prompt]:
    """Some documents with an answer, drawn by a seed, in the order in which they lie.

    Args:
        casks: held-out.
        count: at most so many.
        longest: tokens of a prompt at most; None for any.
        seed: of the choice.

    Raises:
        ReportError: no document has an answer behind a prompt of this length.
    """
    numbers = [(cask, index) for cask in casks for index in range(len(cask))]
    prompts = list[Prompt]()
    for number in np.random.default_rng(seed).permutation(len(numbers)).tolist():
        cask, index = numbers[number]
        document = cask.read(index)
        ranges_R2 = document.answer_ranges_R2
        if ranges_R2 is None or not len(ranges_R2):
            continue
        start, stop = (int(end) for end in ranges_R2[0])
        if start > 0 and (longest is None or start <= longest):
            ids = document.token_ids_L.tolist()
            prompts.append(Prompt(document=number, ids=ids[:start], answer=ids[start:stop]))
        if len(prompts) == count:
            break
    if not prompts:
        raise _no_prompts(len(numbers))
    return sorted(prompts, key=lambda prompt: prompt.document)


def require_answers(casks: Sequence[Cask]) -> None:
    """Refuse casks of which no document can have an answer behind a prompt; reads no shard. Raises ReportError."""
    if not any(entry.answer_positions for cask in casks for entry in cask.entries):
        raise _no_prompts(sum(len(cask) for cask in casks))


def _no_prompts(documents: int) -> ReportError:
    return ReportError(
        f"--generate: none of the {documents:,} documents has an answer behind a prompt that fits every model. Capture "
        "rows with messages, which say what the assistant writes; or leave out --generate"
    )


def require_writer(label: str, model: Any, tokenizer: Any) -> None:
    """Refuse a model whose texts would never end. Raises ReportError."""
    if not ends_of(model, tokenizer):
        raise ReportError(
            f"--generate: neither the generation config of {label} nor its tokenizer names a token that ends a text "
            "(eos_token_id); add it to generation_config.json, or leave out --generate"
        )


def write_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    progress: Callable[[int], None] = lambda texts: None,
) -> list[WrittenText]:
    """One greedy text after each prompt.

    Args:
        model: a causal LM with the tokenizer of the prompts, on the device it shall run on.
        tokenizer: the model's.
        prompts: shorter than the model's context.
        progress: is told of each text that is written.
    """
    from transformers import GenerationConfig

    ends, context, device = set(ends_of(model, tokenizer)), context_of(model.config), next(model.parameters()).device
    texts = []
    for prompt in prompts:
        room = max(LEAST_TOKENS, 2 * len(_without_end(list(prompt.answer), tokenizer)))
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=room if context is None else min(room, context - len(prompt.ids)),
            eos_token_id=sorted(ends),
            pad_token_id=pad_of(tokenizer),
        )
        ids_1L = torch.tensor([prompt.ids], device=device)
        with plain_generation(model), torch.inference_mode():
            out = model.generate(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L), generation_config=config)
        ids = out[0, len(prompt.ids) :].tolist()
        ended = bool(ids) and ids[-1] in ends
        texts.append(_written(ids[:-1] if ended else ids, tokenizer, ended=ended))
        progress(1)
    return texts


def recorded_texts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[WrittenText]:
    """The answers that the documents go on with; all of them have ended."""
    return [_written(_without_end(list(prompt.answer), tokenizer), tokenizer, ended=True) for prompt in prompts]


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Without the token that ends a turn, which an answer holds and a written text does not, and the blanks after."""
    special = set(tokenizer.all_special_ids)
    kept = len(ids)
    while kept and tokenizer.decode(ids[kept - 1 : kept]).isspace():
        kept -= 1
    return ids[: kept - 1] if kept and ids[kept - 1] in special else ids


def _written(ids: list[int], tokenizer: Any, *, ended: bool) -> WrittenText:
    return WrittenText(ids=ids, text=tokenizer.decode(ids, skip_special_tokens=True), ended=ended)


def score_texts(
    texts: Sequence[WrittenText], references: Sequence[WrittenText] | None, *, seed: int
) -> dict[str, dict[str, float | None] | None]:
    """Figures of some texts, with intervals over the documents.

    Args:
        texts: D.
        references: the recorded answers, D; None for these themselves.
        seed: of the bootstrap.

    Returns:
        `rouge_l`: mean F1 with the reference, 0 to 1 (left out without). `distinct_1`, `distinct_2`: of all words, or
        pairs of neighbouring words, the share that is not a repetition within its text (Li et al., 1510.03055, who
        count over all texts at once); None where there are none. `loops`: share of texts that end in a piece that is
        repeated (`ends_in_loop`). `ended`: share that ended before its longest length; the
        score interval of both. `tokens`: mean length.
    """
    bootstrap = DocumentBootstrap(np.arange(len(texts)), seed=seed)

    def mean(values: Sequence[float]) -> dict[str, float | None]:
        return bootstrap.mean(np.array(values, dtype=np.float32)).as_dict()

    scores: dict[str, dict[str, float | None] | None] = {}
    if references is not None:
        pairs = zip(texts, references, strict=True)
        scores["rouge_l"] = mean([float(rouge_l(text.text, reference.text)) for text, reference in pairs])
    for size in (1, 2):
        grams = [n_grams(text.text, size) for text in texts]
        all_D, distinct_D = (np.array([float(len(kind(own))) for own in grams if own]) for kind in (list, set))
        own = DocumentBootstrap(np.arange(len(all_D)), seed=seed).ratio(distinct_D, all_D) if len(all_D) else None
        scores[f"distinct_{size}"] = None if own is None else own.as_dict()
    scores["loops"] = share_right(np.array([ends_in_loop(text.ids) for text in texts])).as_dict()
    scores["ended"] = share_right(np.array([text.ended for text in texts])).as_dict()
    scores["tokens"] = mean([len(text.ids) for text in texts])
    return scores


def n_grams(text: str, size: int) -> list[tuple[str, ...]]:
    """All runs of so many neighbouring words."""
    words = words_of(text)
    return list(zip(*(words[start:] for start in range(size)), strict=False))


def ends_in_loop(ids: Sequence[int]) -> bool:
    """Whether a text ends in one piece of any length, `LOOP_TIMES` times or more, over `LOOP_TOKENS` tokens or more."""
    tokens = np.asarray(ids)
    for period in range(1, len(tokens) // LOOP_TIMES + 1):
        length = max(LOOP_TIMES * period, LOOP_TOKENS)
        if length <= len(tokens) and (tokens[-length + period :] == tokens[-length:-period]).all():
            return True
    return False
