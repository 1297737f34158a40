"""The completions that TRL's trainers ask of a teacher's server."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.services.scoring import expected, ready


def trl_client(server, monkeypatch):
    """TRL's own client of vLLM's server, told that vLLM is here."""
    folder = Path(pytest.importorskip("trl").__file__).parent / "generation"
    package = ModuleType("trl.generation")  # whose own imports ask for what a client does not need
    package.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, "trl.generation", package)
    monkeypatch.delitem(sys.modules, "trl.generation.vllm_client", raising=False)
    # The client asks for vLLM to transfer weights with, not to score.
    monkeypatch.setattr(importlib.import_module("trl.import_utils"), "is_vllm_available", lambda *_, **__: False)
    module = importlib.import_module("trl.generation.vllm_client")
    monkeypatch.setattr(module, "is_vllm_available", lambda *_, **__: True)
    return module.VLLMClient(base_url=server.url)


def test_trl_finds_its_teacher(serve, monkeypatch):
    server = ready(serve())
    client = trl_client(server, monkeypatch)
    assert client.model == "fake-teacher"
    sequences = [[5, 6, 7, 8], [9, 10, 11]]
    found = client.get_sequence_logprobs(sequences, [2, 1], top_logprobs=3, chunk_size=1)
    spec = CaptureSpec(mode="topk", k=3, logprob_codec="f32")
    for index, (ids, prompt) in enumerate(zip(sequences, [2, 1], strict=True)):
        records = expected(ids, spec).records
        ends = np.cumsum(records.head_counts_P)
        starts = ends - records.head_counts_P
        logprobs = np.array(found["logprobs"][index])
        assert logprobs.shape == (len(ids) - prompt, 3)
        for row, position in enumerate(range(prompt - 1, len(ids) - 1)):
            head = slice(starts[position], min(starts[position] + 3, ends[position]))
            count = head.stop - head.start
            assert found["logprob_token_ids"][index][row][:count] == records.head_ids_H[head].tolist()
            np.testing.assert_allclose(logprobs[row, :count], records.head_logprobs_H[head], atol=1e-6)
            assert (logprobs[row, count:] == -np.inf).all()
            actual = found["actual_logprobs"][index][row][0]
            assert actual == pytest.approx(float(records.head_logprobs_H[starts[position]]), abs=1e-6)
        assert found["actual_token_ids"][index] == [[token] for token in ids[prompt:]]


def test_trl_is_told_that_the_teacher_keeps_its_weights(serve, monkeypatch):
    client = trl_client(ready(serve()), monkeypatch)
    with pytest.raises(Exception, match="no weight transfer"):
        client.init_communicator()


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"model": "another"}, 404, "model"),
        ({"max_tokens": 2}, 501, "max_tokens"),
        ({"temperature": 0}, 422, "temperature"),
        ({"temperature": 1.001}, 422, "temperature"),
        ({"prompt_logprobs": 255}, 422, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, 422, "prompt_logprobs"),
        ({"prompt_logprobs": None}, 422, "prompt_logprobs"),
        ({"prompt": [[1]]}, 422, "input_ids.0"),
        ({"stream": True}, 422, "stream"),
    ],
)
def test_what_completions_do_not_serve_is_refused(serve, changes, status, param):
    server = ready(serve())
    body = {"prompt": [[1, 2]], "prompt_logprobs": 3, **changes}
    answer = server.client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_completions_take_one_sequence_too(serve):
    server = ready(serve())
    body = {"prompt": [5, 6, 7], "prompt_logprobs": 0}
    answer = server.client.post("/v1/completions", json=body).json()
    assert (answer["object"], answer["usage"]["total_tokens"], len(answer["choices"])) == ("text_completion", 3, 1)
    first, *rest = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    assert [list(entry) for entry in rest] == [["6"], ["7"]]
