"""The fused LM head and loss beside plain cross-entropy on materialised logits: time, and peak memory.

Forward and backward, gradients of hidden states and head weight included, for

* every registered loss through the chunked head, on the same made-up records (a head of 1 to 12 entries, 0 to 9 draws);
* `F.cross_entropy(hidden @ weight.T, next)`: what a training step without any distillation does;
* `dense`: full KL by autograd on materialised logits from dense teacher probabilities, the obvious implementation.

Variants take turns in every round, and ratios are taken within a round. Memory is the peak resident size of a process
of its own, less what it holds before the step (hidden states, weight, target), with 2,048 rows. Targets: time <= 1.10,
memory <= 0.5 of plain cross-entropy.
"""

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitcask_consumer.losses import LOSSES, LMHead, Objective, SparseTarget, distillation_loss
from report import Report, seconds

PLAIN, DENSE = "F.cross_entropy", "dense"
SHAPES = ((49_152, 576, 512), (151_936, 576, 256), (262_144, 576, 256), (49_152, 2048, 256))
MEMORY_ROWS = 2048


def offsets(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def made_up_target(rows: int, vocab: int) -> SparseTarget:
    random = np.random.default_rng(0)
    head_counts, tail_counts = random.integers(1, 13, rows), random.integers(0, 10, rows)
    heads, draws = int(head_counts.sum()), int(tail_counts.sum())
    head_ids = torch.from_numpy(random.integers(0, vocab, heads))
    return SparseTarget.from_columns(
        head_ids_H=head_ids,
        head_logprobs_H=torch.from_numpy(-8 * random.random(heads)),
        head_offsets_R1=offsets(head_counts),
        tail_ids_N=torch.from_numpy(random.integers(0, vocab, draws)),
        tail_offsets_R1=offsets(tail_counts),
        log_tail_mass_R=torch.from_numpy(-1 - 3 * random.random(rows)),
        next_ids_R=head_ids[torch.from_numpy(offsets(head_counts)[:-1])],
        sampled_tail=True,
        tail_logprobs_N=torch.from_numpy(-5 - 5 * random.random(draws)),
        documents_R=torch.arange(rows) // 128,
    )


class Step:
    """One forward and backward pass of a variant."""

    def __init__(self, vocab: int, hidden: int, rows: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(rows, hidden, generator=random).requires_grad_()
        self.weight = torch.randn(vocab, hidden, generator=random).mul_(0.05).requires_grad_()
        self.target = made_up_target(rows, vocab)
        self.teacher: torch.Tensor | None = None

    def __call__(self, variant: str) -> None:
        self.hidden.grad = self.weight.grad = None
        if variant == PLAIN:
            loss = torch.nn.functional.cross_entropy(
                self.hidden @ self.weight.T, self.target.next_ids_R, reduction="sum"
            )
        elif variant == DENSE:
            if self.teacher is None:
                self.teacher = torch.softmax(torch.randn(len(self.hidden), len(self.weight)), -1)
            logprobs = torch.log_softmax(self.hidden @ self.weight.T, -1)
            loss = torch.nn.functional.kl_div(logprobs, self.teacher, reduction="sum")
        else:
            terms = Objective.parse(variant).terms(0.0)
            loss = distillation_loss(self.hidden, LMHead(weight_VD=self.weight), self.target, terms).loss
        loss.backward()  # type: ignore[no-untyped-call]


def peak_of(variant: str, vocab: int, hidden: int, rows: int) -> None:
    """In a process of its own: print by how many bytes a step raises the peak resident size."""
    step = Step(vocab, hidden, rows)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, also that of the parent, is forgotten
    before = peak_kib()
    step(variant)
    print((peak_kib() - before) * 1024)


def peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measured_peak(variant: str, shape: tuple[int, int, int]) -> int:
    command = [sys.executable, __file__, "--peak-of", variant, *map(str, (*shape[:2], MEMORY_ROWS))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def measure(report: Report, shape: tuple[int, int, int], variants: list[str], rounds: int) -> None:
    step, (vocab, hidden, rows) = Step(*shape), shape
    taken: dict[str, list[float]] = {variant: [] for variant in variants}
    for variant in variants:
        step(variant)
    for number in range(rounds):
        for i in range(len(variants)):
            variant = variants[(i + number) % len(variants)]
            taken[variant] += seconds(partial(step, variant), 1)
    del step
    labels = {"vocab": vocab, "hidden": hidden}
    for variant in variants:
        note = f"{rows} rows"
        report.add(
            "time per row", "ms", [1e3 * value / rows for value in taken[variant]], note, **labels, variant=variant
        )
        ratios = [mine / plain for mine, plain in zip(taken[variant], taken[PLAIN], strict=True)]
        report.add(f"time / {PLAIN}", "ratio", ratios, note, **labels, variant=variant)
    peaks = {variant: measured_peak(variant, shape) for variant in (PLAIN, "forward_kl")}
    for variant, peak in peaks.items():
        note = f"{MEMORY_ROWS} rows"
        report.add("peak memory", "MiB", [peak / 2**20], note, **labels, variant=variant)
        report.add(f"peak memory / {PLAIN}", "ratio", [peak / peaks[PLAIN]], note, **labels, variant=variant)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak-of", nargs=4, metavar=("VARIANT", "V", "D", "T"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        variant, *shape = arguments.peak_of
        peak_of(variant, *map(int, shape))
        return
    report = Report(__file__, "torch")
    for number, shape in enumerate(SHAPES):
        losses = sorted(LOSSES) if number == 0 else ["forward_kl", "ghost_kl", "js"]
        measure(report, shape, [PLAIN, *([DENSE] if number == 0 else []), *losses], arguments.rounds)
        report.write()


if __name__ == "__main__":
    main()
