"""Rows and statistics of a corpus; deletion of corpora and jobs, by hand and by age: what is gone is gone."""

import time

import pytest

from logitcask_schemas.cask import Cask
from logitcask_services.jobs.housekeeper import sweep
from tests.support.services.service_harness import jsonl, wait_for
from tests.support.services.simple_steps import EMIT, STEPS

LINES = [{"text": "one", "custom_id": "a"}, {"messages": [{"role": "user", "content": "x"}], "id": 5}, {"text": ""}]


def files_of(server, name):
    return [path for path in server.service.folders.state.rglob("*") if name in path.name]


def test_rows_with_what_is_wrong_with_them(serve):
    server = serve(max_line_bytes=100_000)
    body = jsonl(LINES) + b"\n\n[" * 1 + b"[" * 5000 + b"\n" + jsonl([{"text": "y" * 90_000}]) + b"z" * 200_000
    corpus = server.upload(body)
    page = server.client.get(f"/v1/corpora/{corpus['id']}/rows?length=100").json()
    assert [(row["line"], row["code"]) for row in page["data"]] == [
        (1, None), (2, None), (3, "empty"), (6, "not_json"), (7, None), (8, "line_too_long"),
    ]  # fmt: skip
    assert [row["row"] for row in page["data"][:2]] == LINES[:2]
    assert len(page["data"][4]["text"]) == 64 << 10
    assert page["has_more"] is False
    middle = server.client.get(f"/v1/corpora/{corpus['id']}/rows?offset=1&length=2").json()
    assert ([row["line"] for row in middle["data"]], middle["has_more"]) == ([2, 3], True)
    assert server.client.get(f"/v1/corpora/{corpus['id']}/rows?offset=99").json()["data"] == []
    assert server.client.get(f"/v1/corpora/{corpus['id']}/rows?length=101").status_code == 422
    assert server.client.get("/v1/corpora/corpus-none/rows").status_code == 404


@pytest.mark.parametrize("nested", [("[", "]"), ('{"a":', "}")])
def test_a_row_that_is_too_deep_to_be_answered_is_shown_as_text(serve, nested):
    """Writers of JSON give up at some depth that readers take: a page of rows was a 500."""
    server = serve()
    line = '{"text": "ok", "deep": ' + nested[0] * 900 + "1" + nested[1] * 900 + "}"
    corpus = server.upload(line.encode() + b'\n{"text": "ok", "flat": [[1]]}\n')
    page = server.client.get(f"/v1/corpora/{corpus['id']}/rows").raise_for_status().json()["data"]
    assert [(row["row"], row["text"], row["code"]) for row in page] == [
        (None, line, None),
        ({"text": "ok", "flat": [[1]]}, None, None),
    ]


def test_statistics(serve):
    server = serve()
    corpus = server.upload(jsonl(LINES * 10) + b"rubbish\n\n")
    statistics = server.client.get(f"/v1/corpora/{corpus['id']}/statistics").json()
    assert statistics["lines"] == 31
    assert statistics["is_whole"] is True
    assert statistics["forms"] == {"messages": 10, "text": 10}
    assert statistics["bad_lines"] == {"empty": 10, "not_json": 1}
    assert statistics["with_custom_id"] == 20
    sizes = [len(line) for line in (jsonl(LINES * 10) + b"rubbish\n").splitlines()]
    assert (statistics["shortest_bytes"], statistics["longest_bytes"]) == (min(sizes), max(sizes))
    assert statistics["mean_bytes"] == round(sum(sizes) / 31, 1)
    assert sum(entry["lines"] for entry in statistics["lengths"]) == 31
    empty = server.client.get(f"/v1/corpora/{server.upload(bytes(10).replace(bytes(1), b' '))['id']}/statistics").json()
    assert (empty["lines"], empty["mean_bytes"], empty["lengths"]) == (0, 0.0, [])


