"""The teacher that writes, on plain transformers: reference and control for vLLM, one text at a time.

What it samples from is cut down in vLLM's order: temperature, min_p, top_k, top_p. Its draws are its own: with the same
seed, vLLM writes another text.

Shape legend: L tokens read, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.generator import (
    Finish,
    GenerationTask,
    ScoreTask,
    TeacherResult,
    TeacherTask,
    failed,
    scored,
    task_refusal,
    written,
)
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.stop_texts import StopTexts
from logitcask_services.engines.transformers_model import TransformersModel


class TransformersGenerator:
    """`Generator` on plain forward passes. Load with `load_generator`."""

    def __init__(
        self, folder: ModelFolder, *, dtype: str = "auto", max_model_len: int | None = None, device: str | None = None
    ) -> None:
        """Load the model.

        Args:
            folder: the teacher.
            dtype: compute dtype, or "auto": float32 on a CPU, the checkpoint's elsewhere.
            max_model_len: most tokens of a prompt with what is written after it; None: what the configuration declares.
            device: torch device; None: an accelerator where there is one, else the CPU.

        Raises:
            ModelError: the folder's model is no causal language model that transformers can load.
        """
        self._folder = folder
        loaded = TransformersModel.load(folder, dtype=dtype, max_model_len=max_model_len, device=device)
        self._model: Any = loaded.model
        self._device, self._max_model_len, self._identity = loaded.device, loaded.max_model_len, loaded.identity
        # Keys that were cached when the text was shorter would be of another rotation.
        self._caches = not loaded.length_matters
        self._end_ids = folder.end_ids
        self.on_step: Callable[[], None] = lambda: None
        """Called after each token."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is; equal to that of `TransformersEngine` with the same arguments."""
        return self._identity

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt with what is written after it."""
        return self._max_model_len

    def generate(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherResult]:
        """Yield one result per task, in order; see `Generator.generate`."""
        for task in tasks:
            reason = task_refusal(task, max_model_len=self._max_model_len, vocab_size=self._identity.vocab_size)
            if reason is not None:
                yield failed(task, reason)
            elif isinstance(task, GenerationTask):
                yield self._write(task)
            else:
                yield self._score(task)

    def interrupt(self) -> bool:
        """It computes in this process; see `Generator.interrupt`."""
        return False

    def close(self) -> None:
        """Let go of the model. Idempotent."""
        self._model = None

    @torch.inference_mode()
    def _write(self, task: GenerationTask) -> TeacherResult:
        sampling = task.sampling
        draws = torch.Generator().manual_seed(task.seed)
        stop_texts = StopTexts(self._folder.text_of, sampling.stop, min_tokens=sampling.min_tokens)
        read, cache = task.prompt_ids_C.tolist(), None
        token_ids, logprobs = list[int](), list[float]()
        finish: Finish = "length"
        while len(token_ids) < sampling.max_tokens:
            unread = read[-1:] if cache is not None else read
            output = self._model(input_ids=self._row(unread), past_key_values=cache, use_cache=self._caches)
            cache = output.past_key_values if self._caches else None
            self.on_step()
            logits_V = output.logits[0, -1].cpu().double()
            if logits_V.isnan().any() or not logits_V.isfinite().any():
                return written(task, [], text="", finish=finish, logprob=float("nan"))
            banned = self._end_ids if len(token_ids) < sampling.min_tokens else ()
            token_id = choose_token(logits_V, sampling, draws, banned=banned)
            read.append(token_id)
            token_ids.append(token_id)
            logprobs.append(float(torch.log_softmax(logits_V, -1)[token_id]))
            if token_id in self._end_ids:
                finish = "stop"
                break
            if sampling.stop and (kept := stop_texts.add(token_id)) is not None:
                finish = "stop"
                del token_ids[kept:], logprobs[kept:]
                break
        text = self._folder.text_of(token_ids)
        return written(task, token_ids, text=text, finish=finish, logprob=sum(logprobs))

    @torch.inference_mode()
    def _score(self, task: ScoreTask) -> TeacherResult:
        ids_L = task.token_ids_L.astype(np.int64)
        logits_LV = self._model(input_ids=self._row(ids_L[:-1].tolist()), use_cache=False).logits[0, task.first - 1 :]
        logprobs_LV = torch.log_softmax(logits_LV.cpu().double(), -1)
        return scored(task, logprobs_LV.gather(1, torch.from_numpy(ids_L[task.first :])[:, None])[:, 0].numpy())

    def _row(self, token_ids: list[int]) -> torch.Tensor:
        return torch.tensor(token_ids, device=self._device)[None]


def choose_token(logits_V: torch.Tensor, sampling: Sampling, draws: torch.Generator, *, banned: Iterable[int]) -> int:
    """The next token.

    Args:
        logits_V: of the model, float64 [V], finite or -inf.
        sampling: at temperature 0, the largest logit (the first of equals) wins.
        draws: one number is taken where the temperature is not 0.
        banned: ids that may not come.
    """
    logits_V = logits_V.clone()
    logits_V[list(banned)] = -torch.inf
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probs_V = torch.softmax(logits_V / sampling.temperature, -1)
    probs_V[probs_V < sampling.min_p * probs_V.max()] = 0
    if 0 < sampling.top_k < len(probs_V):
        probs_V[probs_V < probs_V.topk(sampling.top_k).values[-1]] = 0
    if sampling.top_p < 1:
        probs_V /= probs_V.sum()
        sorted_V, order_V = probs_V.sort(descending=True)
        # A token stays where those before it have less than top_p together; the first one always does.
        probs_V[order_V[sorted_V.cumsum(-1) - sorted_V >= sampling.top_p]] = 0
    return int(torch.multinomial(probs_V, 1, generator=draws))
