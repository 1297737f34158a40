"""Whole runs with hints: they lower the hint losses, resume exactly, and leave a plain model without projections."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.hints import HintMismatchError, LayerMapError
from logitcask_consumer.hints.checkpoints import PROJECTIONS_NAME, save_projections
from logitcask_consumer.losses import LossParameterError
from logitcask_consumer.run_document import FILTERS_NAME, RunFolderError, latest_checkpoint
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import HintsDroppedError, IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model, tiny_tokenizer
from tests.support.consumer.two_processes import train_in_two_processes

# peft reads a property that transformers has renamed, and warns of adapters on tied weights.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning"),
]

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is an extra")
LEARNED = "mse:norm=layer,projection=learned@0.5 + pkd@0.3"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, casks of it with hints, and a student of other width and depth."""
    folder = tmp_path_factory.mktemp("run")
    teacher = save_teacher(folder / "teacher")
    documents = random_documents(40)
    hidden = CaptureSpec(tau=0.05, hints=HintSpec(layers=(2, 4), codec="i8"))
    build_cask(folder / "cask", teacher, documents, spec=hidden, per_shard=16)
    build_cask(folder / "more", teacher, random_documents(12, seed=5), spec=hidden, per_shard=16)
    other = CaptureSpec(tau=0.05, hints=HintSpec(layers=(4,)))
    build_cask(folder / "other", teacher, random_documents(12, seed=6), spec=other, per_shard=16)
    build_cask(folder / "v", teacher, documents, spec=CaptureSpec(tau=0.05, hints=HintSpec(layers=(4,), of="v")))
    narrow = tiny_model(layers=2, seed=4, hidden_size=24, num_attention_heads=3)
    narrow.save_pretrained(folder / "narrow")
    tiny_tokenizer().save_pretrained(folder / "narrow")
    return folder


@pytest.fixture
def config(run_config):
    return run_config(overlap=8, micro_tokens=256, epochs=2, lr=3e-3, save_steps=3, keep_checkpoints=100, hints=LEARNED)


def lines(output):
    return read_metrics(output / "metrics.jsonl")


def columns(output):
    names = ["loss", "kd", "ce", "hint/pkd", "hint/mse:projection=learned,norm=layer"]
    return [[line[name] for name in names] for line in lines(output)]


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def checkpoint_of(folder):
    latest = latest_checkpoint(folder)
    assert latest is not None
    return latest


class Stopped(Exception):
    """What a test ends a run with."""


