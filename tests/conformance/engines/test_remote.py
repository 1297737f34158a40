"""A teacher that is served elsewhere, by a real `vllm serve` on this machine, against a plain forward pass."""

import os
import socket
import subprocess
import sys
import time

import httpx2
import numpy as np
import pytest
import torch

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.model_source import find_model
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.factory import load_engine
from logitcask_services.engines.generator import GenerationTask, ScoreTask
from logitcask_services.engines.openai.generator import RemoteGenerator
from logitcask_services.engines.openai.options import RemoteOptions
from tests.support.services.engine_captures import captured, rows_of, tasks_of

WINDOW = 256
SPEC = CaptureSpec(mode="topk", k=20, entropy="at_least", logprob_codec="f32")
START_SECONDS = 480


@pytest.fixture(scope="module")
def server(teacher_folder, tmp_path_factory):
    """Base URL of a stock server of the teacher."""
    pytest.importorskip("vllm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "teacher", "--dtype", "float32"]
    arguments += ["--enforce-eager", "--max-model-len", str(WINDOW), "--no-enable-chunked-prefill"]
    arguments += ["--max-num-batched-tokens", "512", "--max-num-seqs", "4"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            # What `vllm serve` runs; the command itself does not start where vLLM is installed under a name for CPUs.
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(teacher_folder), *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"vllm serve did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _answers(url):
    try:
        return httpx2.get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False


def _differences(document, dense_PV):
    """Largest differences of a document's records from log-probabilities [P, V]: head, next token, log r; and heads."""
    records = document.records
    starts = np.cumsum(records.head_counts_P, dtype=np.int64) - records.head_counts_P
    rows_H = rows_of(records.head_counts_P)
    head = np.abs(records.head_logprobs_H - dense_PV[rows_H, records.head_ids_H]).max()
    next_ids = document.token_ids_L[1:]
    is_next_H = records.head_ids_H == next_ids[rows_H]
    following = np.abs(records.head_logprobs_H[is_next_H] - dense_PV[np.arange(len(next_ids)), next_ids]).max()
    mass_P = np.zeros(len(next_ids))
    np.add.at(mass_P, rows_H, np.exp(dense_PV[rows_H, records.head_ids_H]))
    rest = np.abs(np.exp(records.log_tail_mass_P.astype(np.float64)) - (1 - mass_P)).max()
    least_P = np.array([records.head_logprobs_H[start : start + SPEC.k].min() for start in starts])
    # All that is not in the head is no more probable than its k-th entry.
    outside_PV = dense_PV.copy()
    outside_PV[rows_H, records.head_ids_H] = -np.inf
    missed = (outside_PV.max(axis=1) - least_P).max()
    return {"head": head, "next": following, "rest": rest, "missed": missed}


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_a_served_teacher_gives_what_a_forward_pass_gives(server, teacher_folder, documents, dense):
    """Records, scores and greedy texts; records that are shifted by one position fail the same comparison."""
    short = [(ids, values) for ids, values in zip(documents, dense, strict=True) if len(ids) < WINDOW]
    ids, values = [ids for ids, _ in short], [values for _, values in short]
    engine = load_engine("openai", teacher_folder, options={"url": server})
    generator = RemoteGenerator(find_model(teacher_folder), RemoteOptions(url=server))
    try:
        assert (engine.max_model_len, engine.identity.model, engine.identity.engine) == (
            WINDOW - 1,
            "teacher",
            "openai",
        )
        by_key = captured(engine, tasks_of(ids), SPEC)
        for number, dense_PV in enumerate(values):
            document = by_key[f"document {number}"]
            found = _differences(document, dense_PV)
            assert max(found.values()) < 1e-3, (number, found)
            assert _differences(document, np.roll(dense_PV, 1, axis=0))["next"] > 0.1
            exact_P = -(np.exp(dense_PV) * dense_PV).sum(axis=1)
            assert (document.records.entropy_P <= exact_P + 1e-3).all()
        answers = CaptureTask(key=0, token_ids_L=ids[0], recorded_R2=np.array([[3, 5], [9, 12]], dtype=np.uint32))
        (part,) = engine.capture([answers], SPEC)
        keep_P = np.zeros(len(ids[0]) - 1, dtype=np.bool_)
        keep_P[[3, 4, 9, 10, 11]] = True
        whole = by_key["document 0"].records.select(keep_P)
        np.testing.assert_array_equal(part.document.records.head_ids_H, whole.head_ids_H)
        np.testing.assert_allclose(part.document.records.head_logprobs_H, whole.head_logprobs_H, atol=1e-3)
        with pytest.raises(CaptureSpecError, match=r"does not give the 64 largest.*greater than max allowed: 20"):
            next(engine.capture(tasks_of(ids), SPEC.model_copy(update={"k": 64})))

        prompt = ids[-1].astype(np.uint32)
        greedy = GenerationTask(key="text", prompt_ids_C=prompt, sampling=Sampling(max_tokens=12), seed=0)
        drawn = [
            GenerationTask(key=key, prompt_ids_C=prompt, sampling=Sampling(max_tokens=8, temperature=1.0), seed=seed)
            for key, seed in (("one", 1), ("same", 1), ("two", 2))
        ]
        score = ScoreTask(key="score", token_ids_L=prompt, first=5)
        results = {result.key: result for result in generator.generate([greedy, score, *drawn])}
        assert [result.error for result in results.values()] == [None] * 5
        written, logprob = _greedy(teacher_folder, prompt, 12)
        assert results["text"].token_ids_N.tolist() == written
        assert results["text"].finish == "length"
        assert results["text"].logprob == pytest.approx(logprob, abs=1e-3)
        expected = values[-1][np.arange(len(prompt) - 1), prompt[1:]][4:]
        np.testing.assert_allclose(results["score"].logprobs_N, expected, atol=1e-3)
        assert results["one"].token_ids_N.tolist() == results["same"].token_ids_N.tolist()
        assert results["one"].token_ids_N.tolist() != results["two"].token_ids_N.tolist()

        # A stop text ends a text before it, wherever in a token it begins.
        words = generator._teacher.tokenizer.decode(written)
        stop = words[len(words) // 2 :][:3]
        stopping = Sampling(max_tokens=12, stop=(stop,))
        (stopped,) = generator.generate([GenerationTask(key="stop", prompt_ids_C=prompt, sampling=stopping, seed=0)])
        assert (stopped.error, stopped.finish) == (None, "stop")
        assert stopped.token_ids_N.tolist() == written[: len(stopped.token_ids_N)]
        assert words.partition(stop)[0].startswith(stopped.text)
        assert stop not in stopped.text
    finally:
        engine.close()
        generator.close()
        generator.close()  # idempotent


def _greedy(folder, prompt, tokens):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids, total = prompt.astype(np.int64).tolist(), 0.0
    with torch.inference_mode():
        for _ in range(tokens):
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
            ids.append(int(logprobs.argmax()))
            total += float(logprobs.max())
    return ids[len(prompt) :], total
