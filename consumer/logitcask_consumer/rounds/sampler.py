"""The student writes: transformers' `generate` in chunks of prompts, each with a seed of its own.

A chunk follows from the student's weights, its prompts and its seed alone, so one that a kill took is written again as
it was; on a CPU bit for bit. Only one chunk of texts is in memory at a time.

Shape legend: B texts of a chunk, S tokens of the longest prompt, N sampled tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from logitcask_consumer.rounds.samples import SampledText
from logitcask_consumer.student.generation import plain_generation
from logitcask_schemas.errors import ModelError

NO_DISTRIBUTION: Final = (
    "the student gives no probabilities to draw from (its logits are not finite): its weights are damaged, it diverged "
    "in training, or the temperature is too near 0. Begin in another output folder with a sound student, a smaller "
    "--lr or a larger --temperature"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the student writes."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""


class _FirstIds:
    """A logits processor that leaves ids below a number alone to be drawn."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.arange(self._count, scores.shape[1], device=scores.device), -torch.inf)


class _ChosenLogprobs:
    """A logits processor that comes last and notes log q of each token that is then drawn; holds one step, [B, V]."""

    def __init__(self) -> None:
        self.columns: list[Tensor] = []
        self._last_BV: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.note(input_ids)
        self._last_BV = scores.float().log_softmax(-1)
        # Else torch draws from it, and tells of it with an assertion that a GPU does not recover from.
        if self._last_BV.isnan().any():
            raise ModelError(NO_DISTRIBUTION)
        return scores

    def note(self, input_ids: Tensor) -> None:
        """Take the last tokens' log q from what was kept of the step before."""
        if self._last_BV is not None:
            self.columns.append(self._last_BV.gather(1, input_ids[:, -1:])[:, 0])


def write_chunk(
    model: Any,
    prompts: Sequence[tuple[int, list[int]]],
    sampling: Sampling,
    *,
    seed: int,
    ends: Sequence[int],
    pad: int,
    vocabulary: int | None = None,
) -> list[SampledText]:
    """One text after each of some prompts.

    Args:
        model: the student, a transformers causal LM.
        prompts: number and token ids of each, B.
        sampling: how.
        seed: of the chunk.
        ends: token ids that end a text.
        pad: token id that fills shorter prompts up.
        vocabulary: ids from this one on are not written; None for none.

    Raises:
        ModelError: the student's logits, over the temperature, are not finite.
    """
    from transformers import GenerationConfig, LogitsProcessorList
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    device = next(model.parameters()).device
    longest = max(len(ids) for _, ids in prompts)
    ids_BS = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask_BS = torch.zeros_like(ids_BS)
    for row, (_, ids) in enumerate(prompts):
        ids_BS[row, longest - len(ids) :] = torch.tensor(ids)
        mask_BS[row, longest - len(ids) :] = 1
    chosen, processors = _ChosenLogprobs(), list[Any]()
    # Ours, and none of generate's own: what draws must be what was noted.
    if vocabulary is not None:
        processors.append(_FirstIds(vocabulary))
    if sampling.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        processors.append(TopPLogitsWarper(sampling.top_p))
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
    )
    devices = [device] if device.type == "cuda" else []
    with plain_generation(model), torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids_BS.to(device),
            attention_mask=mask_BS.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([*processors, chosen]),
        )
    chosen.note(out)
    tokens_BN = out[:, longest:].cpu().tolist()
    logprobs_BN = torch.stack(chosen.columns, 1).cpu().tolist()
    rows = zip(prompts, tokens_BN, logprobs_BN, strict=True)
    return [_text(number, ids, tokens, logprobs, set(ends)) for (number, ids), tokens, logprobs in rows]


def logprobs_under(model: Any, input_ids: Sequence[int], sampled: int, *, vocabulary: int | None = None) -> list[float]:
    """How likely a student is to write the last tokens of a text, at temperature 1 without cuts: log q, nats, [N].

    Args:
        model: the student.
        input_ids: prompt and text, at least one token before the sampled ones.
        sampled: N.
        vocabulary: as of `write_chunk`.

    Raises:
        ModelError: the student's logits are not finite.
    """
    if not sampled:
        return []
    device = next(model.parameters()).device
    ids_1L = torch.tensor([list(input_ids)], device=device)
    with plain_generation(model), torch.inference_mode():
        # One text at a time: the logits of a whole chunk may not fit, and the values do not hang on what is beside it.
        logits_NV = model(input_ids=ids_1L).logits[0, -1 - sampled : -1, :vocabulary].float()
    chosen_N = logits_NV.log_softmax(-1).gather(1, ids_1L[0, -sampled:, None])[:, 0]
    if not chosen_N.isfinite().all():
        raise ModelError(NO_DISTRIBUTION)
    values: list[float] = chosen_N.cpu().tolist()
    return values


def _text(number: int, prompt: list[int], tokens: list[int], logprobs: list[float], ends: set[int]) -> SampledText:
    """A row up to the token that ended it."""
    stop = next((at + 1 for at, token in enumerate(tokens) if token in ends), None)
    cut = len(tokens) if stop is None else stop
    return SampledText(
        prompt=number,
        input_ids=[*prompt, *tokens[:cut]],
        logprobs=logprobs[:cut],
        finish="length" if stop is None else "stop",
    )


def chunk_seed(seed: int, round_number: int, chunk: int) -> int:
    """Seed of a chunk, from those of the run and its place in it."""
    return int(np.random.SeedSequence((seed, round_number, chunk)).generate_state(1)[0])


def teacher_writes(seed: int, round_number: int, chunk: int, size: int, share: float) -> list[bool]:
    """Which texts of a chunk the teacher writes: each with probability `share`, by a seed of the chunk's own."""
    drawn: list[bool] = (np.random.default_rng([seed, round_number, chunk, 1]).random(size) < share).tolist()
    return drawn


def chunks_of(prompts: Sequence[int], *, texts_per_prompt: int, size: int) -> list[list[int]]:
    """Prompts of the texts of each chunk; texts of one prompt stand behind each other."""
    each = [prompt for prompt in prompts for _ in range(texts_per_prompt)]
    return [each[at : at + size] for at in range(0, len(each), size)]
