"""Fixtures of the consumer's tests: reference sampler, tiny models, casks written from a plain forward pass."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from logitcask_consumer.config import TrainConfig
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    """Small tensors: threads cost more than they bring; and every test starts from the same generator state."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_config(place, tmp_path):
    """A function: a run of two of the tiny teacher's layers on the cask of `place`, into `out`, with other settings."""

    def config(**settings):
        common = {
            "casks": (place / "cask",),
            "student": "from-teacher:layers=2",
            "teacher": place / "teacher",
            "output": tmp_path / "out",
            "seq_len": 64,
            "batch_tokens": 256,
        }
        return TrainConfig(**{**common, **settings})

    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny teacher and the cask of 40 documents in three shards."""
    folder = tmp_path_factory.mktemp("run")
    build_cask(folder / "cask", save_teacher(folder / "teacher"), random_documents(40), per_shard=16)
    return folder
