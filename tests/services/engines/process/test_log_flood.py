"""An engine prints 50 MB while it works: the job goes on, the service answers, its memory and log stay small."""

from pathlib import Path

import pytest

from tests.support.services.server_process import ServerProcess
from tests.support.services.service_harness import jsonl, wait_for

MEBI = 1 << 20
DOCUMENTS = [{"input_ids": [number, *range(20)]} for number in range(50)]
MOST_GROWTH = 40 * MEBI
"""Of the service, which also prepares and captures a corpus meanwhile."""


def peak(server):
    """Most bytes that were resident, so far."""
    text = Path(f"/proc/{server.pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.parametrize("line", [20, 5000, 0], ids=["short lines", "long lines", "no line ends"])
def test_a_flood_neither_blocks_nor_fills_memory(tmp_path, line):
    child = {"loader": "load_talkative", "size": MEBI, "line": line}
    server = ServerProcess(tmp_path / "it", {"child": child})
    corpus = server.client.post("/v1/corpora", content=jsonl(DOCUMENTS)).raise_for_status().json()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200, 60)
    before = peak(server)
    body = {"corpus_id": corpus["id"], "cask": "cask"}
    job = server.client.post("/v1/extractions", json=body).raise_for_status().json()["id"]
    wait_for(lambda: server.status(job)["status"] == "completed", 120)
    assert server.status(job)["documents"]["captured"] == len(DOCUMENTS)
    assert peak(server) - before < MOST_GROWTH
    assert "logitcask_teacher_deaths_total 0.0" in server.client.get("/metrics").text
    assert server.end() == 0
    log = (tmp_path / "it" / "stderr").read_text()
    assert len(log) < 2 * MEBI
    if 0 < line < 2000:
        told = sum(int(text.split("(")[1].split()[0]) for text in log.splitlines() if "more lines left out" in text)
        assert told > 49 * MEBI // line, "what is left out is counted"
