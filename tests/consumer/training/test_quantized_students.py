"""Runs with quantised layers: what they gain, what they save, that they go on bit by bit; and without training."""

import importlib.metadata
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.held_out.overlap import trained_on
from logitcask_consumer.held_out.reading import load_reader
from logitcask_consumer.run_document import ORIGIN_NAME, RunFolderError, earlier_runs, extra_ids_of
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.quantization import (
    QuantizationError,
    fake_quantize,
    quantized_layers,
    read_scheme,
    round_weights,
)
from logitcask_consumer.training.run import train
from logitcask_schemas.cask import Cask
from logitcask_schemas.cli.main import main
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import random_documents, save_teacher, tiny_tokenizer
from tests.support.consumer.resume_worker import require_resumed_alike

pytest.importorskip("torchao")
IDS = torch.arange(3, 30)[None]
INT4 = "int4:group=16"


@pytest.fixture
def config(run_config, place):
    """The teacher itself, quantised."""
    return run_config(student=str(place / "teacher"), max_steps=12, lr=1e-3, save_steps=6, quantize=INT4)


@torch.no_grad()
def logits(model, ids=IDS):
    return model.eval()(input_ids=ids, use_cache=False).logits


def kl_of(model, teacher):
    """Mean KL(t || p) over positions of documents that no run has seen, in nats."""
    sums = positions = 0.0
    for ids_L in random_documents(24, low=30, seed=9):
        ids = torch.from_numpy(ids_L.astype("int64"))[None]
        logt, logp = (logits(one, ids).double().log_softmax(-1) for one in (teacher, model))
        sums += float((logt.exp() * (logt - logp)).sum())
        positions += ids.numel()
    return sums / positions


def rounded(folder, scheme=INT4):
    model = load_model(folder)
    round_weights(model, read_scheme(scheme))
    return model


def test_training_with_rounded_weights_beats_rounding_afterwards(config, place, tmp_path):
    """The control trains as long from the same start, and is rounded when it is done."""
    teacher = load_model(place / "teacher")
    run = replace(config, max_steps=40)
    train(run)
    control = replace(run, quantize=None, output=tmp_path / "control")
    train(control)
    before, after_rounding, trained = (
        kl_of(model, teacher) for model in (teacher, rounded(place / "teacher"), load_model(run.output))
    )
    assert before == 0
    assert trained < 0.9 * after_rounding
    assert trained < 0.9 * kl_of(rounded(control.output), teacher), "training alone is not what helps"


@pytest.mark.parametrize("scheme", [INT4, "fp8"])
def test_what_is_saved_computes_what_was_trained(config, scheme):
    train(replace(config, quantize=scheme))
    last = config.output / "checkpoints" / "checkpoint-12"
    trained, saved = load_model(last), AutoModelForCausalLM.from_pretrained(config.output)
    plain = logits(trained)
    fake_quantize(trained, read_scheme(scheme))
    assert torch.equal(logits(trained), logits(saved))
    assert float((plain - logits(saved)).abs().max()) > 1e-3, "the checkpoint holds the weights before rounding"
    read = load_reader(last, "none")
    assert torch.equal(logits(read), logits(saved)), "a report rounds a checkpoint's weights"
    assert torch.equal(logits(load_reader(config.output, "none")), logits(saved))


@pytest.mark.parametrize("scheme", [INT4, "fp8"])
def test_torchao_stores_the_student_that_was_trained(config, tmp_path, scheme):
    run = replace(config, quantize=scheme, max_steps=6)
    train(run)
    stored = replace(run, save_quantized=True, output=tmp_path / "stored")
    train(stored)
    assert json.loads((stored.output / "config.json").read_text())["quantization_config"]["quant_method"] == "torchao"
    tensors = load_file(stored.output / "model.safetensors")
    kinds = {value.dtype for name, value in tensors.items() if "qdata" in name}
    assert kinds == {torch.int8 if scheme == INT4 else torch.float8_e4m3fn}
    for model in (AutoModelForCausalLM.from_pretrained(stored.output), load_model(stored.output)):
        torch.testing.assert_close(logits(model), logits(load_model(run.output)), rtol=0, atol=1e-4)
    with pytest.raises(RunFolderError, match=r"save_quantized: True there, False now"):
        train(replace(stored, save_quantized=False))
    for other in (INT4, None):
        with pytest.raises(ModelError, match=r"is quantised already \(torchao\)"):
            train(replace(config, student=str(stored.output), quantize=other, output=tmp_path / "again"))


def test_a_quantised_run_goes_on_bit_by_bit(config, tmp_path):
    whole = replace(config, output=tmp_path / "whole")
    require_resumed_alike(whole, tmp_path, stop=8)
    with pytest.raises(RunFolderError, match=f"quantize: '{INT4}' there, 'fp8' now"):
        train(replace(whole, quantize="fp8"))


def test_a_rounded_teachers_layers_are_not_rounded_again(config, tmp_path):
    rounded = train(replace(config, max_steps=1)).output
    with pytest.raises(ModelError, match=r"the teacher .* was quantised by its run already"):
        train(replace(config, student="from-teacher:layers=1", teacher=rounded, output=tmp_path / "again"))


