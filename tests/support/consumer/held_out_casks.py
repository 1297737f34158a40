"""Held-out documents of tests that measure while they train, and runs that end early."""

from typing import Any

import pytest
from transformers import TrainerCallback

import logitcask_consumer.training.run as run_module
from logitcask_consumer.config import TrainConfig
from logitcask_consumer.training.run import train
from tests.support.consumer.cask_builder import random_documents

HELD_OUT = random_documents(11, seed=9)


class Stop(TrainerCallback):
    """Dies in the middle of a step, as a killed process would as far as files are concerned."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Dies at its step."""
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stopped(config: TrainConfig, step: int) -> None:
    """A run that ends so after a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "LogWhenSaving", lambda: Stop(step))
        train(config)
