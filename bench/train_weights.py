"""What weights of positions cost and spare in a distillation step, beside the step that trains every position.

The student of `train_step` (10 layers of SmolLM2-135M, V = 49,152), forward KL; forward, backward and AdamW on the same
sequences, collating and building the target included. Kinds of step:

* `all`: every position, no weights;
* `graded`: every position, each with its own weight (`teacher_confidence`);
* `gate`: the 20 % of the positions whose teacher entropy is highest, known from the record (`teacher_entropy`);
* `entropy_top`: the 20 % of each sequence where the student's entropy is highest, known after its forward pass.

Steps are interleaved and the order rotates; ratios are taken within a round.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from logitcask_consumer.data import CaskDataset, Collator, target_of
from logitcask_consumer.losses import Objective
from logitcask_consumer.methods import DistillTask
from logitcask_consumer.weights import Weights
from made_up_cask import DOCSTRING_LENGTHS, make_cask
from report import Report
from train_step import SEQ_LEN, VOCAB, make_student

KEEP = 0.2


def make_steps(folder: Path, tokens: int) -> dict[str, Callable[[], int]]:
    """One function per kind that runs a step and returns how many positions it trained."""
    lengths = list(DOCSTRING_LENGTHS) * (4 * tokens // sum(DOCSTRING_LENGTHS))
    path = make_cask(folder / "cask", lengths, vocab_size=VOCAB)
    plain = CaskDataset([path], seq_len=SEQ_LEN)
    numbers = range(tokens // SEQ_LEN)
    entropy_P = plain.read(numbers).windows.records.entropy_P.astype(np.float64)
    texts = {
        "all": None,
        "graded": "teacher_confidence",
        "gate": f"teacher_entropy:least={np.quantile(entropy_P, 1 - KEEP)}",
        "entropy_top": f"entropy_top:keep={KEEP}",
    }
    student, collate = make_student(), Collator(seq_len=SEQ_LEN)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

    def step(dataset: CaskDataset) -> int:
        batch = collate(dataset.read(numbers))
        task = DistillTask(
            target=target_of(batch, sampled_tail=True),
            slots_T=batch["slots"],
            terms=Objective.parse("forward_kl").terms(0.0),
            weights_T=batch["weights"],
            selection=dataset.weights.selection,
        )
        out = student(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        (out["loss"] / len(out["ce_T"])).backward()
        optimizer.step()
        optimizer.zero_grad()
        return len(out["ce_T"])

    datasets = {name: CaskDataset([path], seq_len=SEQ_LEN, weights=Weights.parse(text)) for name, text in texts.items()}
    return {name: partial(step, dataset) for name, dataset in datasets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=1_024, help="slots per timed step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="more only on an idle machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = Report(__file__, "torch", "transformers")
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(Path(folder), arguments.tokens)
        trained = {kind: step() for kind, step in steps.items()}
        seconds: dict[str, list[float]] = {kind: [] for kind in steps}
        kinds = list(steps)
        for round_number in range(arguments.rounds):
            for i in range(len(kinds)):
                kind = kinds[(i + round_number) % len(kinds)]
                start = time.perf_counter()
                steps[kind]()
                seconds[kind].append(time.perf_counter() - start)
    for kind in kinds:
        note = f"{trained[kind]} positions trained"
        report.add(f"{kind}: step of {arguments.tokens} slots", "ms", [1e3 * value for value in seconds[kind]], note)
    for kind in kinds[1:]:
        ratios = [a / b for a, b in zip(seconds[kind], seconds["all"], strict=True)]
        report.add(f"ratio: {kind} / all, step time", "ratio", ratios)
    report.write()


if __name__ == "__main__":
    main()
