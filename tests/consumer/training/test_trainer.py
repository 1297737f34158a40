"""Whole runs on a tiny teacher: the loss falls, resuming is exact, batches may be split anyhow, the result loads."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.losses import LossMismatchError, UnknownLossError
from logitcask_consumer.run_document import RunFolderError, latest_checkpoint
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_consumer.training.trainer import NotFiniteError
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import build_cask, random_documents, tiny_model, tiny_tokenizer
from tests.support.consumer.two_processes import train_in_two_processes


@pytest.fixture
def config(run_config):
    return run_config(overlap=8, micro_tokens=256, epochs=2, lr=3e-3, save_steps=3, keep_checkpoints=100)


def losses(output):
    return [(line["step"], line["kd"], line["ce"], line["loss"]) for line in read_metrics(output / "metrics.jsonl")]


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_same_weights(one, other, **tolerance):
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(other)[name], **(tolerance or {"rtol": 0, "atol": 0}))


def test_a_run_lowers_kl_and_leaves_a_model_folder(config):
    said = []
    result = train(replace(config, epochs=6), say=said.append)
    lines = read_metrics(result.output / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert sum(line["positions"] for line in lines) == 6 * result.run["casks"][0]["positions"]
    assert lines[-1]["kl"] < 0.7 * lines[0]["kl"]
    assert lines[0]["kl"] == pytest.approx(lines[0]["kd"] - lines[0]["teacher_entropy"])
    model = AutoModelForCausalLM.from_pretrained(result.output)
    assert model.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(result.output).get_vocab() == tiny_tokenizer().get_vocab()
    assert result.initial is not None
    assert AutoModelForCausalLM.from_pretrained(result.initial).config.num_hidden_layers == 2
    run = json.loads((result.output / "logitcask.json").read_text())
    assert run["status"] == "finished"
    assert run["casks"][0]["teacher"]["model"] == "tiny"
    assert run["settings"]["lr"] == 3e-3
    resolved = run["resolved"]
    assert (resolved["lr"], resolved["micro_sequences"], resolved["accumulation"]) == (3e-3, 4, 1)
    assert (resolved["batch_tokens"], resolved["precision"], resolved["processes"]) == (256, "float32", 1)
    assert not list(result.output.rglob("training_args.bin")), "a pickle was left behind"
    assert any("positions" in line for line in said)


class Stop(TrainerCallback):
    """Dies in the middle of a step, as a killed process would as far as files are concerned."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(config, step, monkeypatch):
    """Run until a step, then die."""
    from logitcask_consumer.training import train_to_end

    with monkeypatch.context() as patch:
        patch.setattr(train_to_end, "LogWhenSaving", lambda: Stop(step))
        with pytest.raises(KeyboardInterrupt):
            train(config)


@pytest.mark.parametrize("step", [4, 7, 9])
def test_interrupted_and_resumed_equals_uninterrupted(config, tmp_path, monkeypatch, step):
    whole = train(replace(config, output=tmp_path / "whole", student=dropout_student(config, tmp_path)))
    broken = replace(config, output=tmp_path / "broken", student=dropout_student(config, tmp_path))
    interrupted(broken, step, monkeypatch)
    kept = latest_checkpoint(broken.output)
    assert kept is not None
    assert kept.name == f"checkpoint-{step - step % 3 - (3 if step % 3 == 0 else 0)}"
    # A checkpoint that the crash left unfinished: newer, but without its last file.
    shutil.copytree(kept, kept.parent / "checkpoint-99")
    (kept.parent / "checkpoint-99" / "trainer_state.json").unlink()
    resumed = train(broken)
    assert resumed.resumed_from == kept
    assert losses(resumed.output) == losses(whole.output)
    assert_same_weights(resumed.output, whole.output)


def dropout_student(config, folder):
    """A student with dropout, so that resuming must restore the generators too."""
    path = folder / "dropout"
    if not path.exists():
        tiny_model(layers=2, attention_dropout=0.2).save_pretrained(path)
    return str(path)


