"""The trainer as transformers' users know theirs: accumulation, evaluation, early stopping, the best model, a loop."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from logitcask_consumer.data import CaskDataset, Collator, open_casks
from logitcask_consumer.data.slots import NO_LABEL
from logitcask_consumer.head import LMHead
from logitcask_consumer.methods import SparseTargetLoss
from logitcask_consumer.student.forward import hidden_states
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_consumer.weights import Weights
from logitcask_schemas.errors import IdentityMismatchError
from tests.support.consumer.cask_builder import build_cask, random_documents, tiny_model, tiny_tokenizer
from tests.support.consumer.two_processes import run_in_two_processes


@pytest.fixture
def dataset(place):
    return CaskDataset(open_casks(place / "cask", tokenizer_fingerprint=None), seq_len=64, packing="none")


@pytest.fixture(scope="module")
def held_out(place):
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher")
    path = build_cask(place / "held", teacher, random_documents(11, seed=9), per_shard=4)
    return CaskDataset(open_casks(path, tokenizer_fingerprint=None), seq_len=64)


class OwnTrainer(Trainer):
    """What a user writes."""

    def __init__(self, *args, loss, **kwargs):
        super().__init__(*args, **kwargs)
        self.sparse_loss = loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        hidden = hidden_states(model, inputs["input_ids"], inputs["position_ids"])
        return self.sparse_loss(hidden, model, inputs, num_items=num_items_in_batch)


def arguments(folder, kind=TrainingArguments, **more):
    fields = {
        "output_dir": str(folder),
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "use_cpu": True,
        "remove_unused_columns": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return kind(**(fields | more))


def trained(trainer):
    trainer.train()
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def differences(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def without_labels(collator):
    def collate(sequences):
        batch = collator(sequences)
        del batch["labels"], batch["shift_labels"]
        return batch

    return collate


def own_trainer(dataset, folder, collator, micro, accumulation):
    return OwnTrainer(
        tiny_model(layers=2, seed=1),
        arguments(folder, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation),
        train_dataset=dataset,
        data_collator=collator,
        loss=SparseTargetLoss(capture=dataset.manifest.capture),
    )


def test_labels_are_the_trained_next_tokens_where_they_are_predicted(dataset):
    batch = Collator(seq_len=64)(dataset.read([0, 1, 2]))
    labels = batch["labels"].flatten()
    assert labels[batch["slots"]].tolist() == batch["next_ids"].tolist()
    assert int((labels != NO_LABEL).sum()) == len(batch["slots"])
    assert batch["shift_labels"] is batch["labels"]


def test_accumulation_in_a_trainer_of_one_s_own_is_normalised_by_tokens(dataset, tmp_path):
    """Documents differ in length: 4 micro-batches of 2 train the same weights as 8 at once only so."""
    collator = Collator(seq_len=64)
    whole = trained(own_trainer(dataset, tmp_path, collator, 8, 1))
    split = trained(own_trainer(dataset, tmp_path, collator, 2, 4))
    assert differences(whole, split) < 1e-6
    control = trained(own_trainer(dataset, tmp_path, without_labels(collator), 2, 4))
    assert differences(whole, control) > 3e-4, "the control: means of micro-batches"


def test_accumulation_in_the_trainer_changes_nothing(dataset, tmp_path):
    def weights(micro, accumulation):
        args = arguments(
            tmp_path,
            DistillConfig,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
        )
        return trained(DistillTrainer(tiny_model(layers=2, seed=1), args, dataset, processing_class=tiny_tokenizer()))

    assert differences(weights(8, 1), weights(2, 4)) < 1e-6


@pytest.mark.parametrize("weights", [None, "teacher_confidence", "entropy_top:keep=0.3"])
def test_evaluation_gives_the_mean_over_tokens(dataset, held_out, tmp_path, weights):
    """Not the mean of batches, however many sequences these have."""
    held = copy.copy(held_out)
    held.weights, held.share = Weights.parse(weights), None
    model = tiny_model(layers=2, seed=1)
    whole = Collator(seq_len=64)(held.read(range(len(held))))
    hidden = hidden_states(model, whole["input_ids"], whole["position_ids"])
    loss = SparseTargetLoss(capture=held.manifest.capture, weights=held.weights)
    expected = float(loss(hidden, model, whole).detach())
    for size in (1, 3, 100):
        trainer = DistillTrainer(
            model, arguments(tmp_path, DistillConfig, per_device_eval_batch_size=size), dataset, held
        )
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
        assert metrics["eval_kd"] == pytest.approx(expected, rel=1e-5)
        if weights != "entropy_top:keep=0.3":
            assert metrics["eval_positions"] == len(whole["slots"])
    several = DistillTrainer(model, arguments(tmp_path, DistillConfig), dataset, {"a": held, "b": dataset}).evaluate()
    assert several["eval_a_loss"] == pytest.approx(expected, rel=1e-5)
    assert several["eval_b_loss"] != several["eval_a_loss"]
    with pytest.raises(ValueError, match="eval_dataset"):
        DistillTrainer(model, arguments(tmp_path, DistillConfig), dataset).evaluate()


class Spoil(TrainerCallback):
    """Makes the student worse after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step > self.step:
            with torch.no_grad():
                model.get_output_embeddings().weight.add_(3.0 * torch.randn_like(model.get_output_embeddings().weight))


