"""The promise: a service killed at random ends with the cask of one that was left alone, and does no work twice.

Real server processes, SIGKILL at random moments, restarts. `LOGITCASK_KILLS` sets how many (default 6).
"""

import os
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask
from logitcask_services.corpora.token_store import TokenStore
from tests.support.services.server_process import ServerProcess
from tests.support.services.service_harness import jsonl, wait_for

KILLS = int(os.environ.get("LOGITCASK_KILLS", "6"))
ENDED = ("completed", "failed", "cancelled")


def start(server: ServerProcess, documents) -> str:
    corpus = server.client.post("/v1/corpora", content=jsonl(documents)).raise_for_status().json()
    body = {"corpus_id": corpus["id"], "cask": "cask"}
    return server.client.post("/v1/extractions", json=body).raise_for_status().json()["id"]


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "casks" / "cask" / "shards").iterdir()}


def log_entries(folder: Path) -> list[tuple[str, int, str]]:
    lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return [(pid, int(key), identity) for pid, key, identity in map(str.split, lines)]


def safe_documents(folder: Path, extraction: str) -> set[str]:
    """Identities of documents whose capture is safe: their chunk is committed, or their shard is published."""
    safe = set()
    if (folder / "casks" / "cask" / "cask.json").exists():
        safe |= {identity.tobytes().hex() for identity in Cask.open(folder / "casks" / "cask").document_ids()}
    connection = sqlite3.connect(f"file:{folder / 'state' / 'jobs.sqlite3'}?mode=ro", uri=True)
    chunks = connection.execute("SELECT first_document, documents FROM chunks WHERE done").fetchall()
    connection.close()
    if chunks:
        store = TokenStore(folder / "state" / "extractions" / extraction)
        safe |= {store.document_id(d).hex() for first, count in chunks for d in range(first, first + count)}
    return safe


@pytest.fixture
def corpus():
    source = random.Random(7)
    documents: list[dict[str, Any]] = [
        {"input_ids": [source.randrange(600) for _ in range(source.randrange(4, 60))]} for _ in range(600)
    ]
    for document in documents[::3]:  # a third under one of a few contexts, others recorded in part
        document["context_ids"] = [source.randrange(4), 7]
    for document in documents[::5]:
        document["recorded"] = [[0, 1], [2, len(document["input_ids"]) - 1]]
    return documents + documents[100:130]  # repetitions


def test_killed_at_random(tmp_path, corpus):
    calm = ServerProcess(tmp_path / "calm")
    extraction = start(calm, corpus)
    wait_for(lambda: calm.status(extraction)["status"] in ENDED, 60)
    expected = calm.status(extraction)
    assert expected["status"] == "completed"
    assert calm.end() == 0

    # As slow as it takes for all kills to fall within the run; several chunks per life, and long moments between
    # publication and commit. The moments of the kills are drawn anew in every run.
    moments = random.Random()
    folder = tmp_path / "killed"
    slow = {"seconds_per_document": 0.004, "pause_before_commit": 0.05 * max(1, KILLS / 20)}
    server = ServerProcess(folder, **slow)
    extraction = start(server, corpus)
    kills = 0
    pids = [str(server.pid)]
    safe_at_kill: list[set[str]] = []
    while kills < KILLS:
        time.sleep(moments.uniform(0, 0.35))
        if server.status(extraction)["status"] in ENDED:
            break
        server.kill()
        kills += 1
        safe_at_kill.append(safe_documents(folder, extraction))
        server = ServerProcess(folder, **slow)
        pids.append(str(server.pid))
    wait_for(lambda: server.status(extraction)["status"] in ENDED, 120)
    done = server.status(extraction)
    assert server.end() == 0
    assert kills >= min(KILLS, 5), "the run ended before it was killed often enough"

    assert shards(folder) == shards(tmp_path / "calm")
    for field in ("status", "request_counts", "documents", "lines", "usage"):
        assert done[field] == expected[field], field
    cask = Cask.open(folder / "casks" / "cask")
    identities = [identity.tobytes() for identity in cask.document_ids()]
    assert len(identities) == len(set(identities)) == 600

    entries = log_entries(folder)
    for kill, safe in enumerate(safe_at_kill):
        later = pids[kill + 1 :]
        repeated = [identity for pid, _, identity in entries if pid in later and identity in safe]
        assert not repeated, f"{len(repeated)} documents were captured again after they were safe"
