"""A distillation step beside cross-entropy steps: time, and peak memory of a process that does nothing else.

The student has the shape of 10 layers of SmolLM2-135M (63.7 M parameters, V = 49,152). Four kinds of optimizer step
(forward, backward, AdamW) on the same sequences:

* `kd`: forward KL on the sparse target. Collating the records and building the target count as part of the step;
* `ce`: cross-entropy through the same chunked head, on a batch that is ready;
* `ce-full`: cross-entropy as transformers does it, with all logits at once;
* `online`: the dense KL to a teacher that is resident, all 30 layers of it, asked again in every step. Its head and the
  student's run over the same rows at a time, so that the logits of both are never there for all positions.

Steps are interleaved and the order rotates, because other work on the machine comes and goes; ratios are taken within a
round. Memory: peak resident size of a process that runs one kind only (model and optimizer included).
The loader's share is that of a `kd` step which reading the cask, collating and building the target take, in the same
thread; in a training run the loader works beside the step.
Targets: ce / kd >= 0.97 in tokens a second, kd / ce-full <= 1.0 in memory, the loader < 2 % of a step.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.checkpoint import checkpoint

from logitcask_consumer.data import CaskDataset, Collator, target_of
from logitcask_consumer.losses import Objective
from logitcask_consumer.methods import DistillTask
from logitcask_consumer.student.forward import attach
from made_up_cask import DOCSTRING_LENGTHS, make_cask
from report import Report

KINDS = ("kd", "ce", "ce-full", "online")
LOADER = "kd: reading, collating, target"
VOCAB, SEQ_LEN, ONLINE_ROWS = 49_152, 512, 256


def make_model(layers: int = 10) -> Any:
    """So many layers of SmolLM2-135M, fresh weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).train()


def make_student() -> Any:
    """A model that computes the project's losses."""
    student = make_model()
    attach(student)
    return student


