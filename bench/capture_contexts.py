"""What a shared context costs, and what is saved where only some positions are recorded; one vLLM engine.

Documents of 64 tokens of real text, in batches that are captured one after the other, in turns:

* `alone`: every position, without a context;
* `third`: the last third of the positions, as an answer behind its prompt;
* `shared`: under one context of 512 tokens that all share, which the engine keeps in its prefix cache;
* `own`: under a context of 512 tokens of each document's own, as retrieved passages are.

Reported per variant: milliseconds and CPU milliseconds of the engine per document, each relative to `alone` of the same
round as p20, p50, p80. Rows go to a CSV with the machine's name.
"""

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from capture import cpu_seconds, machine, real_documents
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.factory import load_engine

RESULTS = Path(__file__).resolve().parent / "results" / "capture_contexts.csv"
DOCUMENT_TOKENS, CONTEXT_TOKENS = 64, 512


def variants(blocks: list[np.ndarray], round_number: int) -> dict[str, list[CaptureTask]]:
    """Tasks by variant; no document or context of its own comes twice in a run."""
    documents = [np.roll(block, round_number)[:DOCUMENT_TOKENS].astype(np.uint32) for block in blocks]
    first = DOCUMENT_TOKENS * 2 // 3
    third = np.array([[first, DOCUMENT_TOKENS - 1]], np.uint32)
    shared = ContextTokens(token_ids_C=blocks[0].astype(np.uint32))
    own = [ContextTokens(token_ids_C=np.roll(block, -7 - round_number).astype(np.uint32)) for block in blocks]
    return {
        "alone": [CaptureTask(key=n, token_ids_L=ids) for n, ids in enumerate(documents)],
        "third": [CaptureTask(key=n, token_ids_L=ids, recorded_R2=third) for n, ids in enumerate(documents)],
        "shared": [CaptureTask(key=n, token_ids_L=ids, context=shared) for n, ids in enumerate(documents)],
        "own": [CaptureTask(key=n, token_ids_L=ids, context=own[n]) for n, ids in enumerate(documents)],
    }


def measure(engine: Any, blocks: list[np.ndarray], rounds: int) -> list[dict[str, Any]]:
    """One row per variant and round; the first round warms up."""
    children = psutil.Process().children(recursive=True)
    rows = []
    for number in range(rounds + 1):
        tasks_of = variants(blocks, number)
        names = list(tasks_of)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            clock, busy = time.perf_counter(), cpu_seconds(children)
            results = list(engine.capture(tasks_of[name], CaptureSpec()))
            assert all(result.error is None for result in results), results
            seconds, cpu = time.perf_counter() - clock, cpu_seconds(children) - busy
            if number:
                per = 1e3 / len(results)
                rows.append({"round": number, "variant": name, "ms": seconds * per, "engine_cpu_ms": cpu * per})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print, and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="folder; default: SmolLM2-135M")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.path.insert(0, str(RESULTS.parents[2]))
    from demo.fetch_teacher import default_folder, fetch_model

    folder = options.teacher or fetch_model("smollm2-135m", default_folder("smollm2-135m"))
    engine = load_engine("vllm", folder, max_model_len=1024)
    try:
        rows = measure(engine, real_documents(folder, options.documents), options.rounds)
    finally:
        engine.close()
    alone = {row["round"]: row for row in rows if row["variant"] == "alone"}
    table = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        figures: dict[str, Any] = {"variant": name, "ms": round(float(np.median([row["ms"] for row in mine])), 1)}
        for column in ("ms", "engine_cpu_ms"):
            ratios = [row[column] / alone[row["round"]][column] for row in mine]
            points = np.percentile(ratios, [20, 50, 80])
            figures |= {f"{column}_ratio_p{p}": round(float(v), 3) for p, v in zip((20, 50, 80), points, strict=True)}
        table.append(figures | machine())
    writer = csv.DictWriter(sys.stdout, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    exists = RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        saved = csv.DictWriter(file, list(table[0]))
        if not exists:
            saved.writeheader()
        saved.writerows(table)


if __name__ == "__main__":
    main()
