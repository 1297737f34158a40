"""The parts of `rounds_table.py`, each in a process of its own: training, sampling, and measuring with both models.

    python bench/rounds_parts.py JOB.json

A job's file names the part and its settings; the result stands beside it, with the peak memory of the process.

Shape legend: B texts, S tokens, P positions, V vocabulary.
"""

import gc
import json
import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
import transformers
from torch import Tensor

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.rounds.config import RoundsConfig
from logitcask_consumer.rounds.driver import run_rounds
from logitcask_consumer.rounds.sampler import Sampling, write_chunk
from logitcask_consumer.student.generation import ends_of, pad_of
from logitcask_consumer.training.run import train

PROMPT: Final = 32
"""Tokens of a prompt."""
NEW: Final = 64
"""Tokens behind it."""
SEQUENCE: Final = PROMPT + NEW
"""Slots of a training sequence: one text."""
LR: Final = 1e-4
MICRO: Final = 18 * SEQUENCE


class Written(Protocol):
    """A text, and which of its positions are asked for."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids."""

    @property
    def recorded(self) -> list[int]:
        """Positions [start, stop)."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A text of which all positions are asked for."""

    input_ids: list[int]

    @property
    def recorded(self) -> list[int]:
        """All."""
        return [0, len(self.input_ids) - 1]


def load(folder: Path) -> Any:
    """A model in float32, to be measured."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]


def part_start(job: dict[str, Any]) -> dict[str, Any]:
    """The student that all begin with."""
    train(
        TrainConfig(
            casks=(job["cask"],),
            student="from-teacher:layers=10",
            teacher=Path(job["teacher"]),
            output=Path(job["output"]),
            epochs=job["epochs"],
            seq_len=256,
            micro_tokens=2048,
            seed=0,
            precision="float32",
        )
    )
    return {}


def part_offline(job: dict[str, Any]) -> dict[str, Any]:
    """The control: equal steps on the corpus's continuations."""
    began = time.monotonic()
    train(
        TrainConfig(
            casks=(job["cask"],),
            student=job["start"],
            output=Path(job["output"]),
            loss="forward_kl",
            max_steps=job["rounds"] * job["steps"],
            seq_len=SEQUENCE,
            batch_tokens=job["batch"] * SEQUENCE,
            micro_tokens=MICRO,
            lr=LR,
            seed=job["seed"],
            precision="float32",
            save_steps=10_000,
        )
    )
    return {"seconds": time.monotonic() - began}


def part_rounds(job: dict[str, Any]) -> dict[str, Any]:
    """Rounds; a second call goes on with them."""
    result = run_rounds(
        RoundsConfig(
            recipe="gkd",
            prompts=Path(job["prompts"]),
            student=job["start"],
            server=job["url"],
            output=Path(job["output"]),
            cask_root=job["cask_root"],
            casks=(job["cask"],) if job["share"] < 1 else (),
            share=job["share"],
            fixed_loss="forward_kl",
            rounds=job["rounds"],
            steps_per_round=job["steps"],
            prompts_per_round=job["batch"] * job["steps"],
            max_new_tokens=NEW,
            sample_batch=job["batch"],
            max_looping=1.0,
            seq_len=SEQUENCE,
            batch_tokens=job["batch"] * SEQUENCE,
            micro_tokens=MICRO,
            lr=LR,
            seed=job["seed"],
            precision="float32",
            save_steps=10_000,
        ),
        say=print,
    )
    if result.stopped:
        raise SystemExit("a signal ended the rounds; the same command goes on")
    lines = [json.loads(line) for line in (Path(job["output"]) / "metrics.jsonl").read_text().splitlines()]
    seconds = {
        stage: sum(own.seconds[stage] for own in result.state.rounds) for stage in ("sample", "capture", "train")
    }
    written = sum(own.sampled.tokens for own in result.state.rounds if own.sampled is not None)
    return {"seconds": seconds, "written": written, "trained": sum(line["positions"] for line in lines)}


