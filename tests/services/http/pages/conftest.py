"""A service with jobs, corpora, casks and runs that the page's tests look at."""

import json

import pytest

from tests.support.services.service_harness import wait_for

HOSTILE = "</textarea><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">'\"&{{7*7}}"
"""What would do something if the page did not escape it."""


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    return _write_runs(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def shown(serve_all, runs_folder):
    """A service to look at, whose jobs are done; see `shown_once`."""
    return _fill(serve_all, runs_folder)


@pytest.fixture
def runs_folder_once(tmp_path):
    return _write_runs(tmp_path)


@pytest.fixture
def shown_once(serve, runs_folder_once):
    """As `shown`, for a test that changes something."""
    return _fill(serve, runs_folder_once)


def _write_runs(tmp_path):
    folder = tmp_path / "runs" / "student"
    folder.mkdir(parents=True)
    steps = [{"step": step, "kl": 2 / step, "ce": 3.0, HOSTILE: 1.0} for step in range(1, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    evaluated = [{"step": step, "kl": 3 / (step + 1), HOSTILE: 0.5} for step in (0, 13, 26, 39)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluated))
    measured = {"value": 0.25, "low": 0.2, "high": 0.3}
    models = [{"label": HOSTILE, "metrics": {"kl": measured}}]
    report = {"kinds": {"kl": "unbiased"}, "units": {"kl": "nats per token"}, "models": models}
    (folder / "report.json").write_text(json.dumps(report))
    return tmp_path / "runs"


def _fill(serve, runs_folder):
    """A keyless service: two casks of the same twelve documents, chats with a loss mask, bad lines; all is done."""
    server = serve(fake={"max_model_len": 512}, runs=runs_folder, chunk_positions=400)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    texts = [
        {"text": f"{HOSTILE} story {number}: " + "there was a word. " * (3 + number % 4), "custom_id": f"d{number}"}
        for number in range(12)
    ]
    chats = [
        {"messages": [{"role": "user", "content": "where"}, {"role": "assistant", "content": f"in Paris, {number}"}]}
        for number in range(12)
    ]
    corpus = server.upload(texts)
    server.finish(server.submit(corpus, "stories")["id"])
    server.finish(server.submit(corpus, "again", capture={"tau": 0.1})["id"])
    answer = server.client.post("/v1/corpora", params={"name": HOSTILE}, content=lines_of([*chats, {"bad": 1}]))
    server.finish(server.submit(answer.json(), "chats", loss_on="assistant")["id"])
    return server


def lines_of(entries):
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
