"""Corpora as people have them, through a real server: blank lines, bad lines by the thousand, strange ids, answers."""

import bz2
import json

import numpy as np

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_services.corpora.prepare import prepare
from logitcask_services.jobs import preparer
from logitcask_services.jobs.database.extractions import ExtractionStore
from logitcask_services.jobs.extraction import MAX_DOCUMENTS, plan_chunks
from logitcask_services.jobs.failure_files import FailureFiles
from tests.support.services.fake_teacher import FakeTokenizer


def test_bad_lines_beyond_the_most_that_are_listed_are_counted(serve, monkeypatch):
    monkeypatch.setattr(preparer, "MAX_LISTED", 3)
    server = serve()
    job = server.finish(server.submit(server.upload(b"x\n" * 2000 + b'{"text": "good"}\n'))["id"])
    assert job["lines"]["bad"] == 2000
    *listed, last = server.errors(job["id"])
    assert [entry["line"] for entry in listed] == [1, 2, 3]
    assert (last["code"], last["line"]) == ("not_listed", 4)
    assert "1997 more lines are bad or skipped and are not listed" in last["message"]


def test_a_list_of_bad_lines_is_bounded_in_bytes(serve, monkeypatch):
    monkeypatch.setattr(FailureFiles.append, "__kwdefaults__", {"most_bytes": 2000})
    server = serve()
    bad = [{"text": "", "custom_id": "x" * 400} for _ in range(500)]
    job = server.finish(server.submit(server.upload(bad))["id"])
    assert (job["status"], job["lines"]["bad"]) == ("failed", 500)
    *listed, last = server.errors(job["id"])
    assert [entry["line"] for entry in listed] == [1, 2, 3]
    assert (last["code"], last["line"]) == ("not_listed", 4)
    assert "497 more lines" in last["message"]
    assert server.service.failures.path(job["id"]).stat().st_size < 4000


