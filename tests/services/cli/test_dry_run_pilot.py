"""`submit --dry-run --pilot N`: what it says is what an extraction takes, and nothing of it stays."""

import json
import re
from pathlib import Path

import httpx2
import pytest

from logitcask_schemas.record.hint_spec import parse_hints
from logitcask_services.cli.pilot import draw_lines
from tests.support.services.fake_teacher import POISON
from tests.support.services.service_harness import jsonl, wait_for

DOCS = Path(__file__).parents[3] / "docs"
JSONL = {"Content-Type": "application/jsonl"}


@pytest.fixture
def prose(tmp_path):
    """Paragraphs of this project's documentation."""
    texts = [paragraph for page in sorted(DOCS.glob("*.md")) for paragraph in re.split(r"\n{2,}", page.read_text())]
    path = tmp_path / "prose.jsonl"
    path.write_bytes(jsonl([{"text": text.strip()} for text in texts if len(text.strip()) > 20][::4]))
    return path


def pilot_of(run, server, corpus, *more):
    code, out, err = run(server, "submit", corpus, "--dry-run", "--json", *more)
    assert code == 0, err
    return json.loads(out)["pilot"]


def require_nothing_left(server):
    service = server.service
    assert list(service.folders.extractions.iterdir()) == []
    root = Path(service.folders.casks.place)
    assert [child.name for child in root.iterdir() if child != service.folders.state] == []
    for listing in ("extractions", "corpora", "casks"):
        assert server.client.get(f"/v1/{listing}").json()["data"] == []
    assert (service.scoring.waiting_tokens, service.scoring.waiting_sequences) == (0, 0)


@pytest.mark.parametrize(
    ("carrier", "chunk_positions"), [("arrow", 2000), ("arrow", None), ("zarr", 20_000), ("packed", 20_000)]
)
def test_the_bytes_are_within_5_percent_of_the_extractions(serve, run, prose, carrier, chunk_positions):
    server = serve(fake={"max_model_len": 4096}, chunk_positions=chunk_positions)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    pilot = pilot_of(run, server, prose, "--pilot", "100", "--carrier", carrier)
    require_nothing_left(server)
    job = server.finish(server.submit(server.upload(prose.read_bytes()), carrier=carrier)["id"])
    expected = pilot["estimate"]["cask_bytes"]
    assert job["documents"]["present"] == 0
    assert expected["expected"] == pytest.approx(job["usage"]["bytes_written"], rel=0.05)
    assert expected["low"] < expected["expected"] < expected["high"]
    assert pilot["estimate"]["tokens"]["low"] <= job["usage"]["tokens_total"] <= pilot["estimate"]["tokens"]["high"]


def test_a_pilot_of_all_lines_is_the_extraction(serve, run, corpus):
    server = serve()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    pilot = pilot_of(run, server, corpus, "--pilot", "1000")
    job = server.finish(server.submit(server.upload(corpus.read_bytes()))["id"])
    assert (pilot["lines"], pilot["bad_lines"], pilot["documents"]) == (42, 2, 40)
    tokens = job["usage"]["tokens_total"]
    assert pilot["estimate"]["tokens"] == {"expected": tokens, "low": tokens, "high": tokens}
    assert pilot["estimate"]["cask_bytes"]["expected"] == pytest.approx(job["usage"]["bytes_written"], rel=0.02)
    assert pilot["recorded_positions"] == pilot["tokens"] - 40


def test_time_and_price_are_of_the_measured_pace(serve, run, prose):
    server = serve(fake={"max_model_len": 4096, "seconds_per_document": 0.01})
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    pilot = pilot_of(run, server, prose, "--pilot", "20", "--price-per-hour", "3600")
    assert pilot["seconds"] >= 0.2
    assert pilot["tokens_per_second"] == pytest.approx(pilot["tokens"] / pilot["seconds"])
    seconds, price = pilot["estimate"]["seconds"], pilot["price"]
    assert seconds["expected"] == pytest.approx(
        pilot["estimate"]["tokens"]["expected"] / pilot["tokens_per_second"], rel=1e-6
    )
    assert seconds["low"] < seconds["expected"] < seconds["high"]
    assert price == pytest.approx(seconds)
    assert pilot_of(run, server, prose, "--pilot", "20")["price"] is None
    code, out, _ = run(server, "submit", prose, "--dry-run", "--pilot", "20", "--price-per-hour", "3600")
    assert code == 0
    assert "a pilot of 20 lines" in out
    assert re.search(
        r"[0-9.]+ bytes per recorded position in arrow shards: .* head entries, .* draws; mean entropy", out
    )
    assert re.search(r"cask: about .*B, 95 % between .*B and .*B", out)
    assert "price: about" in out
    assert "time: not known" not in out
    require_nothing_left(server)


