"""SIGTERM ends the service in order and soon, whatever its engine is at: a process of its own can always be ended.

It is promised to take less than 10 s; here it is only asked to end at all, with exit code 0 and nothing left behind.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from logitcask_schemas.cask import Cask
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.process_engines import engines_of, is_alive
from tests.support.services.server_process import ServerProcess
from tests.support.services.service_harness import jsonl, server_environment, wait_for

DOCUMENTS = [{"input_ids": [number % 600, *range(5 + number % 30), number // 600]} for number in range(200)]
SERVE = "import sys; from logitcask_schemas.cli.main import main; main(['serve', *sys.argv[1:]])"
OPTIONS = ("--engine", "transformers", "--port", "0")
HALF_UPLOAD = b"POST /v1/corpora HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + b'{"text": "a"}\n'


def submit(server):
    corpus = server.client.post("/v1/corpora", content=jsonl(DOCUMENTS)).raise_for_status().json()
    body = {"corpus_id": corpus["id"], "cask": "cask"}
    return server.client.post("/v1/extractions", json=body).raise_for_status().json()["id"]


def submit_to_write(server):
    """The path of a generation with 80 requests."""
    lines = jsonl([{"input_ids": [1, 2, 3 + number]} for number in range(80)])
    corpus = server.client.post("/v1/corpora", content=lines).raise_for_status().json()
    step = {"kind": "generate", "template": "input-ids", "sampling": {"temperature": 1.0, "max_tokens": 64}}
    body = {"corpus_id": corpus["id"], "steps": [step], "emit": [{"completion": "output"}]}
    return f"/v1/generations/{server.client.post('/v1/generations', json=body).raise_for_status().json()['id']}"


def end(server):
    """SIGTERM; what it printed. Its engine's processes must be gone with it."""
    engines = engines_of(server.pid)
    began = time.monotonic()
    code = server.end()
    print(f"ended after {time.monotonic() - began:.1f} s")
    wait_for(lambda: not any(map(is_alive, engines)))
    text = (server.folder / "stderr").read_text()
    assert code == 0, text
    assert "Traceback" not in text
    return engines


