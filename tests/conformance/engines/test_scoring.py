"""Scores over HTTP from a real engine are those of a plain forward pass, in the service's shape and in TRL's."""

import numpy as np
import pytest

from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.jobs.loaded_teacher import Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.services.engine_captures import rows_of
from tests.support.services.fake_teacher import FakeTokenizer
from tests.support.services.service_harness import RunningServer, wait_for


class KeptEngine:
    """An engine that others use too: the service's end does not end it."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def close(self):
        """Others go on."""


@pytest.fixture
def server(engine, tmp_path):
    settings = ServiceSettings(teacher=tmp_path / "teacher", cask_root=tmp_path / "casks", disk_floor_bytes=0)
    server = RunningServer(
        Service(settings, lambda role: Teacher(engine=KeptEngine(engine), tokenizer=FakeTokenizer())), None
    )
    server.start()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    yield server
    server.stop()


def test_scores_are_those_of_a_plain_forward_pass(server, documents, dense):
    spec = CaptureSpec(mode="topk", k=8, logprob_codec="f32")
    with ServiceClient(server.url) as client:
        scored = client.score(documents, capture=spec, first=[len(ids) // 2 for ids in documents])
    for document, ids, logprobs in zip(scored, documents, dense, strict=True):
        from_first = logprobs[len(ids) // 2 :]
        records = document.records
        assert records.num_positions == len(from_first)
        rows = rows_of(records.head_counts_P)
        np.testing.assert_allclose(records.head_logprobs_H, from_first[rows, records.head_ids_H], atol=1e-3)
        best = np.sort(from_first, axis=-1)[:, -8:]
        np.testing.assert_allclose(
            np.exp(records.log_tail_mass_P)
            + [np.exp(records.head_logprobs_H[rows == row]).sum() for row in range(len(best))],
            1,
            atol=1e-3,
        )
        starts = np.cumsum(records.head_counts_P, dtype=np.int64) - records.head_counts_P
        np.testing.assert_allclose(records.head_logprobs_H[starts], best[:, -1], atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_completions_are_those_of_a_plain_forward_pass_at_a_temperature(server, documents, dense, temperature):
    ids, logprobs = documents[-1], dense[-1] / temperature
    logprobs = logprobs - np.log(np.exp(logprobs).sum(-1, keepdims=True))
    body = {
        "model": server.client.get("/v1/models").json()["data"][0]["id"],
        "prompt": [ids.tolist()],
        "max_tokens": 1,
        "temperature": temperature,
        "prompt_logprobs": 10,
    }
    answer = server.client.post("/v1/completions", json=body).json()
    first, *rest = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    assert len(rest) == len(logprobs)
    for position, entries in enumerate(rest):
        assert str(ids[position + 1]) in entries
        assert len(entries) in (10, 11)
        for token, entry in entries.items():
            assert entry["logprob"] == pytest.approx(logprobs[position, int(token)], abs=1e-3)
        by_rank = [entry["logprob"] for entry in sorted(entries.values(), key=lambda entry: entry["rank"])]
        assert by_rank == sorted(by_rank, reverse=True)
