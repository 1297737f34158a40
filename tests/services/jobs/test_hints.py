"""Extractions that ask for hints: the teacher is loaded for them, casks hold them, and what cannot be given is said."""

import errno
import json

import numpy as np
import pytest

from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cli.main import main
from logitcask_schemas.errors import CaskWriteError, ModelError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.jobs.extraction import (
    HINT_CHUNK_BYTES,
    MAX_DOCUMENTS,
    chunk_budget,
    hinted_budget,
    hinted_documents,
)
from tests.support.services.fake_teacher import fake_hints, fake_teacher
from tests.support.services.service_harness import cask_of, jsonl, wait_for

HINTS = {"layers": [2, -1], "codec": "i8"}


class Loads:
    """Loads fake teachers and keeps what they were loaded with."""

    def __init__(self, refuse: str | None = None) -> None:
        self.asked: list[HintSpec] = []
        self.refuse = refuse

    def __call__(self, hints: HintSpec):
        self.asked.append(hints)
        if self.refuse:
            raise ModelError(self.refuse)
        return fake_teacher(hints=hints)


def extract(server, documents, cask: str = "cask", **capture):
    corpus = server.upload(documents)
    return server.finish(server.submit(corpus, cask=cask, capture=capture)["id"])


def test_a_cask_holds_the_hints_that_were_asked_for(serve, documents, tmp_path):
    loads = Loads()
    server = serve(load_hinted=loads)
    done = extract(server, documents, hints=HINTS)
    assert done["status"] == "completed", done["error"]
    cask = cask_of(tmp_path)
    assert cask.manifest.capture.hints == HintSpec(layers=(2, 6), codec="i8")  # the fake teacher has six blocks
    assert loads.asked == [HintSpec(layers=(2, 6))]
    assert (len(cask), cask.has_hints) == (40, True)
    for number in range(len(cask)):
        expected = fake_hints(cask.read(number), cask.manifest.capture.hints).decode()
        np.testing.assert_array_equal(cask.hints(number).decode(), expected)
    assert [problem for report in verify_shards(cask) for problem in report.problems] == []
    sizes = [entry.bytes + entry.hints.bytes for entry in cask.entries]
    assert done["usage"]["bytes_written"] == sum(sizes)


def test_the_teacher_is_loaded_anew_for_other_layers_alone(serve, documents, tmp_path):
    loads = Loads()
    server = serve(load_hinted=loads)
    specs = [HINTS, {"layers": [6], "codec": "f16"}, {"layers": [3]}, {"layers": [3], "of": "v"}, {"layers": [3]}]
    for number, hints in enumerate(specs):
        done = extract(server, documents[:5], cask=f"cask-{number}", hints=hints)
        assert done["status"] == "completed", done["error"]
    assert extract(server, documents[:5], cask="plain")["status"] == "completed"
    layers = [(hints.of, hints.layers) for hints in loads.asked]
    assert layers == [("hidden", (2, 6)), ("hidden", (3,)), ("v", (3,)), ("hidden", (3,))]
    assert server.service.teacher.loads == 5
    assert not cask_of(tmp_path, "plain").has_hints


def test_an_engine_that_gives_every_layer_is_never_loaded_anew(serve, documents, tmp_path):
    every = HintSpec(layers=tuple(range(7)))
    server = serve(fake={"hints": every}, load_hinted=Loads(refuse="never asked"))
    assert extract(server, documents[:5], hints=HINTS)["status"] == "completed"
    assert server.service.teacher.loads == 1


def test_a_model_that_does_not_give_them_fails_the_extraction_and_not_the_service(serve, documents):
    loads = Loads(refuse="vLLM's OddModel does not give its hidden states: use --engine transformers")
    server = serve(load_hinted=loads)
    for cask in ("one", "two"):
        done = extract(server, documents[:5], cask=cask, hints=HINTS)
        assert (done["status"], done["error"]["code"]) == ("failed", "capture_invalid")
        assert "--engine transformers" in done["error"]["message"]
    assert len(loads.asked) == 1  # it is not tried in vain again
    assert extract(server, documents[:5], cask="plain")["status"] == "completed"
    assert server.client.get("/health/ready").status_code == 200


