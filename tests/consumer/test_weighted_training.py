"""Weights in whole runs: the same training however a batch is split, nothing trained, resuming, metrics."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM
from two_processes import train_in_two_processes

from logitcask_consumer.callbacks import read_metrics
from logitcask_consumer.checkpoints import RunFolderError
from logitcask_consumer.config import TrainConfig
from logitcask_consumer.trainer import DistillTrainer
from logitcask_consumer.training import train
from logitcask_consumer.weights import UnknownWeightError
from logitcask_schemas.cask import Cask
from logitcask_schemas.records import document_id

GRADED = 'teacher_confidence:power=2 * skip_tokens:tokens="w5 w9 w11"'
CHOSEN = "teacher_entropy:most=1.5 * entropy_top:keep=0.3"


@pytest.fixture
def config(place, tmp_path):
    return TrainConfig(
        casks=(place / "cask",),
        student="from-teacher:layers=2",
        teacher=place / "teacher",
        output=tmp_path / "out",
        seq_len=64,
        overlap=8,
        batch_tokens=512,
        micro_tokens=512,
        max_steps=3,
        lr=1e-3,
        warmup=0.0,
    )


def values(output):
    lines = read_metrics(output / "metrics.jsonl")
    names = ("loss", "kd", "ce", "teacher_entropy", "grad_norm", "positions", "trained_share")
    return [tuple(line[name] for name in names) for line in lines]


def assert_same_training(one, other):
    for mine, theirs in zip(values(one), values(other), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5)
    weights = AutoModelForCausalLM.from_pretrained(other).state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(one).state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("weights", [GRADED, CHOSEN])
def test_a_batch_of_eight_sequences_trains_the_same_however_it_is_split(config, tmp_path, weights):
    """1 x 8, 4 x 2, and two processes of 2 x 2 over gloo."""
    config = replace(config, weights=weights)
    whole = train(config)
    split = train(replace(config, output=tmp_path / "split", micro_tokens=128))
    pair = train_in_two_processes(replace(config, output=tmp_path / "pair", micro_tokens=128))
    assert_same_training(whole.output, split.output)
    assert_same_training(whole.output, pair)


def test_negative_control_means_of_micro_batches_train_another_model(config, tmp_path, monkeypatch):
    config = replace(config, weights=GRADED)
    whole = train(config)
    monkeypatch.setattr(DistillTrainer, "_get_num_items_in_batch", lambda *args: None)
    monkeypatch.setattr(DistillTrainer, "loss_is_scaled_for_ga", False)
    monkeypatch.setattr(
        DistillTrainer, "model_accepts_loss_kwargs", property(lambda _: False, lambda *_: None), raising=False
    )
    split = train(replace(config, output=tmp_path / "split", micro_tokens=128))
    differences = [abs(a[0] - b[0]) / a[0] for a, b in zip(values(whole.output), values(split.output), strict=True)]
    assert max(differences) > 1e-3


def test_metrics_are_means_over_what_is_trained(config, place):
    train(replace(config, weights="teacher_entropy:most=1.0", max_steps=None, epochs=1))
    lines = read_metrics(config.output / "metrics.jsonl")
    records = [Cask.open(place / "cask").read(d).records for d in range(40)]
    sure = sum(int((one.entropy_P.astype("float32") <= 1.0).sum()) for one in records)
    assert sum(line["positions"] for line in lines) == sure
    assert 0 < lines[0]["trained_share"] < 1
    assert all(line["teacher_entropy"] <= 1.0 for line in lines)
    assert lines[0]["loss"] == pytest.approx(lines[0]["kd"], rel=1e-5)


def test_weights_choose_what_is_learned(config):
    """Twice the epochs on the sure half lower its KL; weights reach the gradient, not the metrics alone."""
    train(replace(config, weights="teacher_entropy:most=1.0", max_steps=30, lr=3e-3))
    lines = read_metrics(config.output / "metrics.jsonl")
    assert lines[-1]["kl"] < 0.7 * lines[0]["kl"]


def test_nothing_to_train_is_a_loss_of_zero(config):
    train(replace(config, weights="teacher_entropy:least=50", max_steps=2))
    for line in read_metrics(config.output / "metrics.jsonl"):
        assert (line["loss"], line["kl"], line["ce"], line["grad_norm"]) == (0.0, 0.0, 0.0, 0.0)
        assert (line["positions"], line["trained_share"]) == (0.0, 0.0)


def test_weights_bind_a_run(config, place, tmp_path):
    path = tmp_path / "ranges.jsonl"
    identity = document_id(Cask.open(place / "cask").read(0).token_ids_L).hex()
    path.write_text(json.dumps({"document_id": identity, "ranges": [[0, 9]]}))
    config = replace(config, weights=f"ranges:file={path}", max_steps=1)
    train(config)
    assert train(config).already_finished
    path.write_text(json.dumps({"document_id": identity, "ranges": [[0, 8]]}))
    with pytest.raises(RunFolderError, match="weights_read"):
        train(config)
    with pytest.raises(RunFolderError, match="weights"):
        train(replace(config, weights="tail_mass"))
    with pytest.raises(UnknownWeightError, match="there are"):
        train(replace(config, weights="entropy", output=tmp_path / "other"))
    assert not (tmp_path / "other").exists()