def online_loss(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, student: Any, teacher: Any) -> torch.Tensor:
    """Sum of KL(teacher || student) over rows of hidden states, [R, H] each."""

    def of_rows(student_rows: torch.Tensor, teacher_rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher_logprobs = torch.log_softmax(teacher.lm_head(teacher_rows), dim=-1)
        student_logprobs = torch.log_softmax(student.lm_head(student_rows), dim=-1)
        return torch.nn.functional.kl_div(student_logprobs, teacher_logprobs, log_target=True, reduction="sum")

    parts = zip(torch.split(student_hidden, ONLINE_ROWS), torch.split(teacher_hidden, ONLINE_ROWS), strict=True)
    losses = [checkpoint(of_rows, mine, its, use_reentrant=False) for mine, its in parts]
    return torch.stack(losses).sum()


def make_steps(folder: Path, tokens: int, *, online: bool) -> tuple[dict[str, Callable[[], Any]], int]:
    """One function per kind that runs a step, one for the loader's part, and the number of trained positions.

    Args:
        folder: for the cask.
        tokens: slots of a step.
        online: whether the teacher is resident, for the kind of that name.
    """
    lengths = list(DOCSTRING_LENGTHS) * (4 * tokens // sum(DOCSTRING_LENGTHS))
    dataset = CaskDataset([make_cask(folder / "cask", lengths, vocab_size=VOCAB)], seq_len=SEQ_LEN)
    sequences = [dataset[number] for number in range(tokens // SEQ_LEN)]
    collate = Collator(seq_len=SEQ_LEN)
    ready = collate(sequences)
    ready_target = target_of(ready, sampled_tail=True)
    labels = torch.full_like(ready["input_ids"], -100).flatten()
    labels[ready["slots"]] = ready["next_ids"].long()
    student = make_student()
    teacher = make_model(30).eval() if online else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    positions = len(ready["slots"])

    def step(loss: torch.Tensor) -> float:
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    def chunked(batch: Any, target: Any, name: str) -> float:
        task = DistillTask(target=target, slots_T=batch["slots"], terms=Objective.parse(name).terms(0.0))
        out = student(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        return step(out["loss"] / positions)

    def kd() -> float:
        batch = collate(sequences)
        return chunked(batch, target_of(batch, sampled_tail=True), "forward_kl")

    def ce_full() -> float:
        shifted = labels.view_as(ready["input_ids"])
        out = student(
            input_ids=ready["input_ids"],
            position_ids=ready["position_ids"],
            labels=shifted,  # asked for by the model's forward; the loss uses shift_labels, already aligned
            shift_labels=shifted,
            use_cache=False,
        )
        return step(out.loss)

    def with_teacher() -> float:
        assert teacher is not None
        inputs = {"input_ids": ready["input_ids"], "position_ids": ready["position_ids"], "use_cache": False}
        with torch.no_grad():
            its = teacher.model(**inputs).last_hidden_state.flatten(0, 1)[ready["slots"]]
        mine = student.model(**inputs).last_hidden_state.flatten(0, 1)[ready["slots"]]
        return step(online_loss(mine, its, student, teacher) / positions)

    def load() -> None:
        target_of(collate([dataset[number] for number in range(tokens // SEQ_LEN)]), sampled_tail=True)

    steps: dict[str, Callable[[], Any]] = {
        "kd": kd,
        "ce": lambda: chunked(ready, ready_target, "cross_entropy"),
        "ce-full": ce_full,
        LOADER: load,
    }
    return steps | ({"online": with_teacher} if online else {}), positions


def peak_of(kind: str, tokens: int) -> None:
    """In a process of its own: print the peak resident size of steps of one kind, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        steps, _ = make_steps(Path(folder), tokens, online=kind == "online")
        for _ in range(3):
            steps[kind]()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measured_peaks(tokens: int) -> dict[str, int]:
    peaks = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--peak-of", kind, "--tokens", str(tokens)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[kind] = int(done.stdout.splitlines()[-1])
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=1_024, help="slots per timed step")
    parser.add_argument("--memory-tokens", type=int, default=4_096, help="slots per step where memory is measured")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="more only on an idle machine")
    parser.add_argument("--peak-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        peak_of(arguments.peak_of, arguments.tokens)
        return
    report = Report(__file__, "torch", "transformers")
    with tempfile.TemporaryDirectory() as folder:
        steps, positions = make_steps(Path(folder), arguments.tokens, online=True)
        timed = [*KINDS, LOADER]
        for kind in timed:
            steps[kind]()
        seconds: dict[str, list[float]] = {kind: [] for kind in timed}
        for round_number in range(arguments.rounds):
            for i in range(len(timed)):
                kind = timed[(i + round_number) % len(timed)]
                start = time.perf_counter()
                steps[kind]()
                seconds[kind].append(time.perf_counter() - start)
            print(
                f"round {round_number + 1}/{arguments.rounds}", {kind: seconds[kind][-1] for kind in timed}, flush=True
            )
    for kind in KINDS:
        report.add(f"{kind}: step of {arguments.tokens} slots", "ms", [1e3 * value for value in seconds[kind]])
        report.add(f"{kind}: trained positions", "1/s", [positions / value for value in seconds[kind]])
    for other in KINDS[1:]:
        ratios = [a / b for a, b in zip(seconds["kd"], seconds[other], strict=True)]
        report.add(f"ratio: kd / {other}, step time", "ratio", ratios)
    shares = [100 * a / b for a, b in zip(seconds[LOADER], seconds["kd"], strict=True)]
    report.add(f"{LOADER}, of a step", "%", shares)
    peaks = measured_peaks(arguments.memory_tokens)
    for kind in KINDS:
        report.add(f"{kind}: peak resident size, {arguments.memory_tokens} slots", "MiB", [peaks[kind] / 2**20])
    for other in KINDS[1:]:
        report.add(f"ratio: kd / {other}, peak resident size", "ratio", [peaks["kd"] / peaks[other]])
    report.write()


if __name__ == "__main__":
    main()
