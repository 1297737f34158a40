"""Texts written through `VllmGenerator` against the loop that `LLM.generate` runs, on one engine.

SmolLM2-135M (unless --teacher says otherwise) writes 96 tokens after each of 64 prompts, with a seed and temperature
0.7. Variants, in turn, the first of them another one from round to round, the prefix cache emptied before each:

* `bare`: the engine alone: requests added, then steps until none is left; token ids and nothing else;
* `bare-logprobs`: with the log-probability of each token, which `VllmGenerator` always asks for;
* `generator`: `VllmGenerator`, as jobs use it;
* `generator-stop`: with a stop text that never comes, so that every token is looked at.

Reported: generated tokens/s, and ratios to `bare` within a round.
"""

import argparse
import csv
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from capture import machine, real_documents

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results" / "generation_throughput.csv"
PROMPT_TOKENS = (16, 128)
TEMPERATURE = 0.7


def prompts_of(teacher: Path, count: int) -> list[np.ndarray]:
    """Beginnings of real text, of lengths between `PROMPT_TOKENS`."""
    documents = real_documents(teacher, count)
    lengths = np.random.default_rng(0).integers(*PROMPT_TOKENS, count)
    starts = np.arange(count) // len(documents) * PROMPT_TOKENS[1]
    return [
        documents[i % len(documents)][start : start + length].astype(np.uint32)
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]


def bare(engine: Any, prompts: list[np.ndarray], tokens: int, **changes: Any) -> int:
    """What `LLM.generate` does with the requests; the number of tokens written."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    for i, ids in enumerate(prompts):
        parameters = SamplingParams(
            temperature=TEMPERATURE,
            seed=i,
            max_tokens=tokens,
            min_tokens=tokens,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **changes,
        )
        engine.add_request(f"bare {i}", tokens_input(ids.tolist()), parameters)
    written = 0
    while engine.has_unfinished_requests():
        written += sum(len(output.outputs[0].token_ids) for output in engine.step())
    return written


def generator_pass(generator: Any, prompts: list[np.ndarray], tokens: int, stop: tuple[str, ...] = ()) -> int:
    """The same requests through the generator; the number of tokens written."""
    from logitcask_schemas.api.generation_steps import Sampling
    from logitcask_services.engines.generator import GenerationTask

    sampling = Sampling(temperature=TEMPERATURE, max_tokens=tokens, min_tokens=tokens, stop=stop)
    tasks = [GenerationTask(key=i, prompt_ids_C=ids, sampling=sampling, seed=i) for i, ids in enumerate(prompts)]
    results = list(generator.generate(tasks))
    assert all(result.error is None for result in results), results
    return sum(len(result.token_ids_N) for result in results)


def measure(engine: Any, passes: Mapping[str, Callable[[], int]], rounds: int, expected: int) -> dict[str, np.ndarray]:
    """Tokens/s by variant, [rounds]; one more round goes first."""
    found: dict[str, list[float]] = {name: [] for name in passes}
    names = list(passes)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            assert engine.reset_prefix_cache()
            started = time.perf_counter()
            written = passes[name]()
            rate = written / (time.perf_counter() - started)
            assert written == expected, f"{name} wrote {written} of {expected} tokens"
            if number:
                found[name].append(rate)
            print(f"round {number} {name:16s} {rate:8.1f} tokens/s", flush=True)
    return {name: np.array(rates) for name, rates in found.items()}


def main() -> None:
    from demo.fetch_teacher import fetch_model
    from logitcask_services.engines.factory import load_generator

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--teacher", type=Path, help="folder of a causal language model (default: SmolLM2-135M, fetched)"
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96, help="written after each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    teacher = arguments.teacher or fetch_model("smollm2-135m")
    prompts = prompts_of(teacher, arguments.prompts)
    generator: Any = load_generator("vllm", teacher, max_model_len=1024)
    engine = generator._engine
    written = partial(generator_pass, generator, prompts, arguments.tokens)
    passes = {
        "bare": partial(bare, engine, prompts, arguments.tokens),
        "bare-logprobs": partial(bare, engine, prompts, arguments.tokens, logprobs=0, flat_logprobs=True),
        "generator": written,
        "generator-stop": partial(written, stop=("\N{SNOWMAN}",)),
    }
    rates = measure(engine, passes, arguments.rounds, arguments.prompts * arguments.tokens)
    dtype = generator.identity.dtype
    generator.close()

    facts = {"teacher": teacher.name, "dtype": dtype, "prompts": len(prompts), "tokens": arguments.tokens}
    rows = []
    for name, values in rates.items():
        metrics = {"throughput (tokens/s)": values, "throughput / bare (ratio)": values / rates["bare"]}
        for metric, column in metrics.items():
            p20, p50, p80 = np.percentile(column, [20, 50, 80]).round(4)
            row = {"variant": name, "metric": metric, "p20": p20, "p50": p50, "p80": p80, "rounds": len(values)}
            rows.append({**row, **facts, **machine()})
            print(f"{name:16s} {metric:28s} p20 {p20:9.3f}  p50 {p50:9.3f}  p80 {p80:9.3f}")
    arguments.output.parent.mkdir(exist_ok=True)
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
