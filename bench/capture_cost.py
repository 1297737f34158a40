"""What capture adds to a row of logits, by mode and vocabulary, against one log_softmax and top-50 of the same rows.

CPU time on one core, the variants in turn in every round, ratios within a round. Capture includes packing to the wire;
the copy of the logits that a round needs is not counted. Logits at V = 49,152 are SmolLM2's (unless --teacher says
otherwise) on a source of the standard library. Wider ones are the same rows continued with shuffled, less probable
copies of themselves, since the cost hangs on the width and on how many entries and draws a row has, not on words.
"""

import argparse
import importlib
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from demo.fetch_teacher import fetch_model
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.capture import RecordCapture, pack_wire
from report import Report

VOCABULARIES = {49_152: 256, 151_936: 96, 262_144: 64}
"""Width: rows, some 50 MiB of them."""
REFERENCE = "log_softmax + topk 50"
REFERENCE_ROWS = 32
"""The reference takes its rows in pieces too, so that its intermediate results stay in the cache."""
COPIES_LESS = 7.0
"""Nats by which continued logits are lower."""
SPECS = {
    "threshold 1/20": CaptureSpec(tau=1 / 20),
    "threshold 1/50": CaptureSpec(tau=1 / 50),
    "threshold 1/50, multinomial": CaptureSpec(tau=1 / 50, sampler="multinomial"),
    "threshold 1/50, tail_logprobs": CaptureSpec(tau=1 / 50, tail_logprobs=True),
    "threshold 1/50, one temperature": CaptureSpec(tau=1 / 50, temperatures=(2.0,)),
    "topk 12": CaptureSpec(mode="topk", k=12),
    "topk 50": CaptureSpec(mode="topk", k=50),
    "sampled 50, systematic": CaptureSpec(mode="sampled", draws=50),
    "sampled 50, multinomial": CaptureSpec(mode="sampled", draws=50, sampler="multinomial"),
}


@torch.inference_mode()
def real_logits(teacher: Path, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [rows, V] and next tokens of real text."""
    auto_model: Any = transformers.AutoModelForCausalLM
    model = auto_model.from_pretrained(teacher, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    ids = torch.tensor(tokenizer(inspect.getsource(importlib.import_module("argparse"))).input_ids[: rows + 1])
    return model(ids[None]).logits[0, :-1].clone(), ids[1:]


def widened(logits_RV: torch.Tensor, width: int) -> torch.Tensor:
    """The rows continued to `width` columns."""
    parts, generator = [logits_RV], torch.Generator().manual_seed(0)
    while sum(part.shape[1] for part in parts) < width:
        parts.append(logits_RV[:, torch.randperm(logits_RV.shape[1], generator=generator)] - COPIES_LESS)
    return torch.cat(parts, 1)[:, :width].contiguous()


def reference(logits_RV: torch.Tensor) -> None:
    for part in torch.split(logits_RV, REFERENCE_ROWS):
        torch.log_softmax(part, -1).topk(50, -1)


def capture(spec: CaptureSpec, vocab_size: int, next_ids_R: torch.Tensor) -> Callable[[torch.Tensor], None]:
    module = RecordCapture(spec, vocab_size)
    keys_R, positions_R = torch.full_like(next_ids_R, 12345), torch.arange(len(next_ids_R))

    def work(logits_RV: torch.Tensor) -> None:
        pack_wire(module(logits_RV, next_ids_R, keys_R, positions_R), vocab_size)

    return work


def microseconds(work: Callable[[torch.Tensor], None], logits_RV: torch.Tensor) -> float:
    copy_RV = logits_RV.clone()
    start = time.process_time()
    work(copy_RV)
    return (time.process_time() - start) / len(logits_RV) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder of a model (default: SmolLM2-135M, fetched)")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    logits_RV, next_ids_R = real_logits(arguments.teacher or fetch_model("smollm2-135m"), max(VOCABULARIES.values()))
    torch.set_num_threads(1)
    report = Report(__file__, "torch")
    for vocab_size, rows in VOCABULARIES.items():
        wide_RV = widened(logits_RV[:rows], vocab_size)
        works: dict[str, Callable[[torch.Tensor], None]] = {REFERENCE: reference}
        works |= {name: capture(spec, vocab_size, next_ids_R[:rows]) for name, spec in SPECS.items()}
        microseconds_of: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(arguments.rounds + 1):
            for name, work in works.items():
                microseconds_of[name].append(microseconds(work, wide_RV))
        for name, (_, *values) in microseconds_of.items():  # the first round warms up
            report.add("cost", "us/row", values, f"{rows} rows", vocab=vocab_size, work=name)
            if name != REFERENCE:
                ratios = [mine / other for mine, other in zip(values, microseconds_of[REFERENCE][1:], strict=True)]
                report.add(f"over {REFERENCE}", "ratio", ratios, vocab=vocab_size, work=name)
    report.write()


if __name__ == "__main__":
    main()