def test_a_student_of_the_teachers_layers_is_quantised(config, capsys):
    said = []
    train(replace(config, student="from-teacher:layers=2", max_steps=2), say=said.append)
    layers = quantized_layers(load_model(config.output))
    assert len(layers) == 2 * 7
    count = sum(layer.weight.numel() for layer in layers.values())
    assert any(f"quantised to {INT4}: {count:,} of " in line for line in said)
    first = load_file(config.output / "initial" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert len(first[0, :16].unique()) == 16, "before training nothing is rounded"


def test_what_does_not_go_together_is_refused_before_work_starts(config, place, tmp_path):
    for settings, message in (
        ({"lora": "rank=2"}, "lora does not go with quantize"),
        ({"fsdp": True}, "fsdp does not go with quantize"),
        ({"quantize": None, "save_quantized": True}, "save_quantized is for quantised students"),
        ({"save_quantized": True, "save_dtype": "bfloat16"}, "save_quantized keeps float32 beside the integers"),
    ):
        with pytest.raises(TrainConfigError, match=message):
            replace(config, **settings)
    for quantize, message in (("int5", "there is no quantisation 'int5'"), ("int4", "Take int4:group=16")):
        with pytest.raises(QuantizationError, match=message):
            train(replace(config, quantize=quantize))
    assert not (config.output / "logitcask.json").exists()
    train(replace(config, max_steps=2))
    with pytest.raises(ModelError, match=r"was quantised by its run already \(int4:group=16\)"):
        train(replace(config, student=str(config.output), output=tmp_path / "again"))
    train(replace(config, student=str(config.output), quantize=None, max_steps=1, output=tmp_path / "plain"))


@pytest.fixture
def command(monkeypatch, capsys):
    """`logitcask quantize`, also where this installation is of an earlier version; (exit code, what it says)."""
    point = importlib.metadata.EntryPoint("quantize", "logitcask_consumer.cli.quantize:app", "logitcask.commands")
    monkeypatch.setattr("logitcask_schemas.cli.main.importlib.metadata.entry_points", lambda **_: [point])
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["quantize", *map(str, arguments)])
        return ended.value.code or 0, capsys.readouterr().err

    return run


def test_the_command_rounds_without_training(command, tmp_path, config):
    teacher = save_teacher(tmp_path / "model", layers=2)
    code, said = command(tmp_path / "model", "--scheme", INT4, "--output", tmp_path / "rounded")
    assert (code, "quantised to int4:group=16: " in said) == (0, True), said
    assert torch.equal(logits(load_model(tmp_path / "rounded")), logits(rounded(tmp_path / "model")))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "rounded").config.vocab_size == teacher.config.vocab_size
    assert (tmp_path / "rounded" / "tokenizer.json").is_file()
    code, said = command(tmp_path / "model", "--scheme", "fp8", "-o", tmp_path / "stored", "--save-quantized")
    assert code == 0, said
    torch.testing.assert_close(
        logits(load_model(tmp_path / "stored")), logits(rounded(tmp_path / "model", "fp8")), rtol=0, atol=1e-4
    )
    train(replace(config, max_steps=2))
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text("{}")
    tiny_tokenizer().save_pretrained(adapters)
    for arguments, expected, message in (
        ((tmp_path / "model", "--output", tmp_path / "rounded"), 1, "holds a model that no run made"),
        ((tmp_path / "model", "--output", tmp_path / "new"), 2, "Take int4:group=16"),
        ((tmp_path / "model", "--output", tmp_path / "new", "--scheme", "int5"), 2, "there is no quantisation"),
        ((tmp_path / "model", "--output", tmp_path / "new", "--save-dtype", "int8"), 2, "must be float32 or"),
        (
            (tmp_path / "model", "--output", tmp_path / "new", "--save-dtype", "float16", "--save-quantized"),
            2,
            "keeps float32",
        ),
        ((tmp_path / "none", "--output", tmp_path / "new"), 1, "does not exist"),
        ((tmp_path / "stored", "--output", tmp_path / "new"), 1, "is quantised already (torchao)"),
        ((config.output, "--output", tmp_path / "new"), 1, "was quantised by its run already"),
        ((adapters, "--output", tmp_path / "new"), 1, "holds adapters"),
        ((tmp_path / "model", "--output", config.output), 1, "holds a training run"),
    ):
        code, said = command(*arguments)
        assert (code, message in said) == (expected, True), said
        assert "Traceback" not in said
    assert not (tmp_path / "new").exists()
    code, said = command(config.output / "checkpoints" / "checkpoint-2", "--scheme", INT4, "-o", tmp_path / "last")
    assert code == 0, said
    assert torch.equal(logits(load_model(tmp_path / "last")), logits(load_model(config.output)))


def test_a_model_that_was_rounded_without_training_keeps_what_it_was_trained_on(command, tmp_path, config, place):
    train(replace(config, quantize=None, max_steps=1, extra_ids="mask"))
    code, said = command(config.output, "--scheme", INT4, "--output", tmp_path / "rounded")
    assert code == 0, said
    cask = Cask.open(place / "cask")
    assert trained_on(tmp_path / "rounded", [cask]) == {
        "status": "checked",
        "documents": len(cask),
        "unread": [],
        "chosen_by": 0,
    }
    assert extra_ids_of(tmp_path / "rounded") == "mask"
    assert earlier_runs(tmp_path / "rounded") == earlier_runs(config.output)
    code, said = command(place / "teacher", "--scheme", INT4, "--output", tmp_path / "untrained")
    assert code == 0, said
    assert trained_on(tmp_path / "untrained", [cask])["status"] == "untrained"
    (tmp_path / "rounded" / ORIGIN_NAME).write_text("{")
    with pytest.raises(RunFolderError, match="what the model was trained on is not known"):
        earlier_runs(tmp_path / "rounded")
