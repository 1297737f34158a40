"""`logitcask serve` whose engine has a process of its own keeps torch out of the service's process, whatever it does.

torch alone would be a third of that process' memory, and nothing there computes with it.
"""

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from logitcask_schemas.cask import Cask
from logitcask_services.corpora.lines import ChatLine
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from tests.support.services.process_engines import engines_of
from tests.support.services.service_harness import jsonl, server_environment, wait_for

SERVE = "import sys; from logitcask_schemas.cli.main import main; main(['serve', *sys.argv[1:]])"
TEXTS = [" ".join(f"w{(number * 7 + place) % 290}" for place in range(5 + number % 20)) for number in range(30)]
CHAT = [{"role": "user", "content": "w5 w6 "}, {"role": "assistant", "content": "w7 w8 w1"}]
LINES = [*({"text": text} for text in TEXTS), {"messages": CHAT}]


def torch_files(pid):
    """Libraries of torch that a process has mapped; a module may be imported for a moment, its library stays."""
    mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[-1] for line in mapped if "/torch/lib/" in line}


@pytest.fixture(scope="module")
def service(tmp_path_factory, tiny_llama):
    """Process, client and folder of casks of a service with the teacher that needs torch for everything."""
    folder = tmp_path_factory.mktemp("service")
    options = ["--teacher", tiny_llama, "--cask-root", folder / "casks", "--engine", "transformers", "--port", "0"]
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *map(str, options)],
            stderr=stderr,
            env={**server_environment(), "LOGITCASK_DISK_FLOOR_BYTES": "0"},
        )

    def said():
        return (folder / "stderr").read_text()

    def address():
        assert process.poll() is None, said()
        return next((line for line in said().splitlines() if line.startswith("http://")), None)

    try:
        wait_for(address, 300)
        with httpx2.Client(base_url=address() or "", timeout=300) as client:
            wait_for(lambda: client.get("/health/ready").status_code == 200, 300)
            yield process, client, folder / "casks"
        process.terminate()
        assert process.wait(120) == 0, said()
    finally:
        process.kill()
        process.wait()
    assert "PyTorch was not found" not in said()


def test_the_engine_has_it_and_the_service_has_not(service):
    process, _, _ = service
    assert not torch_files(process.pid)
    (engine,) = engines_of(process.pid)
    assert torch_files(engine)  # so that the test would see it


def test_what_it_tokenises_is_what_transformers_with_torch_tokenises(service, tiny_llama):
    process, client, casks = service
    headers = {"Content-Type": "application/jsonl"}
    preview = client.post("/v1/previews", content=jsonl(LINES), headers=headers).raise_for_status().json()
    pilot = client.post("/v1/pilots", content=jsonl(LINES), headers=headers).raise_for_status().json()
    corpus = client.post("/v1/corpora", content=jsonl(LINES), headers=headers).raise_for_status().json()
    body = {"corpus_id": corpus["id"], "cask": "cask"}
    job = client.post("/v1/extractions", json=body).raise_for_status().json()["id"]
    wait_for(lambda: client.get(f"/v1/extractions/{job}").json()["status"] == "completed", 300)
    tokenizer = HuggingFaceTokenizer.load(tiny_llama)
    chat = tokenizer.chat([ChatLine(messages=CHAT)])[0].token_ids
    expected = [*tokenizer.encode(TEXTS, special_tokens=True), chat]
    cask = Cask.open(casks / "cask")
    assert [cask.read(number).token_ids_L.tolist() for number in range(len(cask))] == expected
    assert (preview["documents"], preview["tokens"]) == (len(LINES), sum(map(len, expected)))
    assert (pilot["documents"], pilot["tokens"]) == (len(LINES), sum(map(len, expected)))
    assert not torch_files(process.pid)
