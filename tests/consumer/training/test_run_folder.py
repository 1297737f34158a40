"""The output folder of a run: one run at a time, whole checkpoints only, signals and full disks lose nothing."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, TrainerCallback

import logitcask_consumer.training.run as run_module
from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.run_document import RunFolderError, RunWriteError, explained_writes, latest_checkpoint
from logitcask_consumer.student.checks import context_of
from logitcask_consumer.training import train_to_end
from logitcask_consumer.training.callbacks import LogWhenSaving, read_metrics
from logitcask_consumer.training.run import train
from logitcask_consumer.training.run_lock import RunBusyError, hold_run
from logitcask_schemas.errors import CaskNotFoundError, ModelError
from tests.support.consumer.cask_builder import tiny_model, tiny_tokenizer


@pytest.fixture
def config(run_config):
    return run_config(overlap=8, epochs=2, lr=3e-3, save_steps=3)


def losses(output):
    return [(line["step"], line["kd"], line["ce"], line["loss"]) for line in read_metrics(output / "metrics.jsonl")]


def python(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, **options)


HOLDER = """
import sys, time, os
from pathlib import Path
from logitcask_consumer.training import run_lock
folder = Path(sys.argv[1])
run_lock._make(folder)
lock = run_lock._take(folder / run_lock.LOCKS_NAME / sys.argv[2])
if len(sys.argv) > 3 and os.fork() > 0:  # the child is as a DataLoader worker, and speaks once it runs
    time.sleep(600)
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("process", [0, 1])
def test_a_run_is_refused_while_any_process_of_another_lives_and_not_after(config, process):
    """Number 1 is a worker that outlived its torchrun; a child of the dead holder keeps nobody out."""
    holder = python(HOLDER, config.output, process, "fork", start_new_session=True)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunBusyError, match=f"process {holder.pid} on "):
            train(config)
        assert {path.name for path in config.output.iterdir()} == {".running"}, "nothing was made"
        holder.kill()
        holder.wait()
        with hold_run(config.output), pytest.raises(RunBusyError, match=f"process {os.getpid()} on "):
            train(config)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()
        holder.wait()
    assert train(config).run["status"] == "finished"
    assert not (config.output / ".running").exists()


class AtStep(LogWhenSaving):
    """Does something in the middle of a step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.act()


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 1), (signal.SIGINT, 5)])
def test_a_signal_saves_the_step_and_the_same_call_goes_on(config, tmp_path, monkeypatch, number, step):
    before = signal.getsignal(number)
    whole = train(replace(config, output=tmp_path / "whole"))
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(train_to_end, "LogWhenSaving", lambda: AtStep(step, lambda: os.kill(os.getpid(), number)))
        stopped = train(config, say=said.append)
    assert stopped.stopped_at == step
    assert "the same command goes on" in said[-1]
    assert latest_checkpoint(config.output).name == f"checkpoint-{step}"
    assert signal.getsignal(number) is before
    resumed = train(config)
    assert resumed.stopped_at is None
    assert resumed.resumed_from.name == f"checkpoint-{step}"
    assert losses(config.output) == losses(whole.output)


def test_a_signal_before_the_first_step_ends_the_call_with_nothing_made(config, monkeypatch):
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(run_module, "starting_student", interrupted)
    assert train(config).stopped_at == 0
    assert not config.output.exists()


def test_a_signal_to_the_whole_group_spares_the_workers_and_ends_with_0(config, tmp_path):
    """As torchrun and a terminal send it; with DataLoader workers in it."""
    command = [sys.executable, "-c", "from logitcask_schemas.cli.main import main; main()", "train", "--workers", "1"]
    command += ["--cask", config.casks[0], "--student", config.student, "--teacher", config.teacher, "-o"]
    command += [config.output, "--seq-len", "64", "--epochs", "1000", "--batch-tokens", "256"]

    def begin():
        run = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, start_new_session=True)
        lines = len(read_metrics(config.output / "metrics.jsonl"))
        while len(read_metrics(config.output / "metrics.jsonl")) <= lines and run.poll() is None:
            time.sleep(0.05)
        return run

    run = begin()
    os.killpg(run.pid, signal.SIGTERM)
    said = run.communicate(timeout=60)[1].decode()
    assert run.returncode == 0, said
    assert "stopped after step" in said
    assert "Traceback" not in said
    done = latest_checkpoint(config.output)
    assert read_metrics(config.output / "metrics.jsonl")[-1]["step"] == int(done.name.removeprefix("checkpoint-"))


HANGS = """
import os, signal, sys, threading, time
from logitcask_consumer.training.stop_signals import StopSignals
with StopSignals() as stop:
    stop.training_begins()
    lock = threading.Lock()
    lock.acquire()
    def hang():
        print("ready", flush=True)
        while True:
            lock.acquire()  # one instruction that does not end
    hang()