def test_hints_are_not_blamed_for_a_folder_that_is_gone(serve, documents, tmp_path):
    """The teacher cannot be loaded without them either: it is waited for, and then loaded with them."""
    loads, is_gone = Loads(), []

    def load():
        if is_gone:
            raise ModelError(is_gone[0])
        return fake_teacher()

    server = serve(load=load, load_hinted=loads)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    is_gone.append("there is no such folder")
    loads.refuse = is_gone[0]
    job = server.submit(server.upload(documents), capture={"hints": HINTS})["id"]
    wait_for(lambda: (server.get(job)["waiting"] or {}).get("code") == "teacher_unavailable")
    assert "there is no such folder" in server.get(job)["waiting"]["message"]
    is_gone.clear()
    loads.refuse = None
    assert server.finish(job)["status"] == "completed"
    assert cask_of(tmp_path).has_hints


@pytest.mark.parametrize(
    ("fake", "hints", "words"),
    [
        ({}, {"layers": [7]}, "0 to 6"),
        ({}, {"layers": [6, -1]}, "twice"),
        ({"has_hints": False}, HINTS, "served elsewhere (serve --engine openai)"),
    ],
)
def test_what_the_teacher_has_not_is_refused_at_once(serve, documents, fake, hints, words):
    server = serve(fake=fake)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    corpus = server.upload(documents)
    body = {"corpus_id": corpus["id"], "cask": "cask", "capture": {"hints": hints}}
    answer = server.client.post("/v1/extractions", json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("hints_not_given", "capture.hints")
    assert words in error["message"]


def test_it_is_refused_by_the_preparation_where_the_teacher_was_not_there_yet(serve, documents, monkeypatch):
    monkeypatch.setattr("logitcask_services.http.extraction_work.as_teacher_counts", lambda capture, facts: capture)
    server = serve()
    done = extract(server, documents, hints={"layers": [9]})
    assert (done["status"], done["error"]["code"]) == ("failed", "hints")


def test_a_cask_of_other_hints_is_another_cask(serve, documents):
    server = serve(load_hinted=Loads())
    assert extract(server, documents[:5], hints=HINTS)["status"] == "completed"
    body = {"corpus_id": server.upload(documents)["id"], "cask": "cask", "capture": {"hints": {"layers": [2, 6]}}}
    refused = server.client.post("/v1/extractions", json=body)
    assert refused.status_code == 409
    assert "hints" in refused.json()["error"]["message"]
    # Counted from the end it is the same cask; all its documents are there.
    done = extract(server, documents[:5], hints={"layers": [-5, 6], "codec": "i8"})
    assert done["documents"]["present"] == 5


def test_a_full_disk_is_waited_for(serve, documents, tmp_path, monkeypatch):
    from logitcask_schemas.cask.hint_publication import publish_hints

    failures = [3]

    def full(*arguments):
        if failures[0]:
            failures[0] -= 1
            raise CaskWriteError("no space left on device", errno.ENOSPC)
        return publish_hints(*arguments)

    monkeypatch.setattr("logitcask_schemas.cask.publication.publish_hints", full)
    server = serve(load_hinted=Loads())
    done = extract(server, documents, hints=HINTS)
    assert done["status"] == "completed"
    assert failures == [0]
    assert cask_of(tmp_path).has_hints
    assert len(cask_of(tmp_path)) == 40


def test_chunks_count_the_bytes_of_hints():
    assert hinted_budget(10**6, 0) is None
    assert hinted_budget(10**6, 0, budget=7) == 7
    assert hinted_budget(10**12, 12_000) == HINT_CHUNK_BYTES // 12_000
    assert hinted_budget(10**5, 10) == chunk_budget(10**5)
    assert hinted_budget(10**12, 12_000, budget=500) == 500
    assert hinted_budget(10**12, 10.0 * HINT_CHUNK_BYTES) == 1


def test_chunks_count_the_bytes_of_a_row_per_document():
    assert hinted_documents(0) == MAX_DOCUMENTS
    assert hinted_documents(100) == MAX_DOCUMENTS
    assert hinted_documents(2**20) == 256
    assert hinted_documents(10 * HINT_CHUNK_BYTES) == 1


def test_a_small_budget_makes_more_shards(serve, documents, tmp_path, monkeypatch):
    server = serve(load_hinted=Loads(), chunk_positions=None)
    assert extract(server, documents, hints=HINTS)["status"] == "completed"
    whole = len(cask_of(tmp_path).entries)
    monkeypatch.setattr("logitcask_services.jobs.extraction.HINT_CHUNK_BYTES", 20_000)
    assert extract(server, documents, cask="small", hints=HINTS)["status"] == "completed"
    assert len(cask_of(tmp_path, "small").entries) > whole


def test_a_row_per_document_counts_too(serve, documents, tmp_path, monkeypatch):
    """4,096 short documents with all layers of a large teacher would be gigabytes of a chunk."""
    server, last = serve(load_hinted=Loads(), chunk_positions=None), {**HINTS, "positions": "last"}
    assert extract(server, documents, hints=last)["status"] == "completed"
    [whole] = cask_of(tmp_path).entries
    each = cask_of(tmp_path).hints(0).num_bytes
    monkeypatch.setattr("logitcask_services.jobs.extraction.HINT_CHUNK_BYTES", 5 * each)
    assert extract(server, documents, cask="small", hints=last)["status"] == "completed"
    entries = cask_of(tmp_path, "small").entries
    assert sum(entry.documents for entry in entries) == whole.documents
    assert max(entry.documents for entry in entries) == 5


def test_the_manifest_counts_layers_as_the_cask_does(serve, documents, tmp_path):
    """Before there is a cask, and where another lies in its place, they are as they were asked for."""
    server = serve(load_hinted=Loads())
    done = extract(server, documents[:3], hints=HINTS)

    def layers() -> list[int]:
        return server.client.get(f"/v1/extractions/{done['id']}/manifest").json()["capture"]["hints"]["layers"]

    assert layers() == [2, 6]
    (tmp_path / "casks/cask").rename(tmp_path / "casks/elsewhere")
    assert layers() == [2, -1]
    extract(server, documents[:3], hints={**HINTS, "layers": [1, 3, -1]})
    assert layers() == [2, -1]


@pytest.mark.parametrize("codec", ["f16", "i8", "proj:4"])
def test_previews_tell_what_hints_cost(serve, documents, tmp_path, monkeypatch, capsys, codec):
    """A row per recorded position, or one per document: as many bytes as the cask's arrays then hold."""
    server = serve(load_hinted=Loads())
    monkeypatch.setenv("LOGITCASK_SERVER", server.url)
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl(documents))
    each = HintSpec(layers=(2, 6), codec=codec).bytes_per_row(8)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)

    def dry_run(*options: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["submit", str(path), "--dry-run", *options])
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    assert "of hints beside it" not in dry_run()
    for positions, unit in (("all", "recorded position"), ("last", "document")):
        options = ("--hints", f"layers=2,-1 codec={codec} positions={positions}")
        assert f"of hints beside it, {each} bytes per {unit}" in dry_run(*options)
        estimate = json.loads(dry_run(*options, "--json"))["estimate"]
        hints = {"layers": [2, -1], "codec": codec, "positions": positions}
        extract(server, documents, cask=positions, hints=hints)
        cask = cask_of(tmp_path, positions)
        stored = sum(cask.hints(number).num_bytes for number in range(len(cask)))
        assert estimate["hint_bytes"] == stored > 0


@pytest.mark.parametrize(
    ("hints", "words"), [("layers=1,1", "twice"), ("depth=3", "'depth=3'"), ("layers=1 codec=zip", "codec")]
)
def test_what_is_written_wrong_is_refused_before_anything_is_sent(hints, words, capsys, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl([{"text": "x"}]))
    with pytest.raises(SystemExit) as ended:
        main(["submit", str(path), "--cask", "c", "--hints", hints])
    assert ended.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_scores_have_no_hints(serve):
    server = serve()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    answer = server.client.post("/v1/score", json={"input_ids": [[1, 2, 3]], "capture": {"hints": HINTS}})
    assert answer.status_code == 422
    assert "leave them out" in answer.json()["error"]["message"]
