"""What people do in code of their own around the loss: what cannot be right is refused, what they copy is a copy."""

import copy
import pickle
from typing import Any
from unittest.mock import PropertyMock

import pytest
import torch
from torch.utils.data import DataLoader

from logitcask_consumer.config import TrainConfig, TrainConfigError
from logitcask_consumer.data import EMPTY, CaskDataset, Collator, open_casks
from logitcask_consumer.losses.loss import LossParameterError
from logitcask_consumer.methods import SparseTargetLoss
from logitcask_consumer.student.forward import attach, hidden_states
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_consumer.weights import Weights
from logitcask_schemas.errors import IdentityMismatchError, ModelError
from tests.consumer.training.test_trainer_manners import arguments
from tests.support.consumer.cask_builder import VOCAB, tiny_model, tiny_tokenizer
from tests.support.consumer.two_processes import run_in_two_processes


@pytest.fixture
def dataset(place):
    return CaskDataset(open_casks(place / "cask", tokenizer_fingerprint=None), seq_len=64)


@pytest.fixture
def batch(dataset):
    return Collator(seq_len=64)(dataset.read([0, 1]))


@pytest.fixture
def loss(dataset):
    return SparseTargetLoss(capture=dataset.manifest.capture)


@pytest.mark.parametrize("way", ["forward", "through"])
def test_records_with_an_id_beyond_the_student_are_refused_without_a_collator_that_knows_it(loss, batch, way):
    """An index beyond the row would read the next row's logits: a plausible loss, silently wrong."""
    narrow = tiny_model(layers=2, vocab_size=VOCAB - 8, tie_word_embeddings=False)
    batch["input_ids"] = batch["input_ids"].clamp(max=VOCAB - 9)
    assert batch["max_id"] >= VOCAB - 8
    attach(narrow)
    calls = {
        "forward": lambda: loss(hidden_states(narrow, batch["input_ids"], batch["position_ids"]), narrow, batch),
        "through": lambda: loss.through(narrow, batch),
    }
    with pytest.raises(IdentityMismatchError, match=rf"id {batch['max_id']}, the student predicts {VOCAB - 8} ids"):
        calls[way]()


def test_a_width_that_ends_before_the_records_is_refused(dataset, batch):
    loss = SparseTargetLoss(capture=dataset.manifest.capture, width=20)
    model = tiny_model(layers=2)
    with pytest.raises(IdentityMismatchError, match="the student predicts 20 ids"):
        loss(hidden_states(model, batch["input_ids"], batch["position_ids"]), model, batch)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_an_attached_student_is_a_student_of_its_own(loss, batch, copied):
    model = tiny_model(layers=2, seed=1)
    attach(model)
    before = float(loss.through(model, batch).detach())
    other = copied(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    value = loss.through(other, batch)
    value.backward()
    assert abs(float(value.detach()) - before) > 1e-3
    assert all(parameter.grad is None for parameter in model.parameters())
    assert any(parameter.grad is not None for parameter in other.parameters())
    assert float(loss.through(model, batch).detach()) == before
    assert other(input_ids=batch["input_ids"]).logits.shape[-1] == VOCAB


def test_a_copy_of_the_head_alone_does_not_copy_the_student():
    """As peft does for heads that it trains."""
    model = tiny_model(layers=2, tie_word_embeddings=False)
    plain = len(pickle.dumps(model.get_output_embeddings()))
    attach(model)
    assert len(pickle.dumps(model.get_output_embeddings())) < plain + 2000


def test_a_student_that_nobody_attached_is_told(loss, batch):
    with pytest.raises(ModelError, match=r"call `attach\(model\)` once"):
        loss.through(tiny_model(layers=2), batch)


def test_positions_are_not_divided_by_where_their_weights_are_asked_for(dataset, place):
    weighted = CaskDataset(dataset.casks, seq_len=64, weights=Weights.parse("teacher_confidence"))
    batch = Collator(seq_len=64)(weighted.read([0, 1]))
    loss, model = SparseTargetLoss(capture=dataset.manifest.capture, weights=weighted.weights), tiny_model(layers=2)
    hidden = hidden_states(model, batch["input_ids"], batch["position_ids"])
    with pytest.raises(ValueError, match="num_items is a number of positions, and these have weights"):
        loss(hidden, model, batch, num_items=(batch["labels"] != -100).sum())
    assert torch.equal(loss(hidden, model, batch, num_items=loss.counted(batch)), loss(hidden, model, batch))


def test_a_trainer_of_one_s_own_trains_the_same_on_two_processes(place, tmp_path):
    run_in_two_processes("own_trainer_worker", place / "cask", tmp_path / "two")
    two = torch.load(tmp_path / "two-0.pt", weights_only=True)
    from tests.support.consumer.own_trainer_worker import trained

    one = trained(place / "cask", tmp_path / "one", micro=4)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("label_smoothing_factor", 0.1, "ce_weight"),
        ("data_seed", 5, "follows from seed"),
        ("dataloader_drop_last", True, "every sequence is trained"),
        ("auto_find_batch_size", True, "gradient_accumulation_steps"),
        ("batch_eval_metrics", True, "keeps no predictions"),
        ("ce_weight", 2.0, "between 0 and 1, got 2.0"),
        ("extra_ids", "drop", "keep or mask, got 'drop'"),
        ("sequences_per_step", 0, "at least 1, got 0"),
        ("block_rows", 0, "at least 1, got 0"),
    ],
)
def test_an_argument_that_would_do_nothing_or_harm_is_refused(tmp_path, argument, value, said):
    more = {"eval_do_concat_batches": False} if argument == "batch_eval_metrics" else {}
    with pytest.raises(TrainConfigError, match=said) as caught:
        arguments(tmp_path, DistillConfig, **{argument: value}, **more)
    assert argument in str(caught.value)