def part_online(job: dict[str, Any]) -> dict[str, Any]:
    """Online distillation by a plain loop: sample, ask the teacher here, step."""
    student, teacher = load(Path(job["start"])), load(Path(job["teacher"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["start"])
    prompts = [json.loads(line)["input_ids"] for line in Path(job["prompts"]).read_text().splitlines()]
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    ends, pad, batch = ends_of(student, tokenizer), pad_of(tokenizer), job["batch"]
    tokens, began = 0, time.monotonic()
    for step in range(job["steps"]):
        chosen = [(at, prompts[at % len(prompts)]) for at in range(step * batch, (step + 1) * batch)]
        texts = write_chunk(student, chosen, Sampling(max_new_tokens=NEW), seed=step, ends=ends, pad=pad)
        student.train()
        total = sum(text.sampled for text in texts)
        for first in range(0, batch, 18):
            own = texts[first : first + 18]
            logp_PV, logt_PV = (log_probabilities(model, own) for model in (student, teacher))
            torch.autograd.backward(js_of(logt_PV, logp_PV).sum() / total)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += total
    return {"seconds": time.monotonic() - began, "trained": tokens}


def log_probabilities(model: Any, texts: Sequence[Written]) -> Tensor:
    """Log-probabilities at all positions of some texts that are asked for, float32 [P, V]; a graph in training only."""
    with torch.set_grad_enabled(model.training):
        ids_BS = torch.nn.utils.rnn.pad_sequence([torch.tensor(text.input_ids) for text in texts], batch_first=True)
        # What fills a text up stands behind it, where nothing before it looks.
        hidden_BSD = model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
        hidden_PD = torch.cat([own_SD[slice(*text.recorded)] for own_SD, text in zip(hidden_BSD, texts, strict=True)])
        logits_PV: Tensor = model.get_output_embeddings()(hidden_PD)
        logprobs_PV: Tensor = logits_PV.float().log_softmax(-1)
    return logprobs_PV


def js_of(logt_PV: Tensor, logp_PV: Tensor) -> Tensor:
    """Jensen-Shannon divergence at 1/2, [P]."""
    logm_PV = torch.logaddexp(logt_PV, logp_PV) - math.log(2.0)
    divergence_P: Tensor = 0.5 * (logt_PV.exp() * (logt_PV - logm_PV) + logp_PV.exp() * (logp_PV - logm_PV)).sum(-1)
    return divergence_P


def part_measure(job: dict[str, Any]) -> dict[str, Any]:
    """What a student is worth: on texts of its own after held-out prompts, and on held-out text."""
    student, teacher = load(Path(job["student"])), load(Path(job["teacher"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["teacher"])
    held = [json.loads(line)["input_ids"] for line in Path(job["held"]).read_text().splitlines()]
    sums: dict[str, list[float]] = {name: [] for name in ("own_kl", "own_acceptance", "held_kl", "held_acceptance")}
    ends, pad, size = ends_of(student, tokenizer), pad_of(tokenizer), 36
    for first in range(0, len(held), size):
        prompts = [(at, ids[:PROMPT]) for at, ids in enumerate(held[first : first + size])]
        texts = write_chunk(student, prompts, Sampling(max_new_tokens=NEW), seed=first, ends=ends, pad=pad)
        for text in texts:
            logp, logt = log_probabilities(student, [text]), log_probabilities(teacher, [text])
            sums["own_kl"] += (logp.exp() * (logp - logt)).sum(-1).tolist()
            sums["own_acceptance"] += torch.minimum(logp, logt).exp().sum(-1).tolist()
    for ids in held:
        whole = Whole(input_ids=ids)
        logp, logt = log_probabilities(student, [whole]), log_probabilities(teacher, [whole])
        sums["held_kl"] += (logt.exp() * (logt - logp)).sum(-1).tolist()
        sums["held_acceptance"] += torch.minimum(logp, logt).exp().sum(-1).tolist()
    return {name: float(np.mean(values)) for name, values in sums.items()}


PARTS: Final = {
    "start": part_start,
    "offline": part_offline,
    "rounds": part_rounds,
    "online": part_online,
    "measure": part_measure,
}


def run_part(path: Path) -> None:
    """Do what a job's file says; its result with the peak memory of this process stands beside it."""
    job = json.loads(path.read_text())
    result = PARTS[job["part"]](job)
    gc.collect()
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    partial.rename(path.with_suffix(".result"))


if __name__ == "__main__":
    run_part(Path(sys.argv[1]))
