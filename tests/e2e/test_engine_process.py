"""A real vLLM in a process of its own is killed in the middle of a job, as the kernel does when memory runs out."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from logitcask_schemas.cask import Cask
from logitcask_schemas.model_source import ModelSource
from logitcask_services.engines.process.door import start_engine
from logitcask_services.jobs.loaded_teacher import Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.services.fake_teacher import FakeTokenizer
from tests.support.services.process_engines import engines_of, is_alive
from tests.support.services.service_harness import RunningServer, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.e2e, pytest.mark.timeout(1200)]
VOCAB = 1000
PATIENCE = 600


@pytest.fixture
def tiny_teacher(tmp_path):
    """A tiny random Llama with a tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    return folder


def of_vllm(server, name, **labels):
    """The value of one of vLLM's own metrics, under the model's name and the engine's role; 0 where there is none."""
    given = {"model_name": "tiny", "engine": "0", "role": "capture", **labels}
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return sum(sample.value for sample in samples if (sample.name, sample.labels) == (name, given))


def test_vllm_killed_in_a_job_is_started_again(tiny_teacher, tmp_path):
    """Its own engine core goes with it; what was published stays, the rest is captured by the next one."""
    pytest.importorskip("vllm")
    engines = []

    def load(role):
        source = ModelSource(folder=tiny_teacher, name="tiny")
        options = {"max_num_batched_tokens": 256, "disable_log_stats": False}
        engine = start_engine("vllm", source, max_model_len=256, options=options)
        engines.append(engine.pid)
        return Teacher(engine=engine, tokenizer=FakeTokenizer())

    settings = ServiceSettings(
        teacher=Path("unused"),
        cask_root=tmp_path / "casks",
        data_dir=tmp_path / "state",
        disk_floor_bytes=0,
        chunk_positions=2000,
        engine_backoff_seconds=0.1,
    )
    server = RunningServer(Service(settings, load), None)
    server.start()
    generator = np.random.default_rng(0)
    lines = [{"input_ids": generator.integers(3, VOCAB, 200).tolist()} for _ in range(440)]
    calm = server.submit(server.upload(lines[:40]), cask="calm")["id"]
    assert server.finish(calm, PATIENCE)["documents"]["captured"] == 40
    wait_for(lambda: 0 < of_vllm(server, "vllm:prompt_tokens_total") <= 40 * 200)
    assert of_vllm(server, "vllm:request_success_total", finished_reason="stop") > 0
    group = [pid for pid in engines_of(os.getpid()) if os.getpgid(pid) == engines[0]]
    assert len(group) > 1, "vLLM's core is a process of its own in the group"
    job = server.submit(server.upload(lines[40:]))["id"]
    wait_for(lambda: server.get(job)["documents"]["captured"] > 0, PATIENCE)
    os.kill(engines[0], signal.SIGKILL)
    wait_for(lambda: server.service.teacher.deaths == 1)
    assert "vllm:" not in server.client.get("/metrics").text
    assert server.client.get("/health").status_code == 200
    wait_for(lambda: not any(map(is_alive, group)))
    done = server.finish(job, PATIENCE)
    assert (done["status"], done["documents"]["captured"]) == ("completed", 400)
    teacher = server.service.teacher
    assert (teacher.deaths, teacher.restarts, len(engines)) == (1, 1, 2)
    assert len(Cask.open(tmp_path / "casks" / "cask")) == 400
    assert server.service.not_ready() == []
    server.stop()
    assert not any(map(is_alive, engines_of(os.getpid())))
