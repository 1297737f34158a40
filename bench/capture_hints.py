"""What hints cost beside the records: capture with three layers against capture without, and bytes by codec.

Two vLLM engines on one teacher (SmolLM2-135M unless --teacher says otherwise) read the same real text, sources of the
standard library in documents of 512 tokens: one loaded as always, one loaded with three layers. The second one also
captures without hints, which tells what its forward pass costs by itself, and with each codec.

Variants are interleaved and their order rotates from round to round, because other work on the machine comes and goes:
ratios are taken within a round, to the first engine's capture without hints. Reported per variant: tokens/s, the ratio,
and bytes per token and layer. The target is a ratio of 0.95 or more with three layers.

    python bench/capture_hints.py [--quick] [--teacher FOLDER] [--layers 10,20,-1]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capture import real_documents
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec, parse_hints
from report import Report

CODECS = ("f16", "i8", "proj:64")


def capturing(engine: Any, documents: list[np.ndarray], spec: CaptureSpec) -> float:
    """One pass; bytes of hints per token and layer."""
    from logitcask_services.engines.engine import CaptureTask

    tasks = [CaptureTask(key=number, token_ids_L=ids) for number, ids in enumerate(documents)]
    size = rows = 0
    for result in engine.capture(tasks, spec):
        assert result.document is not None, result.error
        if result.document.hints is not None:
            size += result.document.hints.num_bytes
            rows += result.document.hints.num_rows
    return size / rows / len(spec.hints.layers) if spec.hints is not None else 0.0


def measure(variants: dict[str, Callable[[], float]], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Tokens/s per variant and round; one round more goes first."""
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            variants[name]()
            speed = tokens / (time.perf_counter() - start)
            if number:
                speeds[name].append(speed)
            print(f"round {number} {name:28s} {speed:8.1f} tokens/s", flush=True)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--layers", default="10,20,-1")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="few documents, one round, nothing written")
    options = parser.parse_args()
    from demo.fetch_teacher import default_folder, fetch_model
    from logitcask_services.engines.factory import load_engine

    teacher = options.teacher or fetch_model("smollm2-135m", default_folder("smollm2-135m"))
    documents = real_documents(teacher, 4 if options.quick else options.documents)
    tokens, rounds = sum(len(ids) for ids in documents), 1 if options.quick else options.rounds
    hints = parse_hints(f"layers={options.layers}")
    engines = {
        "as always": load_engine("vllm", teacher, max_model_len=1024),
        "with layers": load_engine("vllm", teacher, max_model_len=1024, hints=hints),
    }
    try:
        shape = engines["with layers"].hint_shape
        assert shape is not None
        resolved = hints.resolved(shape.num_blocks)
        specs = {codec: HintSpec(layers=resolved.layers, codec=codec) for codec in CODECS}
        plain = CaptureSpec()
        variants = {
            "without": lambda: capturing(engines["as always"], documents, plain),
            "loaded with layers, without": lambda: capturing(engines["with layers"], documents, plain),
        }
        sizes = dict.fromkeys(variants, 0.0)
        for codec, spec in specs.items():
            capture = plain.model_copy(update={"hints": spec})
            variants[codec] = lambda capture=capture: capturing(engines["with layers"], documents, capture)  # type: ignore[misc]
            sizes[codec] = variants[codec]()
        speeds = measure(variants, tokens, rounds)
    finally:
        for engine in engines.values():
            engine.close()
    report = Report(__file__, "vllm", "torch")
    labels: dict[str, Any] = {
        "teacher": teacher.name,
        "layers": " ".join(map(str, resolved.layers)),
        "width": shape.hidden_width,
    }
    for name, values in speeds.items():
        report.add("speed", "tokens/s", values, variant=name, **labels)
        ratios = [mine / base for mine, base in zip(values, speeds["without"], strict=True)]
        report.add("ratio to without", "1", ratios, variant=name, **labels)
        if sizes[name]:
            report.add("bytes per token and layer", "bytes", [sizes[name]], variant=name, **labels)
    if not options.quick:
        report.write()


if __name__ == "__main__":
    main()
