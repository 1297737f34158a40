"""Whole runs on several teachers: they follow the weights, go on after a crash, and refuse what cannot be meant."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import CaskSource, MixedDataset
from logitcask_consumer.losses import LossMismatchError, UnknownLossError
from logitcask_consumer.methods import MixtureMethod
from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.run_document import RunFolderError
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    build_cask,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)
from tests.support.consumer.mixtures import mixture
from tests.support.consumer.two_processes import train_in_two_processes

DOCUMENTS = random_documents(5, low=4, high=20)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return [save_teacher(folder / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture
def config(tmp_path_factory, teachers):
    folder = tmp_path_factory.mktemp("casks")
    for seed, (name, documents) in enumerate((("a", random_documents(20)), ("b", random_documents(12, seed=3)))):
        # Another width of the teacher's logits, another codec, more columns: what is read of the two has other types.
        more = {"tail_logprobs": True, "logprob_codec": "f32", "tau": 0.1} if seed else {"tau": 0.05}
        build_cask(folder / name, teachers[seed], documents, spec=CaptureSpec(**more), weights_digest=str(seed) * 64)
    teachers[0].save_pretrained(folder / "teacher")
    tiny_tokenizer().save_pretrained(folder / "teacher")
    return TrainConfig(
        casks=(f"{folder / 'a'}:0.7", f"{folder / 'b'}:2:forward_kl + 0.1*js"),
        student="from-teacher:layers=2",
        teacher=folder / "teacher",
        output=folder / "out",
        seq_len=64,
        batch_tokens=256,
        micro_tokens=256,
        epochs=8,
        lr=3e-3,
        save_steps=2,
    )


def test_a_run_of_single_sequences_follows_the_weights(config):
    folder = config.output.parent
    casks = [((f"{folder / 'a'}:{a}", f"{folder / 'b'}:{b}")) for a, b in ((0.999, 0.001), (0.001, 0.999))]
    runs = [
        train(replace(config, casks=pair, loss="forward_kl", batch_tokens=64, epochs=2, output=folder / name))
        for pair, name in zip(casks, ("one", "two"), strict=True)
    ]
    one, two = (AutoModelForCausalLM.from_pretrained(run.output).state_dict() for run in runs)
    assert max(float((value - two[name]).abs().max()) for name, value in one.items()) > 1e-2


def test_a_run_on_two_teachers_lowers_the_loss_of_both_and_says_so(config):
    said = []
    result = train(config, say=said.append)
    lines = read_metrics(result.output / "metrics.jsonl")
    for name in ("kl/a", "kd/b", "ce/a", "ce/b"):
        measured = [line[name] for line in lines if name in line]
        assert measured[-1] < 0.95 * measured[0], name
    for line in lines:
        assert line["positions"] == line.get("positions/a", 0) + line.get("positions/b", 0)
        assert "kd" not in line, "losses of two kinds have no mean"
    assert {"kl/a", "kl/b", "ce"} <= result.run["result"]["closing"].keys()
    assert sum(line["positions"] for line in lines) == 8 * sum(cask["positions"] for cask in result.run["casks"])
    (of_a,) = [line for line in said if line.startswith("a: ")]
    assert "weight 0.7, loss forward_kl" in of_a
    assert [cask["capture"]["tau"] for cask in result.run["casks"]] == [0.05, 0.1]
    assert train(config).already_finished


def test_a_run_does_not_go_on_with_other_weights_or_losses(config):
    train(config)
    folder = config.output.parent
    for casks in ((f"{folder / 'a'}:0.6", config.casks[1]), (config.casks[0], f"{folder / 'b'}:2:forward_kl")):
        with pytest.raises(RunFolderError, match="mixture"):
            train(replace(config, casks=casks))


def test_a_run_does_not_go_on_where_a_cask_changed_its_group(config, teachers):
    """The same weights and losses, of other casks."""
    folder = config.output.parent
    build_cask(folder / "a2", teachers[0], random_documents(6, seed=8), weights_digest="0" * 64)
    begun = replace(config, casks=(f"{folder / 'a'}:0.01", f"{folder / 'a2'}:0.01", f"{folder / 'b'}:1:js"), epochs=1)
    train(begun)
    with pytest.raises(RunFolderError, match="mixture"):
        train(replace(begun, casks=(f"{folder / 'a'}:0.01", f"{folder / 'a2'}:1", f"{folder / 'b'}:1:js")))


def test_the_loss_of_a_run_is_read_even_where_every_cask_has_its_own(config):
    with pytest.raises(UnknownLossError, match="typo"):
        train(replace(config, loss="typo", casks=(f"{config.casks[0]}:forward_kl", config.casks[1])))


def test_a_loss_that_does_not_fit_names_its_cask(config):
    with pytest.raises(LossMismatchError, match=r"/a: loss 'js' needs"):
        train(replace(config, casks=(f"{config.casks[0]}:js", config.casks[1])))


def test_casks_and_teachers_may_be_given_as_objects(config):
    as_people_write: Any = {"output": "o", "other_teachers": "t"}
    given = TrainConfig(casks=(CaskSource(place="x", weight=0.5, loss="js"), "y:2"), student="s", **as_people_write)
    assert (given.casks, given.other_teachers) == (("x:0.5:js", "y:2"), (Path("t"),))
    assert json.dumps(given.as_dict())


def test_a_report_on_several_teachers_compares_them(config, tmp_path):
    result = train(config)
    folder, models = config.output.parent, (("be|fore", result.output / "initial"), ("after", result.output))
    document = make_report(
        ReportConfig(
            casks=(folder / "a", folder / "b"),
            models=models,
            output=tmp_path / "r",
            train_logs=(("run", result.output),),
        )
    )
    assert [(own["label"], own["folder"]) for own in document["teachers"]] == [("a", "a"), ("b", "b")]
    page = (tmp_path / "r" / "report.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1, "a table that Markdown reads"
    assert "[a](<a/report.md>)" in page
    alone = make_report(ReportConfig(casks=(folder / "b",), models=models, output=tmp_path / "alone"))
    assert alone["models"] == json.loads((tmp_path / "r" / "b" / "report.json").read_text())["models"]
    assert (tmp_path / "r" / "a" / "loss_curve.png").is_file()


def test_one_cask_with_a_weight_and_loss_is_a_plain_run_with_that_loss(config):
    folder = config.output.parent
    plain = train(replace(config, casks=(folder / "a",), loss="reverse_kl", output=folder / "plain"))
    written = train(replace(config, casks=(f"{folder / 'a'}:0.2:reverse_kl",), output=folder / "written"))
    of_plain, of_written = (AutoModelForCausalLM.from_pretrained(run.output).state_dict() for run in (plain, written))
    assert all(torch.equal(value, of_written[name]) for name, value in of_plain.items())
    assert train(replace(config, casks=(folder / "a",), loss="reverse_kl", output=folder / "written")).already_finished


@pytest.mark.parametrize("micro", [64, 128])
def test_micro_batches_do_not_change_what_is_learned(config, micro):
    folder = config.output.parent
    one = train(config)
    other = train(replace(config, micro_tokens=micro, output=folder / "other"))
    of_one, of_other = (AutoModelForCausalLM.from_pretrained(run.output).state_dict() for run in (one, other))
    for name, value in of_one.items():
        torch.testing.assert_close(value, of_other[name], rtol=2e-3, atol=2e-4)


def test_two_processes_learn_what_one_does(config):
    folder = config.output.parent
    one = train(config)
    two = train_in_two_processes(replace(config, output=folder / "two"))
    of_one, of_two = (AutoModelForCausalLM.from_pretrained(output).state_dict() for output in (one.output, two))
    for name, value in of_one.items():
        torch.testing.assert_close(value, of_two[name], rtol=2e-3, atol=2e-4)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(config):
    broken = replace(config, output=config.output.parent / "broken", keep_checkpoints=100)
    whole = train(config)
    train(broken)
    checkpoints = broken.output / "checkpoints"
    last = max(checkpoints.iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    shutil.rmtree(last)
    document = json.loads((broken.output / "logitcask.json").read_text())
    (broken.output / "logitcask.json").write_text(json.dumps({**document, "status": "running"}))
    resumed = train(broken)
    assert resumed.resumed_from is not None
    assert resumed.resumed_from.name != last.name
    of_whole, of_resumed = (AutoModelForCausalLM.from_pretrained(run.output).state_dict() for run in (whole, resumed))
    assert all(torch.equal(value, of_resumed[name]) for name, value in of_whole.items())


def test_a_trainer_of_ones_own_needs_the_method(config):
    method, dataset = mixture([config.output.parent / name for name in "ab"])
    model = tiny_model(layers=2)
    arguments = DistillConfig(output_dir=str(config.output), use_cpu=True, report_to=[])
    with pytest.raises(TypeError, match="MixtureMethod"):
        DistillTrainer(model, arguments, dataset)
    assert isinstance(method, MixtureMethod)
    trainer = DistillTrainer(model, arguments, dataset, dataset, method=method)
    assert trainer.evaluate()["eval_kl/a"] > 0
    plain = dataset.parts[0]
    for one, other in ((dataset, plain), (plain, dataset), (MixedDataset(dataset.parts[:1]), None)):
        with pytest.raises(TypeError, match="a MixtureMethod"):
            DistillTrainer(model, arguments, one, other, method=method)
    with pytest.raises(TypeError, match="MixtureMethod"):
        DistillTrainer(model, arguments, plain, {"b": dataset})


def test_a_teacher_with_another_tokenizer_is_refused_by_a_loss_on_tokens(tmp_path, teachers, config):
    build_cask(tmp_path / "foreign", teachers[1], DOCUMENTS, tokenizer_fingerprint="f" * 64)
    casks = (config.casks[0], f"{tmp_path / 'foreign'}:0.5")
    with pytest.raises(IdentityMismatchError, match=r"foreign: tokenizer_fingerprint: .* --loss alm"):
        train(replace(config, casks=casks))
