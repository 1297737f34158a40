"""`choose_tau` through an engine, and the command, on a tiny model."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from logitcask_services.cli.capture import app
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.factory import load_engine
from logitcask_services.pilot import PilotError, choose_tau

LINES = [{"text": " ".join(f"w{i % 290}" for i in range(start, start + 60))} for start in range(0, 900, 30)] + [
    {"input_ids": list(range(2, 90))},
    {"messages": [{"role": "user", "content": "w5 w6 w7"}]},
]


@pytest.fixture(scope="module")
def engine(tiny_llama):
    engine = load_engine("transformers", tiny_llama)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def student(tmp_path_factory, tiny_llama):
    """Another model with the same vocabulary."""
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, folder)
    return folder


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def test_an_engine_and_its_logits_say_the_same(engine):
    documents = [np.random.default_rng(i).integers(0, 300, 80) for i in range(6)]
    through_engine, through_logits = choose_tau(engine, documents, 30.0), choose_tau(engine.logits, documents, 30.0)
    assert through_engine == through_logits
    tasks = [CaptureTask(key=i, token_ids_L=ids.astype(np.uint32)) for i, ids in enumerate(documents)]
    entries = sum(
        len(result.document.records.head_ids_H) + len(result.document.records.tail_ids_N)
        for result in engine.capture(tasks, through_engine.spec)
    )
    chosen = through_engine.chosen
    assert entries == pytest.approx((chosen.head_entries + chosen.draws) * through_engine.positions, abs=2)


def test_a_document_the_teacher_cannot_take_is_named(engine):
    with pytest.raises(PilotError, match="document 1 of the sample, counted from 0: a document of 200 tokens exceeds"):
        choose_tau(engine, [np.arange(50), np.arange(200)], 40.0)


def run(*arguments):
    return CliRunner().invoke(app, ["choose-tau", *map(str, arguments)])


def test_the_command_prints_the_table(tiny_llama, sample):
    result = run("--model", tiny_llama, "--sample", sample, "--bytes-per-token", 30, "--positions", 800)
    assert result.exit_code == 0, result.output
    assert "positions of" in result.output
    assert "expected noise of the target" in result.output
    assert "of an untrained student's gradient at one position" in result.output


def test_the_command_gives_json_and_a_plot(tiny_llama, student, sample, tmp_path):
    plot = tmp_path / "tau.png"
    arguments = ["--model", tiny_llama, "--sample", sample, "--bytes-per-token", 30, "--codec", "u8", "--json"]
    result = run(*arguments, "--sampler", "multinomial", "--carrier", "zarr", "--student", student, "--plot", plot)
    assert result.exit_code == 0, result.output
    choice = json.loads(result.stdout)
    assert choice["spec"]["sampler"] == "multinomial"
    assert choice["chosen"]["zarr_bytes"] == choice["bytes_per_token"] <= 30
    assert choice["spec"]["tau"] == pytest.approx(1 / choice["chosen"]["tau_inverse"])
    assert choice["gradient_of"] == "student"
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["--codec", "f8"], "logprob_codec"), (["--carrier", "parquet"], "parquet"), (["--sampler", "x"], "sampler")],
)
def test_wrong_options_are_usage_errors(tiny_llama, sample, extra, message):
    result = run("--model", tiny_llama, "--sample", sample, "--bytes-per-token", 30, *extra)
    assert result.exit_code == 2
    assert message in result.output


def test_a_bad_line_is_named(tiny_llama, tmp_path):
    path = tmp_path / "sample.jsonl"
    path.write_text('{"text": "w1 w2 w3"}\n{"txt": 3}\n')
    result = run("--model", tiny_llama, "--sample", path, "--bytes-per-token", 30)
    assert isinstance(result.exception, PilotError)
    assert "line 2: the object has the fields" in str(result.exception)
