"""Cost of the capture itself: CPU microseconds per position on one core, after the head's matrix product.

Logits of real text (SmolLM2-135M unless --teacher says otherwise) go through `RecordCapture` in every mode, beside the
primitives a record could be made of by hand: log_softmax, top-64, and the running sums that sampling a row takes.
"""

import argparse
import csv
import importlib
import inspect
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from demo.fetch_teacher import fetch_model
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.capture import RecordCapture, RecordColumns, pack_wire

RESULTS = Path(__file__).resolve().parent / "results" / "capture_module.csv"
ROWS = 512
SPECS = {
    "capture threshold 1/20": CaptureSpec(tau=1 / 20),
    "capture threshold 1/50": CaptureSpec(tau=1 / 50),
    "capture topk 64": CaptureSpec(mode="topk", k=64),
    "capture sampled 50": CaptureSpec(mode="sampled", draws=50),
}


def real_logits(teacher: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [ROWS, V] and next tokens of real text."""
    auto_model: Any = transformers.AutoModelForCausalLM
    model = auto_model.from_pretrained(teacher, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    ids = torch.tensor(tokenizer(inspect.getsource(importlib.import_module("argparse"))).input_ids[: ROWS + 1])
    with torch.inference_mode():
        return model(ids[None]).logits[0, :-1].clone(), ids[1:]


def measure(work: Callable[[torch.Tensor], Any], logits_RV: torch.Tensor, rounds: int) -> list[float]:
    """CPU microseconds per row and round; the copy of the logits that each round needs is not counted."""
    microseconds_per_row = []
    for _ in range(rounds + 1):
        copy_RV = logits_RV.clone()
        start = time.process_time()
        work(copy_RV)
        microseconds_per_row.append((time.process_time() - start) / len(logits_RV) * 1e6)
    return microseconds_per_row[1:]


def cpu_model() -> str:
    """Name of the processor, where the system tells."""
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        return next(line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder of a model (default: SmolLM2-135M, fetched)")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    teacher = arguments.teacher or fetch_model("smollm2-135m")
    logits_RV, next_ids_R = real_logits(teacher)
    torch.set_num_threads(1)
    vocab = logits_RV.shape[1]
    keys_R, positions_R = torch.full((ROWS,), 12345), torch.arange(ROWS)

    def chunked(work: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
        return lambda logits: [work(part) for part in torch.split(logits, 32)]

    works: dict[str, Callable[[torch.Tensor], Any]] = {
        "log_softmax": chunked(lambda part: torch.log_softmax(part, -1)),
        "topk 64": chunked(lambda part: part.topk(64, -1)),
        "softmax + float64 cumsum": chunked(lambda part: torch.softmax(part, -1).double().cumsum(-1)),
    }
    made: dict[str, RecordColumns] = {}
    for name, spec in SPECS.items():
        module = RecordCapture(spec, vocab)

        def capture(logits: torch.Tensor, module: RecordCapture = module, name: str = name) -> None:
            made[name] = module(logits, next_ids_R, keys_R, positions_R)
            pack_wire(made[name], vocab)

        works[name] = capture

    facts = {
        "teacher": teacher.name,
        "vocab": vocab,
        "rows": ROWS,
        "rounds": arguments.rounds,
        "cpu": next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            platform.machine(),
        ),
        "cores_used": 1,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    rows = []
    for name, work in works.items():
        p20, p50, p80 = np.percentile(measure(work, logits_RV, arguments.rounds), [20, 50, 80]).round(1)
        head = tail = 0.0
        if name in made:
            head, tail = len(made[name].head_ids_H) / ROWS, len(made[name].tail_ids_N) / ROWS
        print(f"{name:26s} p20 {p20:7.1f}  p50 {p50:7.1f}  p80 {p80:7.1f} us/row   head {head:5.2f}  draws {tail:5.2f}")
        rows.append({"work": name, "unit": "us/row", "p20": p20, "p50": p50, "p80": p80} | facts)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
