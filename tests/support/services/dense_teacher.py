"""What a plain float32 forward pass says of a text, and of what may be sampled from it; models that are nearly it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcask_schemas.api.generation_steps import Sampling


class DenseTeacher:
    """A model of transformers with eager attention, without a cache."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    @torch.inference_mode()
    def logprobs(self, token_ids: NDArray[Any]) -> NDArray[np.float64]:
        """Log-probabilities behind each token, float64 [L, V]."""
        logits = self._model(torch.from_numpy(token_ids.astype(np.int64))[None], use_cache=False).logits[0]
        logprobs: NDArray[np.float64] = torch.log_softmax(logits.double(), -1).numpy()
        return logprobs

    def of_written(self, prompt_ids: NDArray[Any], token_ids: NDArray[Any]) -> NDArray[np.float64]:
        """Log-probabilities before each written token, float64 [N, V]."""
        read = np.concatenate([prompt_ids, token_ids])
        return self.logprobs(read)[len(prompt_ids) - 1 : -1]


def sampled_from(logprobs_V: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """Probabilities [V] that a token is drawn with: temperature, then min_p, top_k, top_p."""
    scaled = logprobs_V / sampling.temperature
    p = np.exp(scaled - scaled.max())
    p[p < sampling.min_p] = 0
    order = np.argsort(-p, kind="stable")
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
    p /= p.sum()
    total = 0.0
    for place, token in enumerate(order):
        if place and total >= sampling.top_p:
            p[order[place:]] = 0
            break
        total += p[token]
    return p / p.sum()


def save_noisy_copy(teacher: Path, folder: Path, *, noise: float, seed: int) -> Path:
    """Save the teacher with each weight of its layers times 1 + noise · N(0, 1); all else is as it is there."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.mul_(1 + noise * torch.randn_like(weight))
    shutil.copytree(teacher, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(folder)
    return folder
