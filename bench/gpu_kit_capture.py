"""The sections of the GPU kit on the teacher's side: capture by itself, in the transformers engine and in vLLM.

Shape legend: R rows, V vocabulary.
"""

import json
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_kit_run import Kit, SkippedError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.capture import RecordCapture, RecordColumns, capture_uniforms, pack_wire
from logitcask_services.capture.plan import accelerator_plan, cpu_plan
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.factory import load_engine

SPECS = {
    "threshold 1/35": CaptureSpec(logprob_codec="f32"),
    "threshold 1/50, multinomial": CaptureSpec(tau=1 / 50, sampler="multinomial", logprob_codec="f32"),
    "topk 50": CaptureSpec(mode="topk", k=50, logprob_codec="f32"),
    "sampled 50": CaptureSpec(mode="sampled", draws=50, logprob_codec="f32"),
}
VOCABULARIES = (32_000, 49_152, 128_256, 151_936, 262_144)
LOGPROB_TOLERANCE = 2e-5
"""Nats between devices, whose exponentials and orders of summation differ in the last bits of float32."""
ROWS_APART = 2e-3
"""Share of rows of which a device may see the other side of an edge: a token at tau, a point between two tokens."""


def made_up_logits(rows: int, vocab: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Rows as peaked as those of real text: a few tokens hold most of the mass."""
    generator = torch.Generator(device).manual_seed(0)
    logits_RV = torch.randn(rows, vocab, generator=generator, device=device) * 2.0
    best_RK = torch.randint(0, vocab, (rows, 8), generator=generator, device=device)
    lifts_RK = 6.0 + 4.0 * torch.rand(rows, 8, generator=generator, device=device)
    return logits_RV.scatter_add_(1, best_RK, lifts_RK).to(dtype)


def numbers(rows: int, vocab: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Next ids, document keys and positions."""
    positions_R = torch.arange(rows, device=device)
    return positions_R * 7919 % vocab, torch.full_like(positions_R, -(2**62) + 12345), positions_R


def capture_equality(kit: Kit) -> None:
    """Records on the device beside those of the CPU, of the same logits."""
    vocab, rows = (1024, 64) if kit.quick else (49_152, 2048)
    logits_RV = made_up_logits(rows, vocab, torch.device("cpu"), torch.float32)
    plan = accelerator_plan(vocab)
    for name, spec in SPECS.items():
        there, here = (numbers(rows, vocab, torch.device(device)) for device in (kit.device, "cpu"))
        seeds = capture_uniforms(spec, *there[1:]).cpu()
        kit.require(torch.equal(seeds, capture_uniforms(spec, *here[1:])), f"{name}: uniforms differ from the CPU's")
        got = RecordCapture(spec, vocab, plan=plan)(logits_RV.to(kit.device, copy=True), *there).on_host()
        expected = RecordCapture(spec, vocab, plan=cpu_plan(vocab))(logits_RV.clone(), *here)
        if kit.device.type == "cpu":
            equal = torch.equal(pack_wire(got, vocab), pack_wire(expected, vocab))
            kit.require(equal, f"{name}: both plans must give the same bytes on one device")
        apart, gap = compared(got, expected, rows)
        kit.add("rows apart", "share", [apart], spec=name)
        kit.add("largest gap of a log-probability or entropy", "nats", [gap], spec=name)
        kit.require(apart <= ROWS_APART, f"{name}: {apart:.2%} of the rows have other tokens, allowed {ROWS_APART:.2%}")
        kit.require(gap <= LOGPROB_TOLERANCE, f"{name}: values differ by {gap:.2g}, allowed {LOGPROB_TOLERANCE}")


def compared(got: RecordColumns, expected: RecordColumns, rows: int) -> tuple[float, float]:
    """Share of rows that name other tokens; largest gap of a value where they name the same."""
    apart, gap = 0, 0.0
    for mine, theirs in zip(got.split([1] * rows), expected.split([1] * rows), strict=True):
        same = torch.equal(mine.head_ids_H, theirs.head_ids_H) and torch.equal(mine.tail_ids_N, theirs.tail_ids_N)
        apart += not same
        pairs = [(mine.position_columns["entropy"], theirs.position_columns["entropy"])]
        pairs += [(mine.head_logprobs_H, theirs.head_logprobs_H)] if same else []
        gap = max([gap, *(float((a - b).abs().max()) for a, b in pairs)])
    return apart / rows, gap


def capture_speed(kit: Kit) -> None:
    """Microseconds a row, beside log_softmax with top-50 and beside the time that reading the logits twice takes."""
    size = (2**22 if kit.quick else 2**30) // 4
    source = torch.empty(size, dtype=torch.float32, device=kit.device).fill_(1.0)
    target = torch.empty_like(source)
    copies = kit.seconds(partial(target.copy_, source))
    bandwidth = 2 * source.nbytes / float(np.median(copies))
    kit.add("memory bandwidth, by a copy", "GB/s", [2 * source.nbytes / seconds / 1e9 for seconds in copies])
    for vocab in (1024,) if kit.quick else VOCABULARIES:
        rows = 64 if kit.quick else 2 * accelerator_plan(vocab).rows
        logits_RV = made_up_logits(rows, vocab, kit.device, kit.dtype)
        arguments = numbers(rows, vocab, kit.device)
        limit = 2 * vocab * logits_RV.itemsize / bandwidth * 1e6
        kit.add("logits read twice, at that bandwidth", "us/row", [limit], vocab=vocab)

        def reference(logits_RV: torch.Tensor = logits_RV) -> None:
            for part in torch.split(logits_RV, 512):
                torch.log_softmax(part.float(), -1).topk(50, -1)

        plain = kit.seconds(reference)
        kit.add("log_softmax + topk 50", "us/row", [seconds / rows * 1e6 for seconds in plain], vocab=vocab)
        for name, spec in SPECS.items():
            module = RecordCapture(spec, vocab, plan=accelerator_plan(vocab))

            def capture(module: RecordCapture = module, logits_RV: torch.Tensor = logits_RV) -> None:
                module(logits_RV, *arguments).on_host()  # noqa: B023

            taken = kit.seconds(capture)
            kit.add("capture", "us/row", [seconds / rows * 1e6 for seconds in taken], vocab=vocab, spec=name)
            kit.ratio("capture / log_softmax + topk 50", taken, plain, vocab=vocab, spec=name)
            kit.add("capture / limit", "ratio", [s / rows * 1e6 / limit for s in taken], vocab=vocab, spec=name)


def save_teacher(folder: Path, *, quick: bool) -> None:
    """A Llama of about a billion random parameters, with a tokenizer of made-up words, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    if not quick:
        shape = {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        shape |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096}
    model: Any = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    model.to(torch.float32 if quick else torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(shape["vocab_size"])}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1")  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def documents(*, quick: bool) -> list[CaptureTask]:
    """Made-up ones, of equal length."""
    random = np.random.default_rng(0)
    count, length, vocab = (3, 40, 300) if quick else (32, 2048, 128_256)
    return [CaptureTask(key=i, token_ids_L=random.integers(2, vocab, length).astype(np.uint32)) for i in range(count)]


def transformers_engine(kit: Kit) -> None:
    """Capture in the transformers engine, beside the same documents through a plain forward pass."""
    tasks = documents(quick=kit.quick)
    tokens = sum(len(task.token_ids_L) for task in tasks)
    with tempfile.TemporaryDirectory() as folder:
        save_teacher(Path(folder), quick=kit.quick)
        engine: Any = load_engine("transformers", Path(folder), options={"device": str(kit.device)})
        try:

            def capture() -> None:
                done = list(engine.capture(tasks, CaptureSpec()))
                kit.require(all(one.error is None for one in done), f"capture failed: {done[0].error}")

            def forward() -> None:
                for task in tasks:
                    engine.logits(task.token_ids_L)

            captures, forwards = kit.seconds(capture, repeats=3), kit.seconds(forward, repeats=3)
        finally:
            engine.close()
    kit.add("capture", "tokens/s", [tokens / seconds for seconds in captures])
    kit.add("plain forward", "tokens/s", [tokens / seconds for seconds in forwards])
    kit.ratio("forward / capture (share of its speed)", forwards, captures)


def vllm_engine(kit: Kit) -> None:
    """Capture in vLLM, where it is installed."""
    if find_spec("vllm") is None:
        raise SkippedError("vLLM is not installed in this environment")
    if kit.device.type == "cpu":
        raise SkippedError("on a CPU bench/capture.py measures vLLM")
    tasks = documents(quick=kit.quick)
    tokens = sum(len(task.token_ids_L) for task in tasks)
    with tempfile.TemporaryDirectory() as folder:
        save_teacher(Path(folder), quick=kit.quick)
        engine: Any = load_engine("vllm", Path(folder), options={"gpu_memory_utilization": 0.5})
        try:
            runner = "V2" if engine._engine.vllm_config.use_v2_model_runner else "V1"

            def capture() -> None:
                done = list(engine.capture(tasks, CaptureSpec()))
                kit.require(all(one.error is None for one in done), f"capture failed: {done[0].error}")

            taken = kit.seconds(capture, repeats=3)
        finally:
            engine.close()
    kit.add("capture", "tokens/s", [tokens / seconds for seconds in taken], runner=runner)
