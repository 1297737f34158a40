"""Where memory runs out, one sentence says what was asked for, what the run has, and what to set."""

import re
from dataclasses import replace

import pytest
import torch
import typer

from logitcask_consumer.cli import rounds
from logitcask_consumer.training.out_of_memory import MemoryShortError, advice, asked_for, memory_advice
from logitcask_consumer.training.run import train
from logitcask_consumer.training.trainer import DistillTrainer

ON_DEVICE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ...")


@pytest.fixture
def config(run_config):
    return run_config(micro_tokens=256, max_steps=3)


def test_torchs_words_are_understood():
    """The CPU's error is torch's own, of memory that no machine has."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.float32)
    assert asked_for(raised.value) == f"{2**62 / 2**20:,.1f} MiB"
    assert asked_for(ON_DEVICE) == "2.50 GiB"
    assert asked_for(torch.OutOfMemoryError("no words")) == "more memory"
    assert asked_for(RuntimeError("shapes do not match")) is None


def test_a_run_says_what_to_set(config, monkeypatch):
    def short(self, *args, **kwargs):
        raise ON_DEVICE

    with monkeypatch.context() as patch:
        patch.setattr(DistillTrainer, "training_step", short)
        with pytest.raises(MemoryShortError) as raised:
            train(config)
    said = str(raised.value)
    assert "asked for 2.50 GiB more" in said
    assert "4 sequences of 64 tokens in a forward pass (--micro-tokens 256)" in said
    assert "--micro-tokens 128," in said
    assert train(replace(config, micro_tokens=128)).run["status"] == "finished", "as it says, within the run"


def test_advice_ends_where_nothing_is_left(config):
    one = replace(config, micro_tokens=64)
    assert "--gradient-checkpointing, which costs time" in advice(one, "1 GiB", micro_sequences=1)
    last = advice(replace(one, gradient_checkpointing=True), "1 GiB", micro_sequences=1)
    assert "--lora" in last
    assert "--seq-len 32" in last
    assert "--lora" not in advice(replace(one, gradient_checkpointing=True, lora="rank=2"), "1 GiB", micro_sequences=1)


def test_rounds_are_told_of_their_own_options_alone(config):
    last = replace(config, micro_tokens=64, gradient_checkpointing=True)
    with pytest.raises(MemoryShortError) as raised, memory_advice(last, micro_sequences=1, in_rounds=True):
        raise ON_DEVICE
    assert "with --seq-len 32, or a smaller student" in str(raised.value)
    asked = set(
        re.findall(r"--[a-z-]+", advice(config, "1 GiB", micro_sequences=4, in_rounds=True) + str(raised.value))
    )
    parameters = typer.main.get_command(rounds.app).params
    assert asked <= {option for parameter in parameters for option in parameter.opts}
    assert "--fsdp" in advice(last, "1 GiB", micro_sequences=1), "the control: of `train`"


def test_other_errors_stay_what_they_are(config):
    with pytest.raises(RuntimeError, match="shapes"), memory_advice(config, micro_sequences=1):
        raise RuntimeError("shapes do not match")
