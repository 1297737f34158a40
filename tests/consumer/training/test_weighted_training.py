"""Weights in whole runs: the same training however a batch is split, nothing trained, resuming, metrics."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import CaskDataset, NothingTrainedError, open_casks, share_note, trained_share
from logitcask_consumer.run_document import RunFolderError
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_consumer.weights import UnknownWeightError, WeightParameterError, Weights
from logitcask_schemas.cask import Cask
from logitcask_schemas.record.extent import document_id
from tests.support.consumer.cask_builder import build_cask, random_documents, tiny_tokenizer
from tests.support.consumer.two_processes import train_in_two_processes

GRADED = 'teacher_confidence:power=2 * skip_tokens:tokens="w5 w9 w11"'
TEMPLATE = (
    "{% for m in messages %}w5 {% if m.role == 'user' %}w8{% else %}w6 w6 w6{% endif %} {{ m.content }} w7 {% endfor %}"
    "{% if add_generation_prompt %}w5 w6 w6 w6 {% endif %}"
)
"""No document has a turn like that."""
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


@pytest.fixture
def texts(config, tmp_path, place):
    """A run on documents that say they have no answers, as those captured from text may."""
    documents = random_documents(12, seed=3)
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher")
    cask = build_cask(tmp_path / "texts", teacher, documents, answers=[[] for _ in documents])
    return replace(config, casks=(cask,))


def test_documents_without_answers_train_nothing_and_are_refused_before_anything_is_made(texts):
    with pytest.raises(NothingTrainedError, match="none of the 12 documents has an answer"):
        train(replace(texts, weights="assistant_only"))
    with pytest.raises(NothingTrainedError, match="none of the 12 documents has an answer"):
        train(replace(texts, weights="teacher_confidence * completion_only"))
    assert not (texts.output / "metrics.jsonl").exists()
    assert not (texts.output / "initial").exists()


def test_silent_documents_in_which_no_turn_is_found_are_refused(config, place, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    shutil.copytree(place / "teacher", tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(NothingTrainedError, match=r"40 of 40 documents do not say .*and none has a turn as"):
        train(replace(config, teacher=tmp_path / "teacher", weights="assistant_only"))
    assert not (config.output / "initial").exists()


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("teacher_entropy:least=50", "teacher_entropy:least=50 is 0 everywhere"),
        ("teacher_entropy:least=50 * entropy_top", "teacher_entropy:least=50 is 0 everywhere"),
        ("teacher_entropy:least=1 * teacher_entropy:most=0.5", "where one of the weights is above 0, another is 0"),
        ("assistant_only:after=w2,until=w2 * teacher_entropy:least=50", "teacher_entropy:least=50 is 0 everywhere"),
        ('completion_only:after="w2 w2 w2 w2 w2"', "no document has the text"),
    ],
)
def test_weights_that_leave_nothing_are_refused_with_the_reason(config, weights, reason):
    with pytest.raises(NothingTrainedError, match=reason):
        train(replace(config, weights=weights))
    assert not (config.output / "initial").exists()


def test_a_trainer_of_one_s_own_refuses_too(config, place):
    dataset = CaskDataset(
        open_casks(place / "cask", tokenizer_fingerprint=None),
        seq_len=64,
        weights=Weights.parse("teacher_entropy:least=50"),
    )
    with pytest.raises(NothingTrainedError):
        DistillTrainer(
            AutoModelForCausalLM.from_pretrained(place / "teacher"),
            DistillConfig(output_dir=str(config.output), report_to="none"),
            dataset,
            processing_class=tiny_tokenizer(),
        )


def test_two_processes_refuse_too(texts):
    with pytest.raises(AssertionError, match="none of the 12 documents has an answer"):
        train_in_two_processes(replace(texts, weights="assistant_only"))


def test_a_share_below_one_percent_is_trained_and_said(config, place, tmp_path):
    path = tmp_path / "ranges.jsonl"
    cask = Cask.open(place / "cask")
    identity = document_id(cask.read(0).token_ids_L).hex()
    path.write_text(json.dumps({"document_id": identity, "ranges": [[1, 4]]}))
    said = []
    train(replace(config, weights=f"ranges:file={path}", max_steps=1), say=said.append)
    [warning] = [message for message in said if "warning" in message]
    assert f"leave 3 positions to be trained, {3 / cask.num_positions:.2%}" in warning


def test_looking_for_a_trained_position_stops_when_there_are_enough(place):
    casks = open_casks(str(place / "cask"), tokenizer_fingerprint=None)
    dataset = CaskDataset(casks, seq_len=16, weights=Weights.parse("skip_tokens:tokens=w5").bind(tiny_tokenizer()))
    found = trained_share(dataset, seed=0, enough=10)
    assert 10 <= found.positions < dataset.num_positions
    assert not found.whole
    assert share_note(found) is None
    assert share_note(replace(found, trained=1, positions=1000)).startswith("warning: the weights leave 1 positions of")


def test_a_run_on_answers_trains_these_positions(config, place, tmp_path):
    documents = random_documents(12, low=12, seed=4)
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher")
    answers = [[[3, 5], [9, 12]] if n % 2 else None for n in range(12)]
    cask = build_cask(tmp_path / "mixed", teacher, documents, answers=answers)
    said = []
    with pytest.raises(WeightParameterError, match="6 of 12 documents do not say"):
        train(replace(config, casks=cask, weights="assistant_only"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    shutil.copytree(place / "teacher", tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    run = replace(config, casks=cask, teacher=tmp_path / "teacher", weights="assistant_only", max_steps=1)
    train(run, say=said.append)
    [note] = [note for note in said if note.startswith("assistant_only: 6 of 12 documents say")]
    assert "a document without turns, such as plain text, trains nothing" in note
    [line] = read_metrics(config.output / "metrics.jsonl")
    assert line["trained_share"] == pytest.approx(6 * 5 / sum(len(ids) - 1 for ids in documents))