class Stop(TrainerCallback):
    """Dies in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(config, step, monkeypatch):
    from logitcask_consumer.training import train_to_end

    with monkeypatch.context() as patch:
        patch.setattr(train_to_end, "LogWhenSaving", lambda: Stop(step))
        with pytest.raises(KeyboardInterrupt):
            train(config)


def test_a_run_with_hints_lowers_each_and_says_what_is_mapped(config):
    said = []
    result = train(replace(config, epochs=6), say=said.append)
    first, last = lines(result.output)[0], lines(result.output)[-1]
    for name in ("hint/pkd", "hint/mse:projection=learned,norm=layer", "kl"):
        assert last[name] < 0.9 * first[name], name
    assert first["loss"] == pytest.approx(
        first["kd"] + 0.3 * first["hint/pkd"] + 0.5 * first["hint/mse:projection=learned,norm=layer"], rel=1e-5
    )
    assert "hints pkd: hidden of the student's layer 1 from 2, 2 from 4 (codec i8)" in said
    run = json.loads((result.output / "logitcask.json").read_text())
    assert run["settings"]["hints"] == LEARNED


@pytest.mark.parametrize("student", ["narrow", pytest.param("lora", marks=needs_peft)])
def test_what_is_saved_is_a_plain_model(config, place, student):
    """Projections are in checkpoints, in a file of their own, and nowhere in what transformers loads."""
    changes = {"lora": "rank=2,alpha=4"} if student == "lora" else {"student": str(place / "narrow")}
    changes["hints"] = "mse:projection=auto@0.5" if student == "narrow" else LEARNED
    result = train(replace(config, **changes))
    checkpoint = checkpoint_of(result.output)
    projections = load_file(checkpoint / PROJECTIONS_NAME)
    assert {tuple(matrix.shape) for matrix in projections.values()} == {(32, 24 if student == "narrow" else 32)}
    for folder in (result.output, checkpoint):
        [file] = [path for path in folder.glob("*.safetensors") if path.name != PROJECTIONS_NAME]
        assert not [name for name in load_file(file) if "hint" in name]
    assert not (result.output / PROJECTIONS_NAME).exists()
    if student == "narrow":
        auto: Any = AutoModelForCausalLM
        _, info = auto.from_pretrained(result.output, output_loading_info=True)
        assert not info["unexpected_keys"]
        assert not info["missing_keys"]


@pytest.mark.parametrize("lora", [None, pytest.param("rank=2,alpha=4", marks=needs_peft)])
def test_interrupted_and_resumed_equals_uninterrupted(config, tmp_path, monkeypatch, lora):
    whole = train(replace(config, output=tmp_path / "whole", lora=lora))
    broken = replace(config, output=tmp_path / "broken", lora=lora)
    interrupted(broken, 5, monkeypatch)
    resumed = train(broken)
    assert resumed.resumed_from is not None
    assert columns(resumed.output) == columns(whole.output)
    one, other = (load_file(checkpoint_of(folder) / PROJECTIONS_NAME) for folder in (whole.output, resumed.output))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


def test_a_checkpoint_without_its_projections_is_refused(config, monkeypatch):
    interrupted(config, 5, monkeypatch)
    (checkpoint_of(config.output) / PROJECTIONS_NAME).unlink()
    with pytest.raises(RunFolderError, match="the learned projections of this run's hint losses, cannot be read"):
        train(config)


def test_two_processes_train_as_one(config, tmp_path):
    one = train(replace(config, output=tmp_path / "one"))
    two = train_in_two_processes(replace(config, output=tmp_path / "two"))
    for ours, theirs in zip(columns(one.output), columns(two), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)
    for name, value in weights(one.output).items():
        torch.testing.assert_close(value, weights(two)[name], rtol=1e-3, atol=1e-4)


def test_micro_batches_and_recomputed_activations_change_nothing(config, tmp_path):
    one = train(replace(config, output=tmp_path / "one"))
    small = train(replace(config, output=tmp_path / "small", micro_tokens=64, gradient_checkpointing=True, workers=1))
    for ours, theirs in zip(columns(one.output), columns(small.output), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)


def test_weights_and_several_casks_of_one_teacher(config, place):
    """Casks of different weight and loss share the projections; the positions' weights count for hints too."""
    sources = (f"{place / 'cask'}:0.7", f"{place / 'more'}:0.3:reverse_kl")
    result = train(replace(config, casks=sources, weights="teacher_entropy"))
    last = lines(result.output)[-1]
    assert {name for name in last if name.startswith("hint/pkd")} == {"hint/pkd/cask", "hint/pkd/more"}
    [file] = checkpoint_of(result.output).glob(PROJECTIONS_NAME)
    assert len(load_file(file)) == 2, "one matrix for each pair of layers"


def test_hints_of_different_layers_or_teachers_do_not_go_together(config, place, tmp_path):
    with pytest.raises(HintMismatchError, match="have the same layers, kind and codec"):
        train(replace(config, casks=(f"{place / 'cask'}:0.7", f"{place / 'other'}:0.3")))
    stranger = build_cask(
        tmp_path / "stranger",
        tiny_model(seed=8),
        random_documents(6, seed=7),
        spec=CaptureSpec(tau=0.05, hints=HintSpec(layers=(2, 4), codec="i8")),
        weights_digest="1" * 64,
    )
    with pytest.raises(IdentityMismatchError, match="hints and target dense are of one teacher"):
        train(replace(config, casks=(f"{place / 'cask'}:0.7", f"{stranger}:0.3")))
    with pytest.raises(IdentityMismatchError, match="To train on records of both"):
        train(replace(config, casks=(place / "cask", place / "other")))


def test_relations_train_on_whole_documents(config, place):
    result = train(replace(config, casks=(place / "v",), hints="relation:heads=4@2", epochs=6))
    assert lines(result.output)[-1]["hint/relation:heads=4"] < 0.8 * lines(result.output)[0]["hint/relation:heads=4"]
    with pytest.raises(HintMismatchError, match="compares all positions of a document"):
        train(replace(config, casks=(place / "v",), hints="relation:heads=4", seq_len=32, output=place / "short"))


