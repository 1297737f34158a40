"""Optimizers and schedules by name: what they do to parameters and learning rates, and that runs go on bit by bit."""

import importlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.optimization import MuonWithAdamW, decay_steps
from logitcask_consumer.training.run import train
from tests.support.consumer.resume_worker import require_resumed_alike


@pytest.fixture
def config(run_config):
    return run_config(max_steps=10, lr=3e-3, warmup=0.2, save_steps=3, keep_checkpoints=100)


def expected_rates(scheduler, *, peak=3e-3, floor=0.1, warmup=2, steps=10, decay=2):
    """Learning rate of each step, from the definitions."""

    def at(step):
        if step < warmup:
            lowest = 0.0 if scheduler in ("cosine", "constant") else floor
            return lowest + (1 - lowest) * step / warmup
        if scheduler == "constant":
            return 1.0
        if scheduler == "cosine":
            done = (step - warmup) / (steps - warmup)
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
        falls = decay if scheduler == "wsd" else steps - warmup
        done = max(0.0, (step - (steps - falls)) / falls)
        left = 1 - math.sqrt(done) if scheduler == "wsd" else 1 - done
        return floor + (1 - floor) * left

    return [peak * at(step) for step in range(steps)]


@pytest.mark.parametrize("scheduler", ["cosine", "wsd", "linear", "constant"])
def test_learning_rates_are_those_of_the_schedule(config, scheduler):
    train(replace(config, scheduler=scheduler))
    rates = [line["lr"] for line in read_metrics(config.output / "metrics.jsonl")]
    assert rates == pytest.approx(expected_rates(scheduler), rel=1e-9)


@pytest.mark.parametrize(("steps", "decay"), [(3, 0.2), (4, 0.1)])
def test_a_short_run_falls_too(config, steps, decay):
    """A share of less than two steps: the first step of a fall is made at the peak, so one alone would be no fall."""
    train(replace(config, scheduler="wsd", max_steps=steps, warmup=0.0, decay=decay))
    rates = [line["lr"] for line in read_metrics(config.output / "metrics.jsonl")]
    assert rates == pytest.approx(expected_rates("wsd", warmup=0, steps=steps, decay=2), rel=1e-9)
    assert rates[-1] < 0.5 * rates[-2]


@pytest.mark.parametrize(
    ("optimizer", "scheduler"), [("muon", "wsd"), ("adafactor", "linear"), ("adamw", "constant"), ("muon", "cosine")]
)
def test_a_run_that_was_killed_goes_on_bit_by_bit(config, place, tmp_path, optimizer, scheduler):
    whole = replace(config, optimizer=optimizer, scheduler=scheduler)
    require_resumed_alike(whole, tmp_path, stop=5)
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (whole.output, tmp_path / "broken")]
    assert [(line["step"], line["loss"], line["lr"]) for line in lines[0]] == [
        (line["step"], line["loss"], line["lr"]) for line in lines[1]
    ]


def test_optimizers_differ_and_learn(config, tmp_path):
    weights = {}
    for optimizer in ("adamw", "muon", "adafactor"):
        own = replace(config, optimizer=optimizer, output=tmp_path / optimizer, max_steps=20)
        train(own)
        lines = read_metrics(own.output / "metrics.jsonl")
        assert sum(line["kl"] for line in lines[-3:]) < sum(line["kl"] for line in lines[:3])
        weights[optimizer] = load_model(own.output).model.layers[0].mlp.up_proj.weight
    assert not torch.equal(weights["adamw"], weights["muon"])
    assert not torch.equal(weights["adamw"], weights["adafactor"])


def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest(config, monkeypatch):
    module: Any = importlib.import_module("logitcask_consumer.training.trainer")
    made = []
    original = module.muon_for

    def noted(*args):
        made.append((args[0], original(*args)))
        return made[-1][1]

    monkeypatch.setattr(module, "muon_for", noted)
    train(replace(config, optimizer="muon", max_steps=1))
    ((student, optimizer),) = made
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    muon, decayed, others = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert all("layers" in name and name.endswith("proj.weight") for name in muon)
    assert len(muon) == 2 * 7
    assert set(decayed) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all("norm" in name for name in others)


def test_a_step_is_torchs_own_of_each(config):
    """Two optimizers on copies, step by step, also after their state was written and read."""
    torch.manual_seed(3)
    ours, theirs = (nn.ParameterList([nn.Parameter(torch.zeros(s)) for s in ((6, 4), (5, 3), (7,))]) for _ in range(2))
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            one.normal_()
            other.copy_(one)
    settings: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    both = MuonWithAdamW([ours[0]], [ours[1]], [ours[2]], **settings)
    muon = torch.optim.Muon([theirs[0]], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([theirs[1]], lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))
    plain = torch.optim.AdamW([theirs[2]], lr=0.02, weight_decay=0.0, betas=(0.9, 0.95))
    for step in range(6):
        if step == 3:
            state = both.state_dict()
            both = MuonWithAdamW([ours[0]], [ours[1]], [ours[2]], **{**settings, "lr": 9.0})
            both.load_state_dict(state)
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in (both, muon, adamw, plain):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (step + 1)
            optimizer.step()
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other), step


def test_a_schedule_falls_within_its_run():
    assert decay_steps(0.2, steps=100, warmup=5) == 20
    assert decay_steps(1.0, steps=100, warmup=5) == 95
    assert decay_steps(0.01, steps=10, warmup=0) == 2
    assert decay_steps(0.2, steps=3, warmup=2) == 1
    assert decay_steps(1.0, steps=1, warmup=1) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be adamw or muon or adafactor"),
        ({"scheduler": "step"}, "scheduler must be cosine or wsd or linear or constant"),
        ({"scheduler": "wsd", "decay": 0.0}, "decay must be above 0"),
        ({"scheduler": "wsd", "decay": 0.9, "warmup": 0.2}, "together with warmup"),
        ({"optimizer": "muon", "fsdp": True}, "spreads them over processes"),
    ],
)
def test_what_cannot_be_is_refused(config, more, message):
    with pytest.raises(TrainConfigError, match=message):
        replace(config, **more)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 0.5}, "decay is the share over which wsd falls, scheduler is cosine"),
        ({"decay": 0.5, "scheduler": "constant"}, "scheduler is constant: take wsd, or leave decay out"),
        ({"min_lr_ratio": 0.0, "scheduler": "constant"}, "min_lr_ratio says how far the learning rate falls"),
    ],
)
def test_what_a_schedule_would_pass_over_is_refused(run_config, settings, message):
    with pytest.raises(TrainConfigError, match=message):
        run_config(**settings)


def test_what_a_schedule_follows_is_taken(run_config):
    assert run_config(scheduler="wsd", decay=0.5, min_lr_ratio=0.0).decay == 0.5
    assert run_config(scheduler="linear", min_lr_ratio=0.3).min_lr_ratio == 0.3
    assert run_config(scheduler="constant").scheduler == "constant"
