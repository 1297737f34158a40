"""Evaluations on held-out casks while a run trains: the report's figures, which change nothing of the training."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from logitcask_consumer.data import CaskDataset, open_casks
from logitcask_consumer.held_out.measuring import HeldOutEvaluator, figure_names
from logitcask_consumer.report.config import ReportConfig, models_of_run
from logitcask_consumer.report.evaluate import evaluate_model
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.run_document import RunFolderError, RunWriteError
from logitcask_consumer.training import train_to_end
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_schemas.cask import Cask
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    HELD_OUT,
    build_cask,
    tiny_model,
    tiny_tokenizer,
)
from tests.support.consumer.two_processes import run_in_two_processes


def evaluations(output):
    """Step and figures of each, without what a clock says."""
    lines = read_metrics(output / "held_out.jsonl")
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(first, second):
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second)[name], value, rtol=0, atol=0)


SPECS = {
    "draws": CaptureSpec(tail_logprobs=True),
    "draws without log t": CaptureSpec(tau=0.05),
    "sampled": CaptureSpec(mode="sampled", draws=16),
    "top-k": CaptureSpec(mode="topk", k=8),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("width", [97, 105])
def test_figures_are_those_of_the_report(teacher, place, tmp_path, name, width):
    """Through the trainer, in batches and blocks of rows, against a model that the report measures by itself."""
    path = build_cask(tmp_path / "cask", teacher, HELD_OUT, spec=SPECS[name], per_shard=4)
    dataset = CaskDataset(open_casks(path, tokenizer_fingerprint=None), seq_len=48, overlap=24)
    extra_ids: Any = "mask" if width > 97 else "keep"
    model = tiny_model(layers=2, seed=1, vocab_size=width)
    expected = evaluate_model(model, dataset, batch_sequences=3, extra_ids=extra_ids).values
    args = DistillConfig(str(tmp_path / "run"), report_to="none", use_cpu=True, per_device_eval_batch_size=2)
    evaluator = HeldOutEvaluator(extra_ids=extra_ids, block_rows=7)
    train_set = CaskDataset(open_casks(place / "cask", tokenizer_fingerprint=None), seq_len=64)
    metrics = DistillTrainer(model, args, train_set, dataset, evaluator=evaluator).evaluate()
    names = figure_names(dataset.manifest.capture)
    assert names[0] == ("kl_bound" if name == "top-k" else "kl")
    assert ("agreement" in names) == (name != "sampled")
    for figure in names:
        mean = expected[figure].mean(dtype=np.float64)
        assert metrics[f"eval_{figure}"] == pytest.approx(mean, rel=1e-5), figure
    assert metrics["eval_positions"] == dataset.num_positions
    assert metrics["eval_loss"] == metrics[f"eval_{names[0]}"]


def test_the_last_evaluation_is_the_report_of_the_student(config, held, tmp_path):
    result = train(config)
    report = make_report(ReportConfig(casks=(held,), models=(("after", result.output),), output=tmp_path / "report"))
    measured = report["models"][0]["metrics"]
    lines = evaluations(result.output)
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 8, 10]
    for name in ("kl", "nll", "agreement"):
        assert lines[-1][name] == pytest.approx(measured[name]["value"], rel=1e-4), name
    assert lines[-1]["kl"] < 0.9 * lines[0]["kl"], "the student before training is measured, too"
    assert lines[0]["positions"] == Cask.open(held).num_positions
    summary = result.run["result"]["held_out"]
    assert (summary["metric"], summary["before"], summary["evaluations"]) == ("kl", lines[0]["kl"], 5)
    assert summary["last"] == {"step": 10, "value": lines[-1]["kl"]}
    assert not summary["ended_early"]
    described = result.run["held_out"]
    assert (described["documents"], described["positions"]) == (11, lines[0]["positions"])
    assert described["places"] == [str(held)]


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluations_change_nothing_of_the_training(config, tmp_path, workers):
    """Weights bit by bit, and the curve; also with dropout, whose generators an evaluation must not advance."""
    tiny_model(layers=2, attention_dropout=0.2).save_pretrained(tmp_path / "student")
    tiny_tokenizer().save_pretrained(tmp_path / "student")
    common = replace(config, student=str(tmp_path / "student"), workers=workers)
    plain = train(replace(common, output=tmp_path / "plain", eval_casks=(), eval_every=None))
    measured = train(replace(common, output=tmp_path / "measured", eval_every=1))
    assert_same_weights(plain.output, measured.output)
    curves = [
        [(line["step"], line["loss"], line["kl"], line["grad_norm"]) for line in read_metrics(path / "metrics.jsonl")]
        for path in (plain.output, measured.output)
    ]
    assert curves[0] == curves[1]
    assert not (plain.output / "held_out.jsonl").exists()
    assert len(evaluations(measured.output)) == 11


class Spoil(TrainerCallback):
    """Makes the student worse after a step, the same in every run."""

    def __init__(self, step, stop=None):
        self.step, self.stop = step, stop

    def on_step_end(self, args, state, control, model=None, **kwargs):
        control.should_log = True
        if state.global_step == self.stop:
            raise KeyboardInterrupt
        if state.global_step > self.step:
            with torch.no_grad():
                generator = torch.Generator().manual_seed(state.global_step)
                weight = model.get_output_embeddings().weight
                weight.add_(3.0 * torch.randn(weight.shape, generator=generator))


def spoilt(config, monkeypatch, *, after=4, stop=None):
    """A run whose student becomes worse after a step."""
    with monkeypatch.context() as patch:
        patch.setattr(train_to_end, "LogWhenSaving", lambda: Spoil(after, stop))
        return train(config)


@pytest.mark.parametrize("step", [3, 5, 6])
def test_a_run_that_was_interrupted_knows_its_best_and_its_patience(config, tmp_path, monkeypatch, step):
    settings = {"eval_every": 1, "patience": 3, "load_best": True, "save_steps": 2, "keep_checkpoints": 1}
    whole = spoilt(replace(config, output=tmp_path / "whole", **settings), monkeypatch)
    broken = replace(config, output=tmp_path / "broken", **settings)
    with pytest.raises(KeyboardInterrupt):
        spoilt(broken, monkeypatch, stop=step)
    resumed = spoilt(broken, monkeypatch)
    assert resumed.resumed_from is not None
    assert evaluations(resumed.output) == evaluations(whole.output)
    assert [line["step"] for line in evaluations(whole.output)] == list(range(8)), "three after the best, which is 4"
    for result in (whole, resumed):
        summary = result.run["result"]
        assert (summary["steps"], summary["student_step"], summary["held_out"]["ended_early"]) == (7, 4, True)
        assert summary["held_out"]["best"]["step"] == 4
        kept = {path.name for path in (result.output / "checkpoints").iterdir() if path.name.startswith("checkpoint")}
        assert kept == {"checkpoint-4", "checkpoint-7"}, "the best stays beside the last"
        assert_same_weights(result.output, result.output / "checkpoints" / "checkpoint-4")
    assert_same_weights(whole.output, resumed.output)
    assert train(broken).already_finished


def test_evaluations_of_another_run_do_not_count(config, tmp_path):
    earlier = train(replace(config, max_steps=4)).output / "checkpoints" / "checkpoint-3"
    with pytest.raises(RunFolderError, match="is of another run, whose evaluations would count"):
        train(replace(config, output=tmp_path / "later", resume=str(earlier)))
    plain = replace(config, output=tmp_path / "plain", eval_casks=(), eval_every=None, resume=str(earlier))
    assert train(plain).run["result"]["steps"] == 10


def test_without_load_best_the_student_is_that_of_the_last_step(config, tmp_path, monkeypatch):
    result = spoilt(replace(config, eval_every=1, patience=2, output=tmp_path / "last"), monkeypatch)
    assert result.run["result"]["student_step"] == result.run["result"]["steps"] == 6
    assert_same_weights(result.output, result.output / "checkpoints" / "checkpoint-6")


def test_a_run_that_patience_ended_needs_no_step_to_be_finished(config, monkeypatch):
    """Its last checkpoint is there, its student could not be saved."""
    settings = replace(config, eval_every=1, patience=2, load_best=True)

    def full(*arguments, **options):
        raise RunWriteError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(train_to_end, "save_student", full)
        with pytest.raises(RunWriteError):
            spoilt(settings, monkeypatch)
    before = evaluations(settings.output)
    result = train(settings)  # a step of this one would not spoil the student
    assert result.run["result"]["steps"] == 6
    assert evaluations(settings.output) == before
    assert_same_weights(result.output, settings.output / "checkpoints" / "checkpoint-4")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning")
def test_adapters_of_the_best_evaluation_are_saved(config, tmp_path, monkeypatch):
    settings = {"lora": "rank=2,targets=q_proj+v_proj+lm_head", "eval_every": 1, "load_best": True}

    class SpoilAdapters(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            control.should_log = True
            if state.global_step > 4:
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        if "lora_B" in name:
                            parameter.add_(1.0)

    with monkeypatch.context() as patch:
        patch.setattr(train_to_end, "LogWhenSaving", SpoilAdapters)
        result = train(replace(config, **{**settings, "patience": 4}))
    summary = result.run["result"]
    assert summary["student_step"] == summary["held_out"]["best"]["step"] <= 4 < summary["steps"]
    saved, best, last = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (
            result.output,
            *(result.output / "checkpoints" / f"checkpoint-{summary[step]}" for step in ("student_step", "steps")),
        )
    )
    assert any(not torch.equal(last[name], best[name]) for name in best)
    assert saved.keys() == best.keys()
    assert all(bool(torch.equal(saved[name], best[name])) for name in best)


def test_a_report_of_all_checkpoints_leaves_out_the_one_that_the_student_is_of(config, monkeypatch):
    result = spoilt(replace(config, eval_every=2, load_best=True, save_steps=4), monkeypatch)
    assert [label for label, _ in models_of_run("run", result.output)] == ["run@2", "run@8", "run@10", "run"]


def test_throughput_is_that_of_training_alone(config, monkeypatch):
    """With a clock that an evaluation moves by an hour, and a step by a second."""
    now = [0.0]
    monkeypatch.setattr("logitcask_consumer.training.trainer.time.monotonic", lambda: now[0])
    plain_step, plain_measure = DistillTrainer.training_step, DistillTrainer.prediction_step

    def training_step(self, *arguments, **options):
        now[0] += 1.0
        return plain_step(self, *arguments, **options)

    def prediction_step(self, *arguments, **options):
        now[0] += 3600.0
        return plain_measure(self, *arguments, **options)

    monkeypatch.setattr(DistillTrainer, "training_step", training_step)
    monkeypatch.setattr(DistillTrainer, "prediction_step", prediction_step)
    lines = read_metrics(train(replace(config, eval_every=1)).output / "metrics.jsonl")
    micro = -(-256 // 128)
    assert [line["tokens_per_second"] for line in lines] == pytest.approx([line["positions"] / micro for line in lines])


def test_two_processes_measure_as_one(config, tmp_path, monkeypatch):
    """Each of them with a copy of the student, and sharing one; the same best, and the same end."""
    settings = {"patience": 20, "load_best": True, "batch_tokens": 256, "keep_checkpoints": 2}
    alone = train(replace(config, output=tmp_path / "alone", **settings))
    calls = []
    for name, fsdp in (("copies", False), ("shared", True)):
        own = replace(config, output=tmp_path / name, fsdp=fsdp, **settings)
        calls.append({"settings": own.as_dict(), "record": str(tmp_path / f"record-{name}")})
    (tmp_path / "calls").write_text(json.dumps(calls))
    run_in_two_processes("resume_worker", tmp_path / "calls")
    expected = evaluations(alone.output)
    for name in ("copies", "shared"):
        measured = evaluations(tmp_path / name)
        assert [line["step"] for line in measured] == [line["step"] for line in expected]
        for line, own in zip(measured, expected, strict=True):
            assert line["kl"] == pytest.approx(own["kl"], rel=1e-4)
            assert line["positions"] == own["positions"]
        summary = json.loads((tmp_path / name / "logitcask.json").read_text())["result"]
        assert summary["student_step"] == alone.run["result"]["student_step"]
        saved, kept = weights(tmp_path / name), weights(alone.output)
        assert max(float((saved[key] - kept[key]).abs().max()) for key in kept) < 1e-4