def test_contexts_answers_and_hints_count_as_in_an_extraction(serve, run, tmp_path):
    lines = [{"context_ids": [1, 2, 3], "input_ids": [4, 5, 6, 7 + n], "recorded": [[1, 2]]} for n in range(8)]
    path = tmp_path / "lines.jsonl"
    path.write_bytes(jsonl(lines))
    server = serve()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    pilot = pilot_of(run, server, path, "--pilot", "8", "--hints", "layers=0 codec=f16")
    assert (pilot["recorded_positions"], pilot["tokens"], pilot["context_tokens"]) == (8, 32, 24)
    assert pilot["estimate"]["hint_bytes"]["expected"] == 8 * parse_hints("layers=0 codec=f16").bytes_per_row(8)


def test_a_pilot_whose_caller_has_gone_leaves_nothing(serve, documents):
    server = serve(fake={"seconds_per_document": 0.1})
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    with pytest.raises(httpx2.ReadTimeout):
        server.client.post("/v1/pilots", content=jsonl(documents), headers=JSONL, timeout=0.5)
    wait_for(lambda: not server.service.scoring.is_waited_for)
    wait_for(lambda: not server.service.heartbeat.is_expected)
    require_nothing_left(server)


@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        ([{"input_ids": [5, POISON]}], 422, "capture_failed"),
        ([{"title": "no document"}], 422, "invalid_request"),
        ([], 400, "empty_body"),
        ([{"input_ids": [number % 900, 7]} for number in range(1025)], 413, "request_too_large"),
    ],
)
def test_what_is_refused_leaves_nothing(serve, lines, status, code):
    server = serve()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    answer = server.client.post("/v1/pilots", content=jsonl(lines), headers=JSONL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    require_nothing_left(server)


def test_sizes_of_the_corpus_come_together_and_are_no_less_than_what_is_sent(serve, documents):
    server = serve()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    for params in ({"corpus_lines": 5}, {"corpus_bytes": 5}, {"corpus_lines": 39, "corpus_bytes": 10_000}):
        answer = server.client.post("/v1/pilots", content=jsonl(documents), headers=JSONL, params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "corpus_lines")
    alone = server.client.post("/v1/pilots", content=jsonl(documents), headers=JSONL).json()
    assert (alone["lines"], alone["estimate"], alone["beside"]) == (40, None, None)


def test_a_job_that_runs_beside_it_is_named(serve, documents):
    server = serve(fake={"seconds_per_document": 0.05})
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    pilot = server.client.post("/v1/pilots", content=jsonl([{"input_ids": [900, 901]}]), headers=JSONL).json()
    assert pilot["beside"] == job["id"]
    assert server.finish(job["id"])["status"] == "completed"


def test_lines_are_drawn_from_the_middle_of_equal_parts(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\n".join(b'{"n": %d}\n' % number for number in range(10)))
    drawn = draw_lines(path, 3)
    assert drawn.content == b'{"n": 1}\n{"n": 5}\n{"n": 8}\n'
    assert (drawn.corpus_lines, drawn.corpus_bytes) == (10, 80)
    assert draw_lines(path, 99).content.count(b"\n") == 10


def test_a_pilot_needs_a_dry_run_and_a_service(run, corpus, tmp_path):
    code, _, err = run(None, "submit", corpus, "--cask", "c", "--pilot", "5")
    assert (code, "--dry-run" in err) == (2, True)
    assert run(None, "submit", corpus, "--dry-run", "--teacher", tmp_path, "--pilot", "5")[0] == 2
