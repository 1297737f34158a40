"""vLLM with the student as its draft model: whether it can be, texts after prompts, and what became of the drafts.

At temperature 0 the teacher's text is what it is whatever the drafts, and a drafted token is kept where it is the
text's. So which drafts are kept follows from the student's most likely token at each position of the text: an exact
account of what an engine should have counted, and text by text.

Shape legend: C tokens of a prompt, N tokens written, L of both, g tokens drafted for a step, S steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.errors import IdentityMismatchError, LogitcaskError, ModelError
from logitcask_services.engines.generator import GenerationResult, GenerationTask, Generator
from logitcask_services.engines.metrics import EngineMetrics, KeepsMetrics
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.teachers.outline import outline

_PREFIX: Final = "vllm:spec_decode_num_"


class DraftCheckError(LogitcaskError, ValueError):
    """A draft cannot be checked: no usable prompt, a text that could not be written, or nothing to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenText:
    """A prompt with what was written after it."""

    prompt_ids_C: NDArray[np.uint32]
    written_ids_N: NDArray[np.uint32]

    @property
    def read_ids(self) -> NDArray[np.uint32]:
        """Both, end to end."""
        return np.concatenate([self.prompt_ids_C, self.written_ids_N])


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """What vLLM wrote and counted."""

    texts: tuple[WrittenText, ...]
    steps: int
    """That verified drafts."""
    accepted_g: tuple[int, ...]
    """By place in the draft: steps in which the drafted tokens up to this one were kept."""

    @property
    def rates_g(self) -> list[float]:
        """Share of steps in which the tokens up to each place were kept."""
        return [count / self.steps for count in self.accepted_g]

    @property
    def tokens_per_step(self) -> float:
        """The kept tokens of a step and the teacher's own."""
        return 1 + sum(self.rates_g)


def require_draft(teacher: ModelFolder, draft: Path, *, tokens: int) -> ModelFolder:
    """The student's folder, opened.

    Args:
        teacher: its folder.
        draft: the student's.
        tokens: of the longest text with its prompt.

    Raises:
        ModelError: it is no folder of a model, is quantised by what is not installed, gives logits of another width,
            or cannot read so many tokens.
        IdentityMismatchError: its token ids mean other tokens.
    """
    if not draft.exists():
        raise ModelError(f"--draft {draft}: no such folder; expected that of a student, with config.json and weights")
    if (draft / "adapter_config.json").is_file() and not (draft / "config.json").is_file():
        raise ModelError(
            f"--draft {draft} holds adapters alone, and vLLM drafts with a whole model: train the student with --merge"
        )
    try:
        folder = ModelFolder.open(draft)
    except ModelError as error:
        raise ModelError(f"--draft: {error}") from error
    if (package := folder.missing_package) is not None:
        # The trainer saves weights of torchao alone.
        how = " (train it without --save-quantized)" if package == "torchao" else ""
        raise ModelError(
            f"--draft {draft} holds weights of {package}, which vLLM reads where {package} is installed: install it "
            f"beside vLLM (pip install {package}), or take the student without its quantisation{how}"
        )
    if folder.tokenizer_fingerprint != teacher.tokenizer_fingerprint:
        raise IdentityMismatchError(
            f"--draft {draft} has another vocabulary than the teacher {teacher.name} (tokenizer_fingerprint "
            f"{folder.tokenizer_fingerprint[:16]}... and {teacher.tokenizer_fingerprint[:16]}...); a draft model "
            "writes the teacher's own tokens, so take a student with its tokenizer"
        )
    mine, theirs = (outline(each, None) for each in (folder, teacher))
    if mine is not None and theirs is not None and mine.vocab_size != theirs.vocab_size:
        raise ModelError(
            f"--draft {draft} has {mine.vocab_size} logits, the teacher {theirs.vocab_size}: vLLM takes drafts of the "
            "same width alone; resize the student's embeddings to it"
        )
    for option, facts in (("--draft", mine), ("--teacher", theirs)):
        if facts is not None and tokens > facts.max_model_len:
            raise ModelError(
                f"{option} {facts.model} reads {facts.max_model_len} tokens, and prompt, text and drafts have up to "
                f"{tokens}; lower --prompt-tokens or --max-tokens"
            )
    return folder


def lacks_generation_config(folder: ModelFolder) -> bool:
    """Whether a folder does not say itself where its texts end; a draft need not, the teacher's are the texts."""
    return not (folder.path / "generation_config.json").is_file()