"""


def test_a_second_signal_ends_a_process_that_hangs_and_an_echo_does_not():
    hanging = python(HANGS, stderr=subprocess.PIPE)
    assert hanging.stdout.readline() == b"ready\n"
    hanging.send_signal(signal.SIGTERM)
    hanging.send_signal(signal.SIGTERM)  # as `timeout` does: the same request
    time.sleep(1.2)
    assert hanging.poll() is None
    hanging.send_signal(signal.SIGTERM)
    said = hanging.communicate(timeout=30)[1]
    assert hanging.returncode == 128 + signal.SIGTERM
    assert b"second signal" in said


class FullDisk(TrainerCallback):
    """From a step on no file may grow beyond some bytes; `finally` must lift that."""

    def __init__(self, event, step, most):
        self.event, self.step, self.most = event, step, most

    def on_step_begin(self, args, state, control, **kwargs):
        if self.event == "step" and state.global_step == self.step:
            limit_files(self.most)

    def on_train_end(self, args, state, control, **kwargs):
        if self.event == "end":
            limit_files(self.most)


def limit_files(most):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize(
    ("event", "step", "most", "where"),
    [
        ("step", 5, 120_000, "checkpoint-6"),  # the weights fit, the optimizer does not
        ("step", 5, 20_000, "checkpoint-6"),
        ("step", 4, 300, "metrics.jsonl"),
        ("end", 0, 20_000, "out"),
    ],
)
def test_a_full_disk_is_one_sentence_and_loses_nothing_that_was_saved(
    config, tmp_path, monkeypatch, event, step, most, where
):
    whole = train(replace(config, output=tmp_path / "whole"))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    with monkeypatch.context() as patch:
        patch.setattr(train_to_end, "LogWhenSaving", lambda: FullDisk(event, step, most))
        try:
            with pytest.raises(RunWriteError, match=f"{where} cannot be written: ") as refusal:
                train(config)
        finally:
            limit_files(unlimited)
    assert "\n" not in str(refusal.value)
    assert "give the same command again" in str(refusal.value)
    last = latest_checkpoint(config.output)
    assert last.name == ("checkpoint-3" if event == "step" else f"checkpoint-{losses(whole.output)[-1][0]}")
    assert not list(config.output.rglob(".partial"))
    assert not (config.output / "model.safetensors").exists()
    assert train(config).resumed_from == last
    assert losses(config.output) == losses(whole.output)


def test_what_a_killed_save_left_is_no_checkpoint_and_goes(config):
    """Written under another name first; so are checkpoints that are being removed."""
    left = config.output / "checkpoints" / ".partial" / "checkpoint-9"
    left.mkdir(parents=True)
    (left / "trainer_state.json").write_text("{}")
    assert latest_checkpoint(config.output) is None
    assert train(config).run["status"] == "finished"
    assert not left.parent.exists()


@pytest.fixture
def unfinished(config, tmp_path):
    folder = tmp_path / "unfinished"
    folder.mkdir()
    (folder / "logitcask.json").write_text(json.dumps({"format": "logitcask-run", "version": 1, "status": "running"}))
    return folder


def test_what_cannot_work_is_said_in_one_line_before_anything_is_made(config, tmp_path, unfinished):
    (tmp_path / "file").write_text("")
    tiny_model(max_position_embeddings=32).save_pretrained(tmp_path / "short")
    tiny_tokenizer().save_pretrained(tmp_path / "short")
    (tmp_path / "hollow").mkdir()
    AutoConfig.for_model("llama").save_pretrained(tmp_path / "hollow")
    tiny_tokenizer().save_pretrained(tmp_path / "hollow")
    cases = [
        ({"output": tmp_path / "file"}, RunFolderError, "is a file"),
        ({"output": tmp_path / "file" / "out"}, RunFolderError, "Not a directory"),
        ({"output": Path("/proc/out")}, RunFolderError, "cannot be made or written"),
        ({"output": config.casks[0]}, RunFolderError, "holds a cask that no run made"),
        ({"output": config.casks[0] / "runs" / "one"}, RunFolderError, "lies in the cask .*, which holds nothing else"),
        ({"report_to": ("foo",)}, TrainConfigError, "no tracker 'foo'; there are .*tensorboard"),
        ({"report_to": ("dvclive",)}, TrainConfigError, "dvclive cannot be used here: .*installed"),
        ({"teacher": tmp_path / "gone"}, ModelError, "teacher folder .*gone does not exist"),
        ({"student": str(unfinished)}, ModelError, "unfinished"),
        ({"teacher": unfinished}, RunFolderError, "has not finished"),
        ({"student": str(tmp_path / "hollow")}, ModelError, "hollow"),
        ({"student": str(tmp_path / "short")}, ModelError, "context is 32 tokens .* Give --seq-len 32"),
        ({"casks": (tmp_path / "gone",)}, CaskNotFoundError, "gone"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for changed, error, message in cases:
        with pytest.raises(error, match=message) as refusal:
            train(replace(config, **changed))
        assert "\n" not in str(refusal.value), message
        assert sorted(tmp_path.rglob("*")) == before, message


@pytest.mark.parametrize(
    ("kind", "fields", "context"),
    [
        ("gpt2", {"n_positions": 48}, 48),
        ("llama", {"max_position_embeddings": 96}, 96),
        ("mpt", {"max_seq_len": 40}, 40),
        ("bloom", {}, None),
        ("mamba", {}, None),
    ],
)
def test_one_rule_finds_the_context_of_every_family(kind, fields, context):
    assert context_of(AutoConfig.for_model(kind, **fields)) == context


def test_scaled_rotary_positions_reach_as_far_as_they_say():
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    assert context_of(AutoConfig.for_model("llama", max_position_embeddings=32, rope_parameters=rope)) == 128


def test_the_summary_is_a_mean_and_the_student_generates_as_its_teacher(config, place):
    result = train(replace(config, epochs=6)).run["result"]
    lines = read_metrics(config.output / "metrics.jsonl")
    last = lines[-(len(lines) // 10) :]
    positions = sum(line["positions"] for line in last)
    assert result["closing"]["positions"] == positions
    assert result["closing"]["kl"] == pytest.approx(sum(line["kl"] * line["positions"] for line in last) / positions)
    for folder in (config.output, latest_checkpoint(config.output)):
        assert folder is not None
        saved = json.loads((folder / "config.json").read_text())["use_cache"]
        assert saved is json.loads((place / "teacher" / "config.json").read_text())["use_cache"] is True


@pytest.mark.parametrize("content", ["[]", "1", "null", "{", '"run"', pytest.param("[" * 100_000, id="deep")])
def test_a_document_that_is_no_run_is_told_in_one_line(config, content):
    config.output.mkdir()
    (config.output / "logitcask.json").write_text(content)
    with pytest.raises(RunFolderError, match="is not the JSON of a run") as refusal:
        train(config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["teacher", "cask"])
def test_a_folder_of_something_else_is_no_output_folder(config, place, tmp_path, name):
    """The teacher's weights would be written over, and nobody could get them back."""
    output = shutil.copytree(place / name, tmp_path / name)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match="that no run made"):
        train(replace(config, output=output))
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("wrong", [{"epochs": float("inf")}, {"lr": float("inf")}, {"weight_decay": float("nan")}])
def test_numbers_that_are_none_are_refused_before_anything_is_made(config, wrong):
    with pytest.raises(TrainConfigError, match="finite"):
        replace(config, **wrong)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        RuntimeError("basic_ios::clear: iostream error"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_what_the_disk_refuses_is_explained(tmp_path, error):
    with (
        pytest.raises(RunWriteError, match=r"cannot be written: .* bytes are free there"),
        explained_writes(tmp_path, ""),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Tensors must have same shape"), torch.OutOfMemoryError("CUDA out of memory"), KeyError("weight")],
)
def test_what_has_nothing_to_do_with_the_disk_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as raised, explained_writes(tmp_path, ""):
        raise error
    assert raised.value is error