def test_a_corpus_is_deleted_when_nobody_needs_it(serve, tmp_path):
    server = serve(fake={"seconds_per_document": 0.05})
    corpus = server.upload([{"text": f"line {number}"} for number in range(40)])
    job = server.submit(corpus)["id"]
    refused = server.client.delete(f"/v1/corpora/{corpus['id']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "corpus_in_use")
    assert refused.json()["users"] == [job]
    assert server.finish(job)["status"] == "completed"
    deleted = server.client.delete(f"/v1/corpora/{corpus['id']}")
    assert (deleted.status_code, deleted.json()) == (200, {"id": corpus["id"], "object": "corpus", "deleted": True})
    assert files_of(server, corpus["sha256"]) == []
    for path in ("", "/rows", "/statistics"):
        assert server.client.get(f"/v1/corpora/{corpus['id']}{path}").status_code == 404
    assert server.client.delete(f"/v1/corpora/{corpus['id']}").status_code == 404
    assert server.client.get("/v1/corpora").json()["data"] == []
    assert server.client.post("/v1/extractions", json={"corpus_id": corpus["id"], "cask": "c"}).status_code == 404
    assert server.get(job)["corpus_id"] == corpus["id"]  # the job still says what it was made of
    assert len(Cask.open(server.service.folders.cask("cask"))) == 40
    again = server.upload([{"text": f"line {number}"} for number in range(40)])
    assert again["id"] == corpus["id"]
    assert server.finish(server.submit(again)["id"])["documents"]["present"] == 40


def test_a_corpus_of_demonstrations_is_in_use(start):
    server = start(writer={"seconds_per_request": 0.2})
    shown = server.upload([{"question": "a", "answer": "b"}] * 4)
    asked = server.upload([{"question": f"q{number}"} for number in range(20)])
    body = {"corpus_id": asked["id"], "recipe": "icl", "parameters": {"demonstrations": shown["id"], "k": 2}}
    job = server.client.post("/v1/generations", json=body).raise_for_status().json()["id"]
    refused = server.client.delete(f"/v1/corpora/{shown['id']}")
    assert (refused.status_code, refused.json()["users"]) == (409, [job])
    server.client.post(f"/v1/generations/{job}/cancel")
    wait_for(lambda: server.client.get(f"/v1/generations/{job}").json()["status"] == "cancelled")
    assert server.client.delete(f"/v1/files/{shown['id']}").json()["deleted"] is True


def test_an_extraction_is_deleted_when_it_has_ended(serve):
    server = serve(fake={"seconds_per_document": 0.05})
    corpus = server.upload([*({"text": f"line {number}"} for number in range(40)), {"text": ""}])
    key = {"Idempotency-Key": "k"}
    body = {"corpus_id": corpus["id"], "cask": "cask"}
    job = server.client.post("/v1/extractions", json=body, headers=key).json()["id"]
    refused = server.client.delete(f"/v1/extractions/{job}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_in_use")
    server.finish(job)
    server.client.get(f"/v1/files/file-errors-{job}/content").raise_for_status()
    assert len(files_of(server, job)) == 3  # bad lines, documents, output
    assert server.client.delete(f"/v1/generations/{job}").status_code == 404
    assert server.client.delete(f"/v1/extractions/{job}").json()["deleted"] is True
    assert files_of(server, job) == []
    for path in ("", "/events", "/errors", "/documents", "/manifest"):
        assert server.client.get(f"/v1/extractions/{job}{path}").status_code == 404
    assert server.client.get("/v1/extractions").json()["data"] == []
    assert len(Cask.open(server.service.folders.cask("cask"))) == 40
    anew = server.client.post("/v1/extractions", json=body, headers=key).json()["id"]
    assert anew != job  # the key names what is there
    shards = list(server.service.folders.cask("cask").rglob("*.arrow"))
    done = server.finish(anew)["documents"]
    assert done["present"] + done["captured"] == 40  # shards that are no job's any more are adopted
    assert list(server.service.folders.cask("cask").rglob("*.arrow")) == shards


def test_what_is_old_is_swept_and_what_is_needed_stays(start):
    server = start(retain_jobs_days=1.0, retain_corpora_days=2.0, upload_expiry_seconds=1000.0)
    old, new, failed = (server.upload([{"text": f"corpus {name}"}]) for name in ("old", "new", ""))
    done = server.submit(old)["id"]
    server.finish(done)
    upload = server.client.post("/v1/uploads", json={"bytes": 3, "filename": "a", "purpose": "batch"}).json()["id"]
    server.client.post(f"/v1/uploads/{upload}/parts", content=b"abc", headers={"Content-Type": "text/plain"})
    sweep(server.service)
    assert len(server.client.get("/v1/corpora").json()["data"]) == 3

    def age(seconds, table, rows):
        with server.service.database.write() as session:
            session.connection().exec_driver_sql(
                f"UPDATE {table} SET created_at = created_at - {seconds} WHERE id IN ({', '.join(map(repr, rows))})"
            )

    day = 86_400
    age(3 * day, "corpora", [old["id"], failed["id"]])
    sweep(server.service)
    assert {entry["id"] for entry in server.client.get("/v1/corpora").json()["data"]} == {old["id"], new["id"]}
    with server.service.database.write() as session:
        execute = session.connection().exec_driver_sql
        execute(f"UPDATE jobs SET timestamps = json_object('completed', {time.time() - 3 * day}) WHERE id = '{done}'")
        execute(f"UPDATE uploads SET expires_at = {time.time() - 1}")
    sweep(server.service)
    assert server.client.get(f"/v1/extractions/{done}").status_code == 404
    assert [entry["id"] for entry in server.client.get("/v1/corpora").json()["data"]] == [new["id"]]
    assert server.client.get(f"/v1/uploads/{upload}").json()["status"] == "expired"
    assert files_of(server, "part-") == []
    assert [path.stem for path in server.service.folders.corpora.glob("*.jsonl")] == [new["sha256"]]


@pytest.mark.parametrize("step", ["row", "file"])
def test_a_crash_in_the_middle_of_a_deletion_leaves_nothing(serve, monkeypatch, step):
    """The row goes first; what is left of the files is swept by the next start."""
    server = serve()
    corpus = server.upload([{"text": "x y"}, {"text": ""}])
    job = server.submit(corpus)["id"]
    server.finish(job)
    server.service.removal.delete(job, "extraction")
    if step == "file":
        server.service.corpora.delete(corpus["id"])
    server.stop()
    assert files_of(server, job)
    again = serve()
    assert files_of(again, job) == []
    assert bool(files_of(again, corpus["sha256"])) == (step == "row")


def test_counters_do_not_fall_when_jobs_are_deleted(start):
    server = start()
    documents = server.upload([{"text": f"line {number}"} for number in range(4)])
    extraction = server.submit(documents)["id"]
    assert server.finish(extraction)["status"] == "completed"
    asked = server.upload([{"question": "q"}])
    body = {"corpus_id": asked["id"], "steps": STEPS, "emit": EMIT}
    generation = server.client.post("/v1/generations", json=body).raise_for_status().json()["id"]
    wait_for(lambda: server.client.get(f"/v1/generations/{generation}").json()["status"] == "completed")

    def counted():
        return server.service.extractions.totals(), server.service.generations.generated_tokens()

    before = counted()
    assert (before[0].captured_documents, before[0].bytes_written > 0, before[1] > 0) == (4, True, True)
    for path in (f"/v1/extractions/{extraction}", f"/v1/generations/{generation}"):
        assert server.client.delete(path).json()["deleted"] is True
    assert counted() == before
    again = server.submit(documents, cask="other")["id"]
    assert server.finish(again)["status"] == "completed"
    assert server.client.delete(f"/v1/extractions/{again}").json()["deleted"] is True
    assert counted()[0].captured_documents == 8