@pytest.mark.parametrize("limit", [1, None])
def test_training_stops_early_and_ends_with_the_best_model(dataset, held_out, tmp_path, limit):
    args = arguments(
        tmp_path / "checkpoints",
        DistillConfig,
        max_steps=20,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        save_total_limit=limit,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        per_device_train_batch_size=4,
    )
    trainer = DistillTrainer(
        tiny_model(layers=2, seed=1),
        args,
        dataset,
        held_out,
        processing_class=tiny_tokenizer(),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2), Spoil(4)],
    )
    trainer.train()
    losses = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    assert list(losses) == [2, 4, 6, 8], "two evaluations in a row without a better one"
    assert min(losses, key=lambda step: losses[step]) == 4
    best = tmp_path / "checkpoints" / "checkpoint-4"
    assert trainer.state.best_model_checkpoint == str(best)
    assert {path.name for path in best.parent.iterdir()} == (
        {"checkpoint-4", "checkpoint-8"} if limit else {f"checkpoint-{step}" for step in (2, 4, 6, 8)}
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[4], rel=1e-5)
    kept = AutoModelForCausalLM.from_pretrained(best).state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0)


def test_a_student_that_does_not_fit_is_refused(dataset, tmp_path):
    with pytest.raises(IdentityMismatchError, match="50 ids, the teacher's logits had 97"):
        DistillTrainer(tiny_model(vocab_size=50), arguments(tmp_path, DistillConfig), dataset)


def test_trackers_are_told_what_distillation_was_asked_for(dataset, tmp_path):
    args = arguments(tmp_path, DistillConfig, loss="js", ce_weight=0.2, resolved={"seq_len": 64})
    told = args.to_dict()
    assert (told["loss"], told["ce_weight"], told["resolved"]) == ("js", 0.2, {"seq_len": 64})
    assert '"resolved"' in args.to_json_string()


@pytest.mark.parametrize("by", ["model", "head"])
def test_a_loop_of_one_s_own_needs_a_loss_only(dataset, by):
    model = tiny_model(layers=2, seed=1).train()
    loss = SparseTargetLoss("0.9*forward_kl + 0.1*cross_entropy", capture=dataset.manifest.capture, block_rows=7)
    assert isinstance(loss, torch.nn.Module)
    assert not list(loss.parameters())
    optimizer, values = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(3):
        for batch in DataLoader(dataset, batch_size=8, collate_fn=Collator(seq_len=64)):
            hidden = hidden_states(model, batch["input_ids"], batch["position_ids"])
            value = loss(hidden, model if by == "model" else LMHead.from_model(model), batch)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            values.append(float(value.detach()))
    assert sum(values[-3:]) < 0.9 * sum(values[:3])


def test_two_processes_evaluate_as_one(dataset, held_out, place, tmp_path):
    alone = DistillTrainer(tiny_model(layers=2, seed=1), arguments(tmp_path, DistillConfig), dataset, held_out)
    expected = alone.evaluate()["eval_loss"]
    run_in_two_processes("evaluate_worker", place / "cask", place / "held", tmp_path)
    for rank in (0, 1):
        assert float((tmp_path / f"{rank}.txt").read_text()) == pytest.approx(expected, rel=1e-5)
