"""The fused LM head and loss beside plain cross-entropy on materialised logits: time, and peak memory.

Forward and backward, gradients of hidden states and head weight included, for

* every registered loss through the chunked head, on the same made-up records (a head of 1 to 12 entries, 0 to 9 draws);
* `F.cross_entropy(hidden @ weight.T, next)`: what a training step without any distillation does;
* `dense <loss>`: the definition by autograd on materialised logits and dense teacher probabilities, the obvious
  implementation, for the losses that are a sum over the vocabulary.

Variants take turns in every round, and ratios are taken within a round. Memory is the peak resident size of a process
of its own, less what it holds before the step (hidden states, weight, target, dense teacher). Targets: time <= 1.10,
memory <= 0.5 of plain cross-entropy.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import LOSSES, Objective, SparseTarget
from report import Report, seconds

PLAIN, DENSE = "F.cross_entropy", "dense "
FEW = ["forward_kl", "ghost_kl", "js"]
SHAPES = (
    (49_152, 576, 1024),
    (49_152, 576, 8192),
    (151_936, 576, 1024),
    (262_144, 576, 1024),
    (49_152, 2048, 1024),
    (151_936, 2048, 1024),
)
MEMORY_OF = (PLAIN, "forward_kl", f"{DENSE}forward_kl")


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a.log() - b.log())).sum()


def alpha_beta(t: Tensor, p: Tensor, a: float = 0.2, b: float = 0.7) -> Tensor:
    c = a + b
    return -(t**a * p**b - a / c * t**c - b / c * p**c).sum() / (a * b)


def todi(t: Tensor, p: Tensor) -> Tensor:
    share = torch.sigmoid(t.log() - p.log()).detach()
    return (share * t * (t / p).log() + (1 - share) * p * (p / t).log()).sum()


DEFINITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": kl,
    "reverse_kl": lambda t, p: kl(p, t),
    "js": lambda t, p: 0.5 * kl(t, 0.5 * (t + p)) + 0.5 * kl(p, 0.5 * (t + p)),
    "skew_kl": lambda t, p: kl(t, 0.1 * t + 0.9 * p),
    "skew_reverse_kl": lambda t, p: kl(p, 0.9 * t + 0.1 * p),
    "tvd": lambda t, p: (t - p).abs().sum() / 2,
    "alpha_beta": alpha_beta,
    "todi": todi,
}


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
        self.teacher: Tensor | None = None

    def prepare(self, variant: str) -> None:
        """What a variant is given: the dense ones the teacher's probabilities."""
        if variant.startswith(DENSE) and self.teacher is None:
            self.teacher = torch.randn(len(self.hidden), len(self.weight)).mul_(3).softmax(-1)

    def __call__(self, variant: str) -> None:
        self.hidden.grad = self.weight.grad = None
        if variant == PLAIN:
            loss = torch.nn.functional.cross_entropy(
                self.hidden @ self.weight.T, self.target.next_ids_R, reduction="sum"
            )
        elif variant.startswith(DENSE):
            assert self.teacher is not None
            student = torch.softmax(self.hidden @ self.weight.T, -1)
            loss = DEFINITIONS[variant.removeprefix(DENSE)](self.teacher, student)
        else:
            terms = Objective.parse(variant).terms(0.0)
            loss = distillation_loss(self.hidden, LMHead(weight_VD=self.weight), self.target, terms).loss
        loss.backward()  # type: ignore[no-untyped-call]


def peak_of(variant: str, vocab: int, hidden: int, rows: int) -> None:
    """In a process of its own: print by how many bytes a step raises the peak resident size."""
    step = Step(vocab, hidden, rows)
    step.prepare(variant)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, also that of the parent, is forgotten
    before = peak_kib()
    step(variant)
    print((peak_kib() - before) * 1024)


def peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measured_peak(variant: str, shape: tuple[int, int, int]) -> int:
    command = [sys.executable, __file__, "--peak-of", variant, *map(str, shape)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def measure(report: Report, shape: tuple[int, int, int], variants: list[str], rounds: int) -> None:
    step, (vocab, hidden, rows) = Step(*shape), shape
    taken: dict[str, list[float]] = {variant: [] for variant in variants}
    for variant in variants:
        step.prepare(variant)
        step(variant)
    for number in range(rounds):
        for i in range(len(variants)):
            variant = variants[(i + number) % len(variants)]
            taken[variant] += seconds(partial(step, variant), 1)
    del step
    labels: dict[str, Any] = {"vocab": vocab, "hidden": hidden, "rows": rows}
    for variant in variants:
        per_row = [1e3 * value / rows for value in taken[variant]]
        report.add("time per row", "ms", per_row, **labels, variant=variant)
        others = [PLAIN, *(other for other in taken if other == f"{DENSE}{variant}")]
        for other in others:
            ratios = [mine / theirs for mine, theirs in zip(taken[variant], taken[other], strict=True)]
            report.add(f"time / {other}", "ratio", ratios, **labels, variant=variant)
    peaks = {variant: measured_peak(variant, shape) for variant in MEMORY_OF if variant in variants}
    for variant, peak in peaks.items():
        report.add("peak memory", "MiB", [peak / 2**20], **labels, variant=variant)
        report.add(f"peak memory / {PLAIN}", "ratio", [peak / peaks[PLAIN]], **labels, variant=variant)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
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
        many = [*sorted(LOSSES), *(f"{DENSE}{loss}" for loss in DEFINITIONS)]
        measure(report, shape, [PLAIN, *(FEW if number else many)], arguments.rounds)
        report.write()


if __name__ == "__main__":
    main()
