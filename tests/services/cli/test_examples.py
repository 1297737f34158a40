"""The example and the snippet that talk to a service, as they stand, with a real server on loopback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import logitcask
from logitcask import Cask
from tests.support.services.service_harness import jsonl

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def corpus(tmp_path, documents):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl(documents))
    return path


def test_the_submitting_example_submits(serve, corpus, tmp_path):
    server = serve()
    done = subprocess.run(
        [sys.executable, ROOT / "examples/submit_corpus.py", corpus, "mine", "--server", server.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "completed"
    cask = Cask.open(tmp_path / "casks" / "mine")
    assert (len(cask), cask.manifest.capture.tau) == (40, 1 / 20)


def test_the_snippet_of_the_service_runs(serve, corpus, tmp_path, monkeypatch):
    page = (ROOT / "docs/python.md").read_text()
    [code] = re.findall(r"^## The service$.*?^```python\n(.*?)^```", page, re.M | re.S)
    server = serve()
    monkeypatch.chdir(tmp_path)
    names = ("ExtractionRequest", "ServiceClient", "capture_spec")
    scope = {name: getattr(logitcask, name) for name in names} | {"Path": Path}
    exec(compile(code.replace("http://localhost:8000", server.url), "snippet", "exec"), scope)
    assert scope["client"].server == server.url
    assert len(Cask.open(tmp_path / "casks" / "mine")) == 40
