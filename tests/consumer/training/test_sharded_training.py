"""Runs of `train` with --fsdp over gloo: curve and student of one process, checkpoints that any number goes on from.

Tolerances are for float32 and a dozen steps of AdamW. Losses of a step agree to 1e-5 of their size, weights to 1e-4:
sums over processes round otherwise, and where a gradient is nearly 0, AdamW's step follows its sign.
"""

import errno
import json
import os
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from logitcask_consumer.config import TrainConfig, TrainConfigError
from logitcask_consumer.run_document import RunFolderError, latest_checkpoint
from logitcask_consumer.student import sharded_state
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.training import checkpointing
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model, tiny_tokenizer
from tests.support.consumer.resume_worker import recorded_train
from tests.support.consumer.two_processes import run_in_two_processes

LOSSES, WEIGHTS = {"rtol": 1e-5}, {"rtol": 0.0, "atol": 1e-4}
BEFORE, KILLED = 4, 6
"""Checkpoints of a run: the one before, and the one in which a process is killed."""
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"student": "tied", "micro_tokens": 64},
    "frozen": {"freeze_head": True, "gradient_checkpointing": True},
    "hints": {"hints": "pkd:map=uniform@1.0 + mse@0.5"},
    "experts": {"student": "experts"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    spec = CaptureSpec(tau=0.05, hints=HintSpec(layers=(0, 2, 4)))
    build_cask(folder / "cask", save_teacher(folder / "teacher"), random_documents(40), spec=spec, per_shard=16)
    students = {
        "tied": tiny_model(layers=2, seed=5, tie_word_embeddings=True),
        "experts": tiny_model("mixtral", layers=2, seed=5, num_local_experts=4, num_experts_per_tok=2),
    }
    for name, student in students.items():
        student.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def config(place):
    def of(name, *, fsdp=False, **more):
        if "student" in more:
            more["student"] = str(place / more["student"])
        base = TrainConfig(
            casks=(place / "cask",),
            student="from-teacher:layers=2",
            teacher=place / "teacher",
            output=place / name,
            seq_len=64,
            overlap=8,
            batch_tokens=256,
            micro_tokens=128,
            epochs=2,
            lr=3e-3,
            save_steps=2,
            keep_checkpoints=100,
            fsdp=fsdp,
        )
        return replace(base, **more)

    return of


@pytest.fixture(scope="module")
def runs(config, place):
    """Every run that the tests read; processes are started three times."""

    def together(file, calls, **how):
        for call in calls:
            call["record"] = str(place / f"{file}-{call['settings']['output'].rpartition('/')[2]}")
        (place / file).write_text(json.dumps(calls))
        run_in_two_processes("resume_worker", place / file, **how)

    def call(name, *, variant="plain", precision="auto", save_steps=2, **more):
        shared = config(name, fsdp=True, precision=precision, save_steps=save_steps, **VARIANTS[variant])
        return {"settings": shared.as_dict(), **more}

    for variant, more in VARIANTS.items():
        train(config(f"one-{variant}", save_steps=4, **more))
    assert recorded_train(config("1-2"), place / "record", stop=5) is None
    together("variants", [call(f"two-{variant}", variant=variant, save_steps=4) for variant in VARIANTS])
    broken = [
        call("2-1", variant="hints", stop=5),
        call("2-3", variant="experts", stop=5),
        call("2-1-3", stop=5),
    ]
    others = [call("1-2"), call("bfloat16", precision="bfloat16", save_steps=4), call("deaf", save_steps=4, deaf=True)]
    together("others", broken + others)
    train(config("2-1", **VARIANTS["hints"]))
    assert recorded_train(config("2-1-3"), place / "record", stop=9) is None
    together("three", [call("2-3", variant="experts"), call("2-1-3")], processes=3)
    together("kill", [call("killed", kill=KILLED)], killed=1)
    return place


def losses(folder):
    return [(line["step"], line["kd"], line["ce"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl")]


def assert_same_run(one, other):
    found, expected = losses(other), losses(one)
    assert len(found) == len(expected) >= 10
    assert found == [pytest.approx(line, rel=LOSSES["rtol"]) for line in expected]
    theirs, own = load_file(other / "model.safetensors"), load_file(one / "model.safetensors")
    assert theirs.keys() == own.keys()
    for name, value in own.items():
        assert theirs[name].dtype == value.dtype
        assert float((theirs[name] - value).abs().max()) <= WEIGHTS["atol"], name
    written = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    assert written[0] == written[1]
    for name in ("config.json", "generation_config.json"):
        assert (other / name).read_bytes() == (one / name).read_bytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_that_share_a_student_train_as_one(runs, variant):
    """Curve, weights, config and files; tied weights and accumulation, a frozen head, hints, experts."""
    assert_same_run(runs / f"one-{variant}", runs / f"two-{variant}")


def test_gradients_are_clipped_by_the_norm_of_all_parts(runs):
    own, shared = (read_metrics(runs / f"{name}-plain" / "metrics.jsonl") for name in ("one", "two"))
    norms = [line["grad_norm"] for line in own]
    assert [line["grad_norm"] for line in shared] == pytest.approx(norms, rel=1e-4)
    assert min(norms) > 1.0, "all steps are clipped"


def test_bfloat16_has_the_norm_of_float32_as_long_as_the_weights_are_the_same(runs):
    """Rounding alone; later steps have other weights. One process' part of the gradients would be a third less."""
    exact, rounded = (read_metrics(runs / name / "metrics.jsonl")[0] for name in ("one-plain", "bfloat16"))
    assert rounded["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.03)
    assert rounded["grad_norm"] != exact["grad_norm"]


def test_the_control_a_process_that_trains_nothing_shows_in_the_curve(runs):
    gaps = [abs(a[3] - b[3]) / a[3] for a, b in zip(losses(runs / "one-plain"), losses(runs / "deaf"), strict=True)]
    assert max(gaps) > 1000 * LOSSES["rtol"]


def test_bfloat16_lowers_the_loss_as_float32_does(runs):
    found, expected = losses(runs / "bfloat16"), losses(runs / "one-plain")
    assert found != expected
    assert [line[3] for line in found] == pytest.approx([line[3] for line in expected], rel=0.05)
    assert {value.dtype.itemsize for value in load_file(runs / "bfloat16" / "model.safetensors").values()} == {4}


@pytest.mark.parametrize(
    ("way", "as_one"), [("2-1", "hints"), ("2-3", "experts"), ("2-1-3", "plain"), ("1-2", "plain")]
)
def test_a_run_goes_on_with_any_number_of_processes(runs, way, as_one):
    """Also from whole to shared and back, with projections of hints, and with experts, which files keep apart."""
    assert_same_run(runs / f"one-{as_one}", runs / way)


def test_the_control_a_run_that_forgets_the_optimizer_ends_elsewhere(runs, config, monkeypatch):
    whole, forgetful = runs / "two-plain", runs / "forgetful"
    shutil.copytree(whole / "checkpoints" / "checkpoint-4", forgetful / "checkpoints" / "checkpoint-4")
    document = json.loads((whole / "logitcask.json").read_text())
    del document["result"]
    (forgetful / "logitcask.json").write_text(json.dumps({**document, "status": "running"}))
    monkeypatch.setattr(checkpointing, "load_optimizer", lambda *arguments: None)
    train(config("forgetful"))
    gaps = [abs(a[3] - b[3]) / a[3] for a, b in zip(losses(whole)[4:], losses(forgetful), strict=True)]
    assert max(gaps) > 100 * LOSSES["rtol"]


def test_each_process_writes_its_part_of_a_checkpoint(runs):
    """About half of the bytes each: nobody gathers what lies on all. Single numbers and names are in either."""
    folder = runs / "two-plain" / "checkpoints" / "checkpoint-4"
    assert not list(folder.glob("*.safetensors"))
    assert not (folder / "optimizer.pt").exists()
    sizes = [path.stat().st_size for path in sorted((folder / "sharded").glob("*.distcp"))]
    assert len(sizes) == 2
    assert [size / sum(sizes) for size in sizes] == pytest.approx([0.5, 0.5], abs=0.1)
    metadata = FileSystemReader(folder / "sharded").read_metadata()
    assert "student.lm_head.weight" in metadata.state_dict_metadata


def test_a_checkpoint_of_parts_loads_as_a_model(runs):
    loaded = load_model(runs / "two-plain" / "checkpoints" / "checkpoint-4").state_dict()
    expected = load_file(runs / "one-plain" / "checkpoints" / "checkpoint-4" / "model.safetensors")
    for name, value in expected.items():
        assert float((loaded[name] - value).abs().max()) <= WEIGHTS["atol"], name


def test_a_process_that_is_killed_in_a_checkpoint_costs_that_checkpoint_only(runs, config):
    left = runs / "killed" / "checkpoints"
    assert latest_checkpoint(runs / "killed").name == f"checkpoint-{BEFORE}"
    half = next(left.rglob(f"checkpoint-{KILLED}"))
    assert half.parent != left, "it never had a checkpoint's name"
    with pytest.raises(RunFolderError, match="no complete checkpoint"):
        sharded_state.require_all_shards(half)
    with pytest.raises(RunFolderError, match="no complete checkpoint"):
        train(config("killed", resume=str(half)))
    train(config("killed"))
    assert_same_run(runs / "one-plain", runs / "killed")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / ".metadata").unlink(), "its index cannot be read"),
        (
            lambda folder: (folder / "__1_0.distcp").unlink(),
            r"__1_0.distcp should have .* it has 0:",
        ),
        (lambda folder: os.truncate(folder / "__0_0.distcp", 99), r"__0_0.distcp should have .* it has 99:"),
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_refused(runs, config, tmp_path, damage, message):
    shutil.copytree(runs / "two-plain" / "checkpoints" / "checkpoint-4", tmp_path / "checkpoint-4")
    damage(tmp_path / "checkpoint-4" / "sharded")
    with pytest.raises(RunFolderError, match=message):
        train(config("fresh", resume=str(tmp_path / "checkpoint-4")))


def test_a_part_that_cannot_be_written_is_an_error_that_a_run_explains(tmp_path, monkeypatch):
    class Full(FileSystemWriter):
        def write_data(self, *arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sharded_state, "FileSystemWriter", Full)
    model = tiny_model(layers=1)
    with pytest.raises(OSError, match="No space left"):
        sharded_state.save_shards(model, torch.optim.AdamW(model.parameters()), tmp_path)


def test_a_checkpoint_of_another_student_is_refused(runs, config):
    checkpoint = runs / "two-tied" / "checkpoints" / "checkpoint-4"
    with pytest.raises(RunFolderError, match="does not hold this student"):
        sharded_state.load_student(tiny_model(layers=3), checkpoint)


def test_a_student_is_not_shared_by_one_process(config):
    """As without torchrun."""
    refused = config("refused", fsdp=True)
    with pytest.raises(TrainConfigError, match=r"--fsdp spreads .* this one has 1\. Start it with `torchrun"):
        train(refused)
    with pytest.raises(TrainConfigError, match="this one has 1"):
        DistillConfig("refused", use_cpu=True, shard_student=True)
    assert not refused.output.exists()


def test_what_would_shard_a_student_twice_is_refused(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainConfigError, match="distributed_type: MULTI_GPU"):
        train(config("refused", fsdp=True))


def test_adapters_are_not_shared(config):
    with pytest.raises(TrainConfigError, match="lora does not go with fsdp"):
        config("refused", fsdp=True, lora="rank=4")
