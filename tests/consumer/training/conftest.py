"""Runs that are measured on a held-out cask while they train."""

import pytest
from transformers import AutoModelForCausalLM

from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import HELD_OUT, build_cask


@pytest.fixture(scope="module")
def teacher(place):
    return AutoModelForCausalLM.from_pretrained(place / "teacher")


@pytest.fixture(scope="module")
def held(place, teacher):
    return build_cask(place / "held", teacher, HELD_OUT, spec=CaptureSpec(tail_logprobs=True), per_shard=4)


@pytest.fixture
def config(run_config, held):
    return run_config(
        overlap=8,
        micro_tokens=128,
        epochs=2,
        lr=3e-3,
        save_steps=3,
        keep_checkpoints=100,
        eval_casks=(held,),
        eval_every=2,
    )