def test_a_sampling_strategy_is_refused_where_transformers_has_one(tmp_path):
    name = next(n for n in ("train_sampling_strategy", "group_by_length") if n in DistillConfig.__dataclass_fields__)
    with pytest.raises(TrainConfigError, match=name):
        arguments(tmp_path, DistillConfig, **{name: True if name == "group_by_length" else "sequential"})


def test_plain_training_arguments_are_refused_with_a_sentence(dataset, tmp_path):
    with pytest.raises(TypeError, match="args must be a DistillConfig"):
        DistillTrainer(tiny_model(layers=2), arguments(tmp_path), dataset)


def test_another_tokenizer_is_refused_before_it_is_saved_beside_the_student(dataset, tmp_path):
    with pytest.raises(IdentityMismatchError, match="tokenizer_fingerprint"):
        DistillTrainer(
            tiny_model(layers=2), arguments(tmp_path, DistillConfig), dataset, processing_class=tiny_tokenizer("x")
        )


def test_predictions_count_each_sequence_once(dataset, tmp_path):
    trainer = DistillTrainer(tiny_model(layers=2), arguments(tmp_path, DistillConfig), dataset, dataset)
    predicted, evaluated = trainer.predict(dataset).metrics, trainer.evaluate()
    assert predicted is not None
    assert predicted["test_loss"] == evaluated["eval_loss"]
    assert predicted["test_positions"] == evaluated["eval_positions"]


def test_predictions_of_two_processes_count_each_sequence_once(dataset, tmp_path, monkeypatch):
    trainer = DistillTrainer(tiny_model(layers=2), arguments(tmp_path, DistillConfig), dataset)
    sequences: list[int] = []
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", PropertyMock(return_value=2))
    for process in range(2):
        monkeypatch.setattr(type(trainer.accelerator), "process_index", PropertyMock(return_value=process))
        batches: Any = trainer.get_test_dataloader(dataset).batch_sampler
        sequences += [number for batch in batches for number in batch if number != EMPTY]
    assert sorted(sequences) == list(range(len(dataset)))


def test_slips_are_told_in_a_sentence(dataset, place):
    with pytest.raises(LossParameterError, match="between 0 and 1, got 2"):
        SparseTargetLoss(capture=dataset.manifest.capture, ce_weight=2.0)
    with pytest.raises(ValueError, match="packing must be 'best_fit' or 'none', got 'bogus'"):
        CaskDataset(dataset.casks, seq_len=64, packing="bogus")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tokenizer must be a transformers tokenizer"):
        CaskDataset.open(place / "cask", tokenizer=None, seq_len=64)
    with pytest.raises(ValueError, match="seq_len is 8"):
        Collator(seq_len=8)(dataset.read([0]))
    texts: Any = {"casks": str(place / "cask"), "output": "out", "teacher": "t", "cache": "c"}
    config = TrainConfig(student="x", **texts)
    assert [type(place).__name__ for place in (config.output, config.teacher, config.cache)] == ["PosixPath"] * 3


def test_a_run_whose_last_step_was_made_trains_no_further_one(place, tmp_path):
    """Interrupted between the last checkpoint and the saving of the model."""
    from logitcask_consumer.run_document import latest_checkpoint
    from logitcask_consumer.training.run import train

    config = TrainConfig(
        casks=(place / "cask",),
        student="from-teacher:layers=2",
        teacher=place / "teacher",
        output=tmp_path / "out",
        seq_len=64,
        batch_tokens=256,
        max_steps=6,
        save_steps=3,
    )
    whole = train(config)
    saved = (whole.output / "model.safetensors").read_bytes()
    assert latest_checkpoint(whole.output).name == "checkpoint-6"
    (whole.output / "model.safetensors").unlink()
    document = whole.output / "logitcask.json"
    document.write_text(document.read_text().replace('"finished"', '"running"'))
    again = train(config)
    assert again.run["result"]["steps"] == 6
    assert (again.output / "model.safetensors").read_bytes() == saved


def test_a_dataset_opens_with_its_own_tokenizer_only(place):
    opened = CaskDataset.open(place / "cask", tokenizer=tiny_tokenizer(), seq_len=64)
    assert len(next(iter(DataLoader(opened, batch_size=2, collate_fn=Collator(seq_len=64))))["input_ids"]) == 2
    with pytest.raises(IdentityMismatchError):
        CaskDataset.open(place / "cask", tokenizer=tiny_tokenizer("x"), seq_len=64)
