"""The loop of docs/rounds.md as it stands there, against a service with a tiny teacher."""

import json
import re
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import logitcask
from tests.support.consumer.cask_builder import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[3]


def test_the_loop_by_hand_runs_and_trains(service, tmp_path, monkeypatch, capsys):
    [code] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/rounds.md").read_text(), re.M | re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 24
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = tiny_model(layers=2, seed=1)
    scope = {name: getattr(logitcask, name) for name in logitcask.__all__} | {
        "ServiceClient": lambda server: logitcask.ServiceClient(service.url),
        "torch": torch,
        "json": json,
        "Path": Path,
        "DataLoader": partial(DataLoader),
        "model": model,
        "tokenizer": tiny_tokenizer(),
        "prompts": [torch.tensor([5, 9, number]) for number in range(2, 12)],
        "casks": service.casks,
    }
    exec(compile(code, "docs/rounds.md", "exec"), scope)
    for number in range(3):
        assert len(logitcask.Cask.open(service.casks / f"hand.r{number}")) == 10
    before = tiny_model(layers=2, seed=1).state_dict()
    assert max(float((before[name] - value).abs().max()) for name, value in model.state_dict().items()) > 1e-5
    assert "completed" in capsys.readouterr().out