def draft_options(draft: Path, drafted: int, *, sampled: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Options of vLLM's `EngineArgs` with a draft model.

    Args:
        draft: folder.
        drafted: tokens of a step.
        sampled: whether drafts are sampled from the student, and not its most likely tokens.
        options: the caller's.
    """
    speculative = {
        "method": "draft_model",
        "model": str(draft),
        "num_speculative_tokens": drafted,
        "draft_sample_method": "probabilistic" if sampled else "greedy",
    }
    # Whoever keeps statistics counts drafts, too.
    return {**options, "speculative_config": speculative, "disable_log_stats": False}


def speculate(
    generator: Generator, prompts: Sequence[NDArray[np.uint32]], *, max_tokens: int, temperature: float, drafted: int
) -> Speculation:
    """Write a text after each prompt, and count.

    Args:
        generator: vLLM with `draft_options`.
        prompts: token ids, [C] each.
        max_tokens: of a text.
        temperature: 0 for the most likely tokens, or 1.
        drafted: tokens of a step.

    Raises:
        DraftCheckError: a text could not be written, the engine counts nothing, or no step had a draft.
        EngineError: the engine died.
    """
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    before = draft_counts(generator, drafted)
    tasks = (GenerationTask(key=n, prompt_ids_C=ids, sampling=sampling, seed=n) for n, ids in enumerate(prompts))
    texts: dict[int, WrittenText] = {}
    for result in generator.generate(tasks):
        number = int(str(result.key))
        if result.error is not None or not isinstance(result, GenerationResult):
            raise DraftCheckError(f"no text after prompt {number}, counted from 0: {result.error}")
        texts[number] = WrittenText(prompt_ids_C=prompts[number], written_ids_N=result.token_ids_N.astype(np.uint32))
    after = draft_counts(generator, drafted)
    steps, *accepted = (later - first for later, first in zip(after, before, strict=True))
    if not steps:
        raise DraftCheckError(
            f"vLLM verified no draft in texts of up to {max_tokens} tokens; raise --max-tokens, or see its log above"
        )
    return Speculation(texts=tuple(texts[number] for number in sorted(texts)), steps=steps, accepted_g=tuple(accepted))


def draft_counts(generator: Generator, drafted: int) -> list[int]:
    """Steps with drafts, then by place the steps that kept the drafted tokens up to it; [1 + g].

    Raises:
        DraftCheckError: the engine does not count them.
    """
    metrics = generator.own_metrics() if isinstance(generator, KeepsMetrics) else None
    if metrics is None:
        raise DraftCheckError("the engine keeps no statistics, so nothing is known of its drafts; leave it to vLLM")
    counts = counts_of(metrics, drafted)
    if counts is None:
        names = sorted(family.name for family in metrics.families if "spec" in family.name)
        raise DraftCheckError(
            f"expected vLLM's counters {_PREFIX}drafts and {_PREFIX}accepted_tokens_per_pos, it has {names or 'none'}; "
            "another version of vLLM may call them something else"
        )
    return counts


def counts_of(metrics: EngineMetrics, drafted: int) -> list[int] | None:
    """The same of metrics that were read; None where these counters are not among them."""
    steps: int | None = None
    accepted = [0] * drafted
    for family in metrics.families:
        for sample in family.samples:
            if sample.name == f"{_PREFIX}drafts_total":
                steps = (steps or 0) + int(sample.value)
            elif sample.name == f"{_PREFIX}accepted_tokens_per_pos_total":
                accepted[int(sample.labels["position"])] += int(sample.value)
    return None if steps is None else [steps, *accepted]


def kept_of_steps(
    text_L: NDArray[np.unsignedinteger], best_L: NDArray[np.int64], *, first: int, drafted: int
) -> NDArray[np.int64]:
    """How many drafted tokens each step keeps, [S].

    The first token comes with the prompt's pass, without a draft. Each step then drafts g tokens after the last one
    that is known, keeps those that the text goes on with, and adds one of the teacher's own. Steps whose drafts reach
    beyond the text's end are left out.

    Args:
        text_L: prompt and text.
        best_L: the student's most likely token behind each token of `text_L` (the last one is not looked at).
        first: place of the text's first token, at least 1.
        drafted: g.
    """
    right = best_L[:-1] == text_L[1:].astype(np.int64)
    kept, place = list[int](), first
    while place + drafted < len(text_L):
        wrong = np.flatnonzero(~right[place : place + drafted])
        kept.append(int(wrong[0]) if len(wrong) else drafted)
        place += kept[-1] + 1
    return np.array(kept, dtype=np.int64)