def test_100MB_of_newlines(serve, tmp_path):
    """They cost the state next to nothing, and the list of failures says what they are."""
    server = serve()
    corpus = server.upload(b"\n" * 100_000_000)
    assert corpus["lines"] == 100_000_000
    job = server.finish(server.submit(corpus)["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "nothing_captured")
    state = tmp_path / "state"
    assert sum(path.stat().st_size for path in state.rglob("*") if path.is_file() and path.suffix != ".jsonl") < 2 << 20
    assert server.errors(job["id"]) == []


def test_bad_lines_cost_the_database_nothing(serve, tmp_path):
    """300 kB of them took 25 MB once."""
    server = serve()
    job = server.finish(server.submit(server.upload(b"x\n" * 150_000))["id"])
    assert (job["status"], job["lines"]["bad"]) == ("failed", 150_000)
    outside = [path for path in (tmp_path / "state").rglob("*") if path.is_file() and path.parent.name != "corpora"]
    assert sum(path.stat().st_size for path in outside) < 2 << 20
    *listed, last = server.errors(job["id"])
    assert f"{150_000 - len(listed)} more lines" in last["message"]


def test_trailing_blank_lines_do_not_fail_an_extraction(serve):
    server = serve()
    corpus = server.upload(b'{"text":"x y"}\n{"text":"z w"}\n\n')
    job = server.finish(server.submit(corpus, on_error="fail")["id"])
    assert (job["status"], job["documents"]["total"], job["lines"]["bad"]) == ("completed", 2, 0)


def test_errors_are_one_line_each_whatever_the_custom_id(serve):
    server = serve()
    names = [f"a{separator}b" for separator in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\n\r"]
    corpus = server.upload([{"text": "", "custom_id": name} for name in names])
    job = server.finish(server.submit(corpus)["id"])
    text = server.client.get(f"/v1/extractions/{job['id']}/errors").text
    assert text.isascii()
    assert [json.loads(line)["custom_id"] for line in text.splitlines()] == names


def test_an_upload_of_another_format_is_refused_with_a_sentence(serve):
    server = serve()
    content = bz2.compress(b"x")
    answer = server.client.post("/v1/corpora", content=content, headers={"Content-Type": "application/jsonl"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "not_json_lines")
    assert "bzip2 -dc FILE" in answer.json()["detail"]
    assert server.client.get("/v1/corpora").json()["data"] == []


def test_a_stored_corpus_that_lost_its_end_is_told_and_put_right_by_another_upload(serve):
    server = serve()
    lines = [{"text": f"line {number}"} for number in range(4)]
    corpus = server.upload(lines)
    path = server.service.storage.path(corpus["sha256"])
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    failed = server.finish(server.submit(corpus)["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "corpus_unreadable")
    assert f"has 19 bytes, {corpus['bytes']} were uploaded" in failed["error"]["message"]
    assert server.upload(lines)["id"] == corpus["id"]
    server.client.post(f"/v1/extractions/{failed['id']}/resume").raise_for_status()
    job = server.finish(failed["id"])
    assert (job["status"], job["documents"]["captured"]) == ("completed", 4)


def test_a_corpus_that_nobody_foresaw_fails_alone(serve, monkeypatch):
    encode = FakeTokenizer.encode

    def faulty(self, texts, *, special_tokens):
        if "surprise" in texts:
            raise KeyError("as scripted")
        return encode(self, texts, special_tokens=special_tokens)

    monkeypatch.setattr(FakeTokenizer, "encode", faulty)
    server = serve()
    bad, good = server.upload([{"text": "surprise"}]), server.upload([{"text": "good"}])
    jobs = [server.submit(corpus)["id"] for corpus in (bad, good)]
    failed, completed = map(server.finish, jobs)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "internal")
    assert "unforeseen KeyError: 'as scripted'" in failed["error"]["message"]
    assert completed["status"] == "completed"
    assert server.service.crash is None


def test_a_run_that_fails_in_a_way_nobody_foresaw_fails_alone(serve, monkeypatch):
    has = CaskWriter.has

    def faulty(self, identity):
        if self.path.name == "surprise":
            raise KeyError("as scripted")
        return has(self, identity)

    monkeypatch.setattr(CaskWriter, "has", faulty)
    server = serve()
    corpus = server.upload([{"text": "good"}])
    jobs = [server.submit(corpus, cask=name)["id"] for name in ("surprise", "other")]
    failed, completed = map(server.finish, jobs)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "internal")
    assert (completed["status"], server.service.crash) == ("completed", None)
    monkeypatch.undo()
    server.client.post(f"/v1/extractions/{failed['id']}/resume").raise_for_status()
    assert server.finish(failed["id"])["status"] == "completed"


def test_an_extraction_that_the_other_thread_has_prepared_is_not_prepared_again(serve, monkeypatch):
    """Each preparing thread reads the list, then claims: what it read may be old by then."""
    to_prepare, listed, prepared = ExtractionStore.to_prepare, {}, []

    def old_list(self):
        listed.update({row.id: (row, size) for row, size in to_prepare(self)})
        return list(listed.values())

    def counting(corpus, *args, **options):
        prepared.append(corpus)
        return prepare(corpus, *args, **options)

    monkeypatch.setattr(ExtractionStore, "to_prepare", old_list)
    monkeypatch.setattr(preparer, "prepare", counting)
    server = serve()
    for number in range(3):
        job = server.submit(server.upload([{"text": f"good {number}"}]))
        assert server.finish(job["id"])["status"] == "completed"
    assert len(prepared) == 3
    assert server.service.crash is None


def test_answers_of_documents_reach_the_cask(serve):
    server = serve()
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]}
    lines = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, -100]}, {"text": "plain"}, chat]
    server.finish(server.submit(server.upload(lines), cask="c")["id"])
    cask = Cask.open(server.service.folders.cask("c"))
    labelled, plain, conversation = (cask.read(number).answer_ranges_R2 for number in range(3))
    assert plain is None
    assert [labelled.tolist(), conversation.tolist()] == [[[1, 3]], [[18, 20]]]


def test_chunks_of_short_documents_are_bounded_in_documents():
    offsets = np.arange(2 * MAX_DOCUMENTS + 2, dtype=np.uint64) * 2
    assert [chunk.documents for chunk in plan_chunks(offsets, 1 << 30)] == [MAX_DOCUMENTS, MAX_DOCUMENTS, 1]