def idle(tmp_path, model):
    """`logitcask serve` itself, with the engine for which it is hardest: transformers computes where it is loaded."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "--teacher", str(model), "--cask-root", str(tmp_path / "casks"), *OPTIONS],
        stderr=subprocess.PIPE,
        text=True,
        env={**server_environment(), "LOGITCASK_DISK_FLOOR_BYTES": "0"},
    )
    assert process.stderr is not None
    url = next(line for line in process.stderr if line.startswith("http://")).strip()

    def is_ready():
        try:
            return httpx2.get(f"{url}/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    wait_for(is_ready, 120)
    (engine,) = engines_of(process.pid)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert not is_alive(engine)


def loading(tmp_path, model):
    pids = tmp_path / "pids"
    server = ServerProcess(tmp_path / "it", {"child": {"loader": "load_slowly", "pids": str(pids)}})
    wait_for(lambda: pids.exists() and pids.read_text(), 60)
    engines = end(server)
    assert {*map(int, pids.read_text().split())} <= {*engines}


def step(tmp_path, model):
    """A step that does not come back: what was published stays, the rest is captured by the next start."""
    calm = ServerProcess(tmp_path / "calm")
    job = submit(calm)
    wait_for(lambda: calm.status(job)["status"] == "completed")
    end(calm)
    faults = tmp_path / "faults"
    faults.write_text("hung")
    child = {"child": {"faults": str(faults), "after": 90}}
    server = ServerProcess(tmp_path / "it", child)
    job = submit(server)
    folder = tmp_path / "it" / "casks" / "cask"

    def is_hung():
        """No shard for a while, and not done."""
        before = server.status(job)["documents"]["captured"]
        time.sleep(1.0)
        return 0 < before == server.status(job)["documents"]["captured"]

    wait_for(is_hung, 60)
    assert end(server)
    published = len(Cask.open(folder))
    assert 0 < published <= 90
    again = ServerProcess(tmp_path / "it", child)
    wait_for(lambda: again.status(job)["status"] == "completed", 60)
    assert again.status(job)["documents"]["captured"] == len(DOCUMENTS)
    end(again)
    shards = {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}
    assert shards == {
        path.name: path.read_bytes() for path in (tmp_path / "calm" / "casks" / "cask" / "shards").iterdir()
    }


def upload(tmp_path, model):
    """Half an upload is dropped."""
    server = ServerProcess(tmp_path / "it", {"child": {}})
    incoming = tmp_path / "it" / "state" / "corpora" / "incoming"
    address = ("127.0.0.1", server.client.base_url.port)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200, 60)
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(HALF_UPLOAD)
        wait_for(lambda: any(incoming.iterdir()))
        assert end(server)
    again = ServerProcess(tmp_path / "it", {"child": {}})
    assert again.client.get("/v1/corpora").json()["data"] == []
    assert not any(incoming.iterdir())
    end(again)


def stopped(tmp_path, model):
    """A process that stands still with nothing to do."""
    server = ServerProcess(tmp_path / "it", {"child": {}})
    wait_for(lambda: server.client.get("/health/ready").status_code == 200, 60)
    for engine in engines_of(server.pid):
        os.kill(engine, signal.SIGSTOP)
    assert end(server)


def resting(tmp_path, model):
    """Between two loads that fail, a minute apart."""
    child = {"loader": "load_nothing", "fault": "killed"}
    server = ServerProcess(tmp_path / "it", {"child": child, "engine_backoff_seconds": 60})

    def is_resting():
        reasons = server.client.get("/health/ready").json()["reasons"]
        return [reason["code"] for reason in reasons] == ["teacher_restarting"]

    wait_for(is_resting, 60)
    assert server.end() == 0


def scoring(tmp_path, model):
    """A step that does not come back, and a caller that waits for it: it is told, and the service ends."""
    faults = tmp_path / "faults"
    faults.write_text("hung")
    server = ServerProcess(tmp_path / "it", {"child": {"faults": str(faults), "after": 3}})
    wait_for(lambda: server.client.get("/health/ready").status_code == 200, 60)
    url, sequences = str(server.client.base_url), [[number, 2, 3] for number in range(30)]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx2.post, f"{url}/v1/score", json={"input_ids": sequences}, timeout=60)
        wait_for(lambda: 'logitcask_engine_state{state="working"} 1.0' in server.client.get("/metrics").text)
        assert end(server)
        assert asked.result().status_code == 503


def writing(tmp_path, model):
    """What was answered is not asked again by the next start."""
    log = tmp_path / "asked"
    writer = {"child": {"seconds_per_request": 0.03, "log": str(log)}}
    settings = {"child": {"max_model_len": 4096}}
    server = ServerProcess(tmp_path / "it", settings, writer)
    path = submit_to_write(server)
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 30, 60)
    assert end(server)
    again = ServerProcess(tmp_path / "it", settings, writer)
    wait_for(lambda: again.client.get(path).json()["status"] == "completed", 60)
    end(again)
    keys = [line.split("\t")[2] for line in log.read_text().splitlines()]
    assert len(set(keys)) == 80
    assert len(keys) <= 80 + FakeGenerator.in_flight


def ended_while_held(tmp_path, what, submitted):
    """End a server whose teacher is being loaded anew, then one that loads it; the path of what was submitted."""
    (tmp_path / what).touch()
    roster = {"folder": str(tmp_path), "held": [what]}
    server = ServerProcess(tmp_path / "it", {"roster": roster})
    wait_for(lambda: server.client.get("/health/ready").status_code == 200, 60)
    path, pid = submitted(server), tmp_path / f"{what}.pid"
    wait_for(lambda: pid.exists() and pid.read_text(), 60)
    assert int(pid.read_text()) in end(server)
    again = ServerProcess(tmp_path / "it", {"roster": {**roster, "held": []}})
    wait_for(lambda: again.client.get(path).json()["status"] == "completed", 60)
    done = again.client.get(path).json()
    end(again)
    return done


def switching(tmp_path, model):
    """The teacher that captured is gone, the one that writes is not there yet."""
    done = ended_while_held(tmp_path, "generate", submit_to_write)
    assert done["rows"]["kept"] == 80


def hinting(tmp_path, model):
    """The same engine is being loaded anew, for hints of other layers."""

    def submitted(server):
        plain = submit(server)
        wait_for(lambda: server.status(plain)["status"] == "completed", 60)
        corpus = server.status(plain)["corpus_id"]
        body = {"corpus_id": corpus, "cask": "hinted", "capture": {"hints": {"layers": [2, 6], "codec": "i8"}}}
        return f"/v1/extractions/{server.client.post('/v1/extractions', json=body).raise_for_status().json()['id']}"

    done = ended_while_held(tmp_path, "hints", submitted)
    assert done["documents"]["captured"] == len(DOCUMENTS)
    cask = Cask.open(tmp_path / "it" / "casks" / "hinted")
    assert (cask.has_hints, len(cask)) == (True, len(DOCUMENTS))


STATES = [idle, loading, step, upload, stopped, resting, scoring, writing, switching, hinting]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_sigterm_under_10s(state, tmp_path, tiny_llama):
    """See the functions above."""
    state(tmp_path, tiny_llama)