def test_ted_makes_its_filters_once(config, place, tmp_path, monkeypatch):
    said = []
    broken = replace(config, hints="ted:map=1:2/2:4,steps=30,rate=0.01@0.5", epochs=6)
    interrupted(broken, 5, monkeypatch)
    made = (config.output / FILTERS_NAME).stat().st_mtime_ns
    resumed = train(broken, say=said.append)
    assert (config.output / FILTERS_NAME).stat().st_mtime_ns == made, "a resumed run takes those it began with"
    assert not [line for line in said if line.startswith("ted: filter")]
    filters = load_file(config.output / FILTERS_NAME)
    assert sorted(filters) == ["2", "4"]
    name = 'hint/ted:map="1:2/2:4",steps=30,rate=0.01'
    assert lines(resumed.output)[-1][name] < 0.8 * lines(resumed.output)[0][name]
    fresh = train(replace(broken, output=tmp_path / "fresh"), say=said.append)
    values = [line for line in said if line.startswith("ted: filter of layer 2")]
    before, after = (float(part.split(" ")[0]) for part in values[0].split("cross-entropy ")[1].split(" -> "))
    assert after < before
    for layer, matrix in load_file(fresh.output / FILTERS_NAME).items():
        torch.testing.assert_close(matrix, filters[layer], rtol=0, atol=0)


def test_filters_and_projections_are_as_readable_as_the_files_beside_them(config, tmp_path):
    """As the library writes them, they are their owner's alone."""
    before = os.umask(0o027)
    try:
        (tmp_path / "own").mkdir()
        train(replace(config, hints="ted:steps=1 + mse:projection=learned", max_steps=1, save_steps=1))
        save_projections({"a": torch.ones(2)}, tmp_path / "own")
    finally:
        os.umask(before)
    files = [*config.output.rglob("hint_*.safetensors"), tmp_path / "own" / PROJECTIONS_NAME]
    assert [path.name for path in files].count(PROJECTIONS_NAME) == 2
    assert FILTERS_NAME in [path.name for path in files]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert not list(config.output.glob("*.partial"))


def test_filters_of_a_run_that_never_began_are_made_again(config, tmp_path, monkeypatch):
    """It failed after they were made; the next call asks for others."""
    asked = replace(config, hints="ted:map=last,steps=3", max_steps=1)
    with monkeypatch.context() as patched:
        patched.setattr("logitcask_consumer.training.run.training_arguments", Mock(side_effect=Stopped))
        with pytest.raises(Stopped):
            train(replace(asked, hints="ted:map=last,steps=1"))
    left = load_file(config.output / FILTERS_NAME)
    train(asked)
    train(replace(asked, output=tmp_path / "fresh"))
    made, fresh = load_file(config.output / FILTERS_NAME), load_file(tmp_path / "fresh" / FILTERS_NAME)
    assert all(torch.equal(made[layer], fresh[layer]) for layer in fresh)
    assert not any(torch.equal(left[layer], fresh[layer]) for layer in fresh)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"hints": "pkd@"}, LossParameterError, "is no weight"),
        ({"hints": "pkd", "student": "narrow"}, HintMismatchError, "student have 24 numbers, .* teacher 32"),
        ({"hints": "pkd:map=3:4"}, LayerMapError, "the student has no layer 3"),
        ({"hints": "pkd:map=2:3"}, LayerMapError, "layer 3 of the teacher is not in the cask"),
        ({"hints": "pkd:map=-1:-1", "teacher": None, "student": "narrow"}, LayerMapError, "name the teacher's folder"),
        ({"hints": "ted", "teacher": None, "student": "narrow"}, TrainConfigError, "hint loss ted needs the matrix"),
        ({"hints": "relation"}, HintMismatchError, "needs hints of v or qkv"),
        ({"loss": "alm"}, TrainConfigError, "hints and target dense compare positions"),
        ({"target": "denser"}, TrainConfigError, "target must be record or dense"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(config, place, changes, error, says):
    if changes.get("student") == "narrow":
        changes = {**changes, "student": str(place / "narrow")}
    with pytest.raises(error, match=says):
        train(replace(config, **changes))
    assert not list(config.output.glob("checkpoints/checkpoint-*"))


def test_dropped_hints_are_refused_by_those_who_ask_for_them(tmp_path):
    """As `cask drop-hints` leaves a cask: the spec has hints, the entries none."""
    spec = CaptureSpec(tau=0.05, hints=HintSpec(layers=(2, 4)))
    cask = build_cask(tmp_path / "cask", tiny_model(), random_documents(6), spec=spec)
    opened = Cask.open(cask, tokenizer_fingerprint=None)
    opened.entries[:] = [entry.model_copy(update={"hints": None}) for entry in opened.entries]
    assert not opened.has_hints
    with pytest.raises(HintsDroppedError):
        opened.hints(0)


def test_a_finished_run_with_other_hints_is_another_run(config):
    train(replace(config, epochs=1))
    with pytest.raises(RunFolderError, match="hints: "):
        train(replace(config, epochs=1, hints="pkd"))
