"""Capture in the engine against the same engine dropping its logits, and against vLLM's own prompt log-probabilities.

Two vLLM engines on one teacher (SmolLM2-135M unless --teacher says otherwise) read the same real text, sources of the
standard library in documents of 512 tokens:

* a capturing one: `capture-20` and `capture-50` (threshold, tau = 1/20 and 1/50), and `drop`, which computes every
  position's logits in the same chunks and drops them;
* a stock generating one: `prefill` (max_tokens=1), and `prompt_logprobs=64` plain, with flat_logprobs, and flat with
  detokenizing.

Variants are interleaved and the order rotates from round to round, because other work on the machine comes and goes:
ratios are taken within a round. Reported per variant: tokens/s, CPU microseconds per token of this (the service's)
process and of the engine's processes, ratios to `drop`, and for captures entries and bytes per token. On a machine
that is busy with other work use --threads 1 and read the ratio of engine CPU; clocks and spinning threads say little.
"""

import argparse
import csv
import importlib
import inspect
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results" / "capture.csv"
DOCUMENT_TOKENS = 512
Pass = tuple[Callable[[], None], list[Any]]
"""One pass over the documents, and the engine's processes that do it."""
MODULES = ("argparse", "ast", "difflib", "tarfile", "typing", "inspect", "pydoc", "zipfile", "doctest", "subprocess")


def real_documents(teacher: Path, count: int) -> list[np.ndarray]:
    """Token ids of `count` documents of real text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    ids = [tokenizer(inspect.getsource(importlib.import_module(name))).input_ids for name in MODULES]
    cut = [ids_L[start : start + DOCUMENT_TOKENS] for ids_L in ids for start in range(0, len(ids_L), DOCUMENT_TOKENS)]
    whole = [np.array(ids_L, np.uint16) for ids_L in cut if len(ids_L) == DOCUMENT_TOKENS]
    return whole[:: max(1, len(whole) // count)][:count]


def start_capturing(teacher: Path) -> Any:
    from logitcask_services.engines.factory import load_engine

    os.environ["PYTHONPATH"] = os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])
    target = {"LogitcaskLlamaForCausalLM": "dropping_pooler:DroppingLlama"}
    return load_engine("vllm", teacher, max_model_len=1024, options={"model_class_overrides": target})


def start_stock(teacher: Path) -> Any:
    from vllm import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    from logitcask_services.engines.dtypes import choose_dtype
    from logitcask_services.engines.model_folder import ModelFolder
    from logitcask_services.engines.vllm.start import platform_defaults, platform_of

    dtype = choose_dtype("auto", ModelFolder.open(teacher).checkpoint_dtype, platform_of(current_platform))
    arguments: dict[str, Any] = {"max_model_len": 1024, "max_logprobs": 64, "enable_prefix_caching": False}
    arguments |= {"dtype": dtype, "disable_log_stats": True, **platform_defaults(current_platform)}
    return LLMEngine.from_engine_args(EngineArgs(model=str(teacher), **arguments))


def capturing(engine: Any, documents: list[np.ndarray], spec: Any, sizes: dict[str, float] | None) -> None:
    """One pass of the capturing engine; notes entries and bytes per token."""
    from logitcask_services.engines.engine import CaptureTask

    tasks = [CaptureTask(key=i, token_ids_L=ids) for i, ids in enumerate(documents)]
    results = list(engine.capture(tasks, spec))
    assert all(result.error is None for result in results), results
    if sizes is not None and not sizes:
        records = [result.document.records for result in results]
        positions = sum(r.num_positions for r in records)
        sizes["entries_per_token"] = sum(len(r.head_ids_H) + len(r.tail_ids_N) for r in records) / positions
        sizes["bytes_per_token"] = sum(record_bytes(r) for r in records) / positions


def record_bytes(records: Any) -> int:
    """Bytes of the columns of a document's records."""
    columns = [getattr(records, name) for name in records.__dataclass_fields__ if name != "position_columns"]
    return sum(column.nbytes for column in [*columns, *records.position_columns.values()] if column is not None)