def test_a_finished_run_is_not_repeated_and_other_settings_are_refused(config):
    first = train(config)
    stamp = (config.output / "model.safetensors").stat().st_mtime_ns
    again = train(config)
    assert again.already_finished
    assert not first.already_finished
    assert (config.output / "model.safetensors").stat().st_mtime_ns == stamp
    assert again.run["result"] == first.run["result"]
    run = json.loads((config.output / "logitcask.json").read_text())
    del run["settings"]["freeze_head"]
    (config.output / "logitcask.json").write_text(json.dumps(run))
    assert train(config).already_finished, "a setting that is younger than the run had its default"
    with pytest.raises(RunFolderError, match=r"lr: 0\.003 there, 0\.1 now"):
        train(replace(config, lr=0.1))
    with pytest.raises(RunFolderError, match="already holds a run"):
        train(replace(config, resume="never"))
    with pytest.raises(RunFolderError, match="no complete checkpoint"):
        train(replace(config, resume=str(config.output)))
    (config.output / "logitcask.json").write_text("{")
    with pytest.raises(RunFolderError, match="not the JSON of a run"):
        train(config)
    (config.output / "logitcask.json").write_text('{"format": "other"}')
    with pytest.raises(RunFolderError, match="should say"):
        train(config)


@pytest.mark.parametrize("micro_tokens", [64, 128])
def test_gradient_accumulation_changes_nothing(config, tmp_path, micro_tokens):
    """Micro-batches hold different numbers of positions: only a divisor over the whole step gives the same training."""
    whole = train(replace(config, ce_weight=0.3))
    split = train(replace(config, ce_weight=0.3, output=tmp_path / "split", micro_tokens=micro_tokens))
    for one, other in zip(losses(whole.output), losses(split.output), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert_same_weights(whole.output, split.output, rtol=1e-2, atol=2e-3)


def test_two_processes_train_as_one(config, tmp_path):
    """DDP over gloo: same loss per step, same weights."""
    alone = train(replace(config, epochs=1))
    pair = train_in_two_processes(replace(config, epochs=1, output=tmp_path / "pair", micro_tokens=128), torchrun=True)
    for one, other in zip(losses(alone.output), losses(pair), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert_same_weights(alone.output, pair, rtol=1e-2, atol=2e-3)


def test_batches_are_shared_among_processes(config):
    assert replace(config, batch_tokens=512, micro_tokens=128).batch_shape(1, slots=0) == (2, 4)
    assert replace(config, batch_tokens=512, micro_tokens=512).batch_shape(2, slots=0) == (4, 1)
    assert replace(config, batch_tokens=384, micro_tokens=256).batch_shape(1, slots=0) == (3, 2)
    with pytest.raises(TrainConfigError, match="evenly"):
        config.batch_shape(3, slots=0)


def test_an_automatic_batch_gives_a_run_of_some_400_steps(config):
    auto = replace(config, batch_tokens=None, epochs=2, micro_tokens=10**6)
    assert auto.batch_shape(1, slots=100) == (1, 1), "at least one sequence"
    assert auto.batch_shape(1, slots=64 * 2000) == (10, 1)
    assert auto.batch_shape(4, slots=64 * 2000) == (2, 1), "as many for each process"
    assert auto.batch_shape(1, slots=10**12) == (1024, 1), "at most 65,536 tokens"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("casks", ()),
        ("ce_weight", 1.5),
        ("epochs", 0),
        ("seq_len", 0),
        ("overlap", 64),
        ("batch_tokens", 3),
        ("lr", 0.0),
        ("packing", "tight"),
        ("precision", "int3"),
        ("save_steps", 0),
    ],
)
def test_settings_out_of_range_are_named(config, field, value):
    with pytest.raises(TrainConfigError, match=field.rstrip("s")):
        replace(config, **{field: value})


def test_all_faults_are_reported_at_once(config):
    with pytest.raises(TrainConfigError, match=r"epochs.*lr"):
        replace(config, epochs=-1, lr=-1)


@pytest.fixture(scope="module")
def rich_cask(place):
    """With log t of the draws, and log Z at two temperatures."""
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher")
    spec = CaptureSpec(tail_logprobs=True, temperatures=(3.0, 2.0))
    return build_cask(place / "rich", teacher, random_documents(40), spec=spec, per_shard=16)


