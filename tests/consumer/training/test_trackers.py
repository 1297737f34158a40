"""What trackers are told of a run: every setting, what the run document says, and the figures of evaluations."""

import json
import sys
import types
from typing import Any

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.training import arguments
from logitcask_consumer.training.arguments import require_trackers
from logitcask_consumer.training.run import train
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher


@pytest.fixture
def config(run_config, tmp_path):
    held = build_cask(tmp_path / "held", save_teacher(tmp_path / "teacher"), random_documents(5, seed=9))
    return lambda **more: run_config(max_steps=2, micro_tokens=128, eval_casks=(held,), eval_every=1, **more)


def test_tensorboard_has_settings_document_curve_and_evaluations(config, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    result = train(config(report_to=("tensorboard",)))
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    (text,) = events.Tensors("args/text_summary")
    told = json.loads(text.tensor_proto.string_val[0])
    run = json.loads((result.output / "logitcask.json").read_text())
    assert told["resolved"] == run["resolved"]
    for name in ("places", "settings", "student", "batch_tokens", "logitcask", "earlier"):
        assert told["run_document"][name] == run[name], name
    assert told["run_document"]["casks"] == casks_of(run)
    assert told["run_document"]["held_out"] == run["held_out"] | {"casks": casks_of(run["held_out"])}
    assert set(told["run_document"]) == set(run) - {"resolved", "result", "status", "format", "version"}
    assert [event.step for event in events.Scalars("eval/kl")] == [0, 1, 2]
    kl = [json.loads(line)["kl"] for line in (result.output / "held_out.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("eval/kl")] == pytest.approx(kl)
    assert [event.step for event in events.Scalars("train/kl")] == [1, 2]


def casks_of(document):
    """With the number of shards, of which there may be any number, in place of their names."""
    return [cask | {"shards": len(cask["shards"])} for cask in document["casks"]]


class Settings:
    """As the config of a tracker's run."""

    def __init__(self):
        self.values = {}

    def update(self, values, allow_val_change):
        assert allow_val_change
        self.values |= values

    def __setitem__(self, name, value):
        self.values[name] = value

    def __getitem__(self, name):
        return self.values[name]


def fake_tracker(name, sent):
    """A module with as much of a tracker as transformers calls; what it is sent is noted."""
    module: Any = types.ModuleType(name)
    module.__version__ = "99.0"
    module.config = Settings()
    module.run = None
    module.context_vars = types.SimpleNamespace(current_space_id=types.SimpleNamespace(get=lambda: None))

    def init(**options):
        sent.append(("init", options))
        module.run = types.SimpleNamespace(_label=lambda **more: None, id="1", name=options.get("name"), summary={})

    module.init = init
    module.log = lambda values, **more: sent.append(("log", values))
    module.define_metric = lambda *names, **more: None
    module.finish = lambda: None
    return module


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_are_told_the_same(config, monkeypatch, name):
    """Not the real ones, which send over the network: what transformers hands over to them."""
    sent = []
    module = fake_tracker(name, sent)
    errors: Any = types.ModuleType("wandb.sdk.lib.config_util")
    errors.ConfigError = KeyError
    for path in ("wandb.sdk", "wandb.sdk.lib"):
        monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", errors)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{name}_available", lambda: True)
    result = train(config(report_to=(name,)))
    run = json.loads((result.output / "logitcask.json").read_text())
    assert module.config["resolved"] == run["resolved"]
    assert module.config["run_document"]["casks"] == casks_of(run)
    assert module.config["run_document"]["held_out"]["positions"] == run["held_out"]["positions"]
    assert sent[0][1]["name"] == "out", "the output folder's name"
    logged = [values for kind, values in sent if kind == "log"]
    assert sum("eval/kl" in values for values in logged) == 3
    assert sum("train/kl" in values for values in logged) == 2


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_said_before_work_starts(config, name, tmp_path, monkeypatch):
    monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{name}_available", lambda: False)
    with pytest.raises(TrainConfigError, match=rf"{name} cannot be used here: .*installed.*pip install {name}"):
        train(config(report_to=("tensorboard", name)))
    assert not (tmp_path / "out").exists()


def test_every_tracker_is_looked_at(monkeypatch):
    assert {"tensorboard", "wandb", "trackio"} <= set(INTEGRATION_TO_CALLBACK)
    monkeypatch.setattr(arguments, "INTEGRATION_TO_CALLBACK", {"good": object})
    for names in (("good", "good"), ("none",), ("all",), ()):
        require_trackers(names)
    for alone in ("all", "none"):
        with pytest.raises(TrainConfigError, match=f"{alone} stands alone, got good, {alone}"):
            require_trackers(("good", alone))
    with pytest.raises(TrainConfigError, match="no tracker 'bad'"):
        require_trackers(("good", "bad"))