def generating(engine: Any, documents: list[np.ndarray], parameters: dict[str, Any]) -> None:
    """One pass of the stock engine; reads what it returns no further than vLLM itself does."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    for i, ids in enumerate(documents):
        engine.add_request(str(i), tokens_input(ids.tolist()), SamplingParams(max_tokens=1, **parameters))
    while engine.has_unfinished_requests():
        engine.step()


def cpu_seconds(processes: list[Any]) -> float:
    """User and system time of processes so far."""
    return float(sum(times.user + times.system for times in (process.cpu_times() for process in processes)))


def measure(passes: dict[str, Pass], tokens: int, rounds: int) -> dict[str, np.ndarray]:
    """Per variant [rounds, 3]: tokens/s, CPU us/token of this process and of the engine; one more round goes first."""
    rounds_of: dict[str, list[list[float]]] = {name: [] for name in passes}
    names = list(passes)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            work, processes = passes[name]
            clock, own, engine = time.perf_counter(), time.process_time(), cpu_seconds(processes)
            work()
            seconds = time.perf_counter() - clock
            busy = [time.process_time() - own, cpu_seconds(processes) - engine]
            row = [tokens / seconds, *(cpu / tokens * 1e6 for cpu in busy)]
            if number:
                rounds_of[name].append(row)
            print(f"round {number} {name:24s} {row[0]:8.1f} tokens/s, us/token {row[1]:8.2f} {row[2]:8.1f}", flush=True)
    return {name: np.array(rows) for name, rows in rounds_of.items()}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import torch
    import transformers
    import vllm

    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        model = next(line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": vllm.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def main() -> None:
    from demo.fetch_teacher import fetch_model
    from logitcask_schemas.record.capture_spec import CaptureSpec

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder of a Llama (default: SmolLM2-135M, fetched)")
    parser.add_argument("--documents", type=int, default=8, help=f"of {DOCUMENT_TOKENS} tokens, per variant and round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="threads of the engine (default: every core)")
    parser.add_argument("--only-capture", action="store_true", help="leave the stock engine out")
    arguments = parser.parse_args()
    teacher = arguments.teacher or fetch_model("smollm2-135m")
    documents = real_documents(teacher, arguments.documents)
    sys.path.insert(0, str(BENCH))
    if arguments.threads:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{arguments.threads - 1}"

    from dropping_pooler import DROP_SEED

    capture_engine = start_capturing(teacher)
    capture_processes = psutil.Process().children(recursive=True)
    sizes: dict[str, dict[str, float]] = {"capture-20": {}, "capture-50": {}}
    specs = {
        "drop": CaptureSpec(seed=DROP_SEED),
        "capture-20": CaptureSpec(tau=1 / 20),
        "capture-50": CaptureSpec(tau=1 / 50),
    }
    passes: dict[str, Pass] = {
        name: (partial(capturing, capture_engine, documents, spec, sizes.get(name)), capture_processes)
        for name, spec in specs.items()
    }
    if not arguments.only_capture:
        stock = start_stock(teacher)
        logprobs = {"prompt_logprobs": 64}
        stock_parameters: dict[str, dict[str, Any]] = {
            "prefill": {"detokenize": False},
            "logprobs-64": {"detokenize": False, **logprobs},
            "logprobs-64-flat": {"detokenize": False, "flat_logprobs": True, **logprobs},
            "logprobs-64-flat-text": {"flat_logprobs": True, **logprobs},
        }
        others = [child for child in psutil.Process().children(recursive=True) if child not in capture_processes]
        for name, parameters in stock_parameters.items():
            passes[name] = (partial(generating, stock, documents, parameters), others)
    rounds_of = measure(passes, sum(map(len, documents)), arguments.rounds)
    capture_engine.close()
    if not arguments.only_capture:
        stock.engine_core.shutdown()

    threads = arguments.threads or os.cpu_count()
    facts = {"teacher": teacher.name, "documents": len(documents), "rounds": arguments.rounds, "threads": threads}
    rows = []
    for name, rounds in rounds_of.items():
        metrics = {
            "throughput (tokens/s)": rounds[:, 0],
            "throughput / drop (ratio)": rounds[:, 0] / rounds_of["drop"][:, 0],
            "service CPU (us/token)": rounds[:, 1],
            "engine CPU (us/token)": rounds[:, 2],
            "engine CPU of drop / own (ratio)": rounds_of["drop"][:, 2] / rounds[:, 2],
        }
        for metric, values in (sizes.get(name) or {}).items():
            metrics[metric.replace("_per_token", "/token")] = np.array([values])
        for metric, values in metrics.items():
            p20, p50, p80 = np.percentile(values, [20, 50, 80]).round(4)
            rows.append({"variant": name, "metric": metric, "p20": p20, "p50": p50, "p80": p80, **facts, **machine()})
            print(f"{name:24s} {metric:32s} p20 {p20:9.3f}  p50 {p50:9.3f}  p80 {p80:9.3f}")
    results = RESULTS.with_stem(f"{RESULTS.stem}_threads_{arguments.threads}" if arguments.threads else RESULTS.stem)
    results.parent.mkdir(exist_ok=True)
    with results.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