@pytest.mark.parametrize(
    "loss",
    [
        "js:beta=0.1",
        "0.5*skew_kl + 0.5*skew_reverse_kl",
        "tail_aware + 0.1*csd",
        "adaptive_kl",
        "linear(1,0)*ghost_kl + linear(0,1)*alpha_beta",
        "0.3*forward_kl:temperature=2 + 0.7*forward_kl",
        "wsd(0.9)*todi + 0.1*cross_entropy",
    ],
)
def test_every_kind_of_loss_trains(config, rich_cask, loss):
    result = train(replace(config, casks=(rich_cask,), loss=loss, epochs=3))
    lines = read_metrics(result.output / "metrics.jsonl")
    assert lines[-1]["kd"] < lines[0]["kd"]
    names = {name for name in lines[0] if name.startswith("loss/")}
    assert len(names) == (loss.count(" + ") + 1 if " + " in loss else 0)


def test_a_mix_does_not_depend_on_the_micro_batches(config, rich_cask, tmp_path):
    config = replace(config, casks=(rich_cask,), loss="0.5*js + 0.5*tail_aware")
    whole = train(config)
    split = train(replace(config, output=tmp_path / "split", micro_tokens=64))
    for one, other in zip(losses(whole.output), losses(split.output), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_what_does_not_fit_is_refused_before_training(config, place, tmp_path):
    with pytest.raises(UnknownLossError, match="there are: adaptive_kl, alpha_beta"):
        train(replace(config, loss="kl"))
    tiny_model(vocab_size=50).save_pretrained(tmp_path / "small")
    with pytest.raises(IdentityMismatchError, match="50 ids, the teacher's logits had 97"):
        train(replace(config, student=str(tmp_path / "small")))
    tiny_model().save_pretrained(tmp_path / "foreign")
    tiny_tokenizer("x").save_pretrained(tmp_path / "foreign")
    with pytest.raises(IdentityMismatchError, match="tokenizer"):
        train(replace(config, student=str(tmp_path / "foreign")))
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher")
    topk = build_cask(tmp_path / "topk", teacher, random_documents(4), spec=CaptureSpec(mode="topk", k=4))
    with pytest.raises(LossMismatchError, match="ghost_kl"):
        train(replace(config, casks=(topk,)))
    assert not config.output.exists(), "a refused run leaves nothing behind"


@pytest.mark.parametrize(
    ("loss", "spec"),
    [
        ("ghost_kl", CaptureSpec(mode="topk", k=4)),
        ("topk_renorm", CaptureSpec(mode="topk", k=4)),
        ("forward_kl", CaptureSpec(mode="sampled", draws=6, logprob_codec="f32")),
        ("cross_entropy", CaptureSpec()),
    ],
)
def test_every_loss_trains_on_the_modes_it_supports(config, place, tmp_path, loss, spec):
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher")
    cask = build_cask(tmp_path / "cask", teacher, random_documents(16), spec=spec)
    result = train(replace(config, casks=(cask,), loss=loss, epochs=8))
    lines = read_metrics(result.output / "metrics.jsonl")
    assert lines[-1]["kd"] < lines[0]["kd"]
    assert ("kl" in lines[0]) == (loss == "forward_kl")


def test_a_loss_that_is_no_number_stops_the_run(config):
    with pytest.raises(NotFiniteError, match="lower learning rate"):
        train(replace(config, lr=1e30, warmup=0.0))


def test_workers_and_unpacked_sequences(config, tmp_path):
    plain = train(config)
    workers = train(replace(config, workers=1, output=tmp_path / "workers"))
    assert losses(plain.output) == losses(workers.output)
    unpacked = train(replace(config, packing="none", output=tmp_path / "unpacked"))
    assert losses(unpacked.output)[-1][1] < losses(unpacked.output)[0][1]


def test_low_precision_and_recomputed_activations(config, tmp_path):
    plain = train(config)
    again = train(replace(config, gradient_checkpointing=True, output=tmp_path / "recomputed"))
    for one, other in zip(losses(plain.output), losses(again.output), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    low = train(replace(config, precision="bfloat16", output=tmp_path / "low"))
    for one, other in zip(losses(plain.output), losses(low.output), strict=True):
        assert one == pytest.approx(other, rel=0.1)
    assert all(value.dtype == torch.float32 for value in weights(low.output).values())
