"""Extractions as they run: poison, garbage, deaths, other teachers, cancelling; on a real server."""

from pathlib import Path

import pytest
from sqlalchemy.exc import InvalidRequestError

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.errors import ModelError
from logitcask_schemas.record.beyond_tokens import beyond_tokens
from logitcask_services.jobs.database.chunks import ChunkStore
from tests.support.services.fake_teacher import GARBAGE, KILLER, POISON, VOCAB_SIZE, fake_teacher, identity
from tests.support.services.service_harness import cask_of, jsonl, wait_for


def logged(path: Path) -> list[str]:
    return [line.split()[2] for line in path.read_text().splitlines()] if path.exists() else []


def test_poison_and_garbage_do_not_sink_the_job(serve, documents, tmp_path):
    documents[3]["input_ids"][1:1] = [POISON]
    documents[20]["input_ids"][1:1] = [GARBAGE]
    server = serve()
    done = server.finish(server.submit(server.upload(documents))["id"])
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": 40, "completed": 38, "failed": 2, "skipped": 0}
    assert done["usage"]["tokens_done"] == done["usage"]["tokens_total"]
    errors = server.errors(done["id"])
    assert [(e["line"], e["custom_id"], e["stage"], e["code"]) for e in errors] == [
        (4, "d3", "capture", "capture_failed"),
        (21, "d20", "capture", "invalid_records"),
    ]
    assert "poisoned, as scripted" in errors[0]["message"]
    assert "NaN" in errors[1]["message"]
    assert len(cask_of(tmp_path)) == 38


def test_on_error_fail_stops_at_a_document(serve, documents, tmp_path):
    documents[30]["input_ids"][1:1] = [POISON]
    server = serve()
    done = server.finish(server.submit(server.upload(documents), on_error="fail")["id"])
    assert done["status"] == "failed"
    assert done["error"]["code"] == "document_failed"
    assert "line 31: the teacher could not capture the document" in done["error"]["message"]
    assert [error["line"] for error in server.errors(done["id"])] == [31]
    assert 0 < len(cask_of(tmp_path)) < 40  # what was published before stays


def test_on_error_fail_stops_at_a_bad_line(serve, documents):
    server = serve()
    body = jsonl(documents[:3]) + b"nonsense\n" + jsonl(documents[3:5]) + b'{"text": ""}\n'
    done = server.finish(server.submit(server.upload(body), on_error="fail")["id"])
    assert done["status"] == "failed"
    assert done["error"]["code"] == "bad_lines"
    assert "2 of 7 lines are bad" in done["error"]["message"]
    assert "the first: line 4: the line is not JSON" in done["error"]["message"]
    assert [error["line"] for error in server.errors(done["id"])] == [4, 7]
    counts = {"total": 7, "bad": 2, "skipped": 0, "truncated": 0, "split": 0}
    assert done["lines"] == counts | {"notes": {}, "first_lines": {"not_json": [4], "empty": [7]}}


def test_a_corpus_of_nothing_but_bad_lines_fails(serve):
    server = serve()
    done = server.finish(server.submit(server.upload(b"a\nb\n"))["id"])
    assert (done["status"], done["request_counts"]["failed"]) == ("failed", 2)
    assert done["error"]["code"] == "nothing_captured"
    assert "none of the 2 lines gives a document (2 bad" in done["error"]["message"]
    assert "the first bad one: line 1: the line is not JSON" in done["error"]["message"]


def test_a_corpus_of_which_the_teacher_captures_nothing_fails(serve):
    server = serve()
    lines = [{"input_ids": [number, POISON, 3]} for number in range(3)]
    done = server.finish(server.submit(server.upload(lines))["id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "nothing_captured")
    again = server.finish(server.submit(server.upload([{"input_ids": [1, 2, 3]}]))["id"])
    present = server.finish(server.submit(server.upload([{"input_ids": [1, 2, 3], "custom_id": "x"}]))["id"])
    assert (again["status"], present["status"]) == ("completed", "completed"), "in the cask already is no failure"


def test_mass_on_ids_that_are_no_tokens_is_told_at_capture(serve, documents, tmp_path):
    tokens = VOCAB_SIZE - 50
    for line in documents:
        line["input_ids"] = [token % tokens for token in line["input_ids"]]
    server = serve(fake={"identity": identity(tokenizer_size=tokens)})
    done = server.finish(server.submit(server.upload(documents))["id"])
    cask = cask_of(tmp_path)
    seen = beyond_tokens((cask.read(number).records for number in range(len(cask))), tokens)
    assert seen.blocks > 0
    assert done["lines"]["notes"] == {"ids_beyond_tokenizer": seen.blocks}
    page = server.client.get(f"/v1/extractions/{done['id']}/events?limit=1000").json()["data"]
    events = [event for event in page if event["type"] == "ids_beyond_tokenizer"]
    assert [event["level"] for event in events] == ["warning"], "told once, with its first chunk"
    [event] = events
    assert f"up to {event['data']['largest_id']:,}" in event["message"]
    assert 0 < event["data"]["mass"] < 1
    assert tokens <= event["data"]["largest_id"] < VOCAB_SIZE


def test_a_tokenizer_as_wide_as_the_logits_is_nothing_to_tell_of(serve, documents):
    server = serve(fake={"identity": identity(tokenizer_size=VOCAB_SIZE)})
    assert server.finish(server.submit(server.upload(documents))["id"])["lines"]["notes"] == {}


@pytest.mark.parametrize(("policy", "documents_made", "skipped"), [("truncate", 2, 0), ("split", 4, 0), ("skip", 1, 1)])
def test_overflow_policies(serve, policy, documents_made, skipped, tmp_path):
    server = serve(fake={"max_model_len": 20})
    lines = [{"input_ids": list(range(50))}, {"input_ids": list(range(100, 110))}]
    done = server.finish(server.submit(server.upload(lines), overflow=policy)["id"])
    assert done["status"] == "completed"
    assert len(cask_of(tmp_path)) == documents_made
    assert done["request_counts"]["skipped"] == skipped
    assert [error["code"] for error in server.errors(done["id"])] == ["too_long"] * skipped


def test_documents_in_the_cask_are_not_captured_again(serve, documents, tmp_path):
    log = tmp_path / "log"
    server = serve(fake={"log": log})
    repeated = [*documents[:20], documents[0], *documents[5:9]]
    first = server.finish(server.submit(server.upload(repeated))["id"])
    assert first["documents"] == {"total": 25, "captured": 20, "present": 5, "failed": 0}
    second = server.finish(server.submit(server.upload(documents))["id"])
    assert second["documents"] == {"total": 40, "captured": 20, "present": 20, "failed": 0}
    assert len(logged(log)) == len(set(logged(log))) == 40
    other = server.finish(server.submit(server.upload(documents), cask="another")["id"])
    assert other["documents"]["captured"] == 40


def test_a_teacher_that_dies_is_loaded_again(serve, documents, tmp_path):
    log = tmp_path / "log"
    lives = iter([12, 25, None])
    server = serve(load=lambda: fake_teacher(fatal_documents=next(lives), log=log))
    done = server.finish(server.submit(server.upload(documents))["id"])
    assert done["status"] == "completed"
    assert done["documents"]["captured"] == 40
    assert len(cask_of(tmp_path)) == 40
    metrics = server.client.get("/metrics").text
    assert "logitcask_teacher_deaths_total 2.0" in metrics
    events = server.client.get(f"/v1/extractions/{done['id']}/events?limit=1000").json()["data"]
    deaths = [e["message"] for e in events if e["type"] == "status" and "teacher died" in e["message"]]
    assert len(deaths) == 2
    assert "out of memory, as scripted" in deaths[0]
    # Only documents that were in flight at a death were given to the teacher again.
    assert len(logged(log)) <= 40 + 2 * 60


def test_a_document_that_kills_the_teacher_is_isolated(serve, documents, tmp_path):
    documents[17]["input_ids"][1:1] = [KILLER]
    server = serve()
    done = server.finish(server.submit(server.upload(documents))["id"])
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": 40, "completed": 39, "failed": 1, "skipped": 0}
    (error,) = server.errors(done["id"])
    assert (error["line"], error["custom_id"], error["code"]) == (18, "d17", "teacher_died")
    assert "died on this document alone" in error["message"]
    assert len(cask_of(tmp_path)) == 39


def test_a_teacher_that_dies_now_and_then_blames_no_document(serve, documents, tmp_path):
    """It dies after every 15 documents; chunks are small enough for progress between the deaths."""
    server = serve(fake={"fatal_documents": 15, "in_flight": 1}, engine_restarts=3)
    done = server.finish(server.submit(server.upload(documents))["id"])
    assert done["status"] == "completed"
    assert len(cask_of(tmp_path)) == 40
    assert server.errors(done["id"]) == []


def test_a_teacher_that_keeps_dying_is_given_up(serve, documents):
    server = serve(fake={"fatal_documents": 0}, engine_restarts=2)
    started = server.submit(server.upload(documents))
    wait_for(lambda: server.service.crash is not None)
    assert "given up after 3 failure(s)" in server.service.crash
    assert server.service.exit_code == 4
    server.stop()
    # No zombie: the process ends, and the extraction waits for one with a sound teacher.
    sound = serve()
    done = sound.finish(started["id"])
    assert (done["status"], done["documents"]["captured"]) == ("completed", 40)


def test_a_teacher_that_never_loads_ends_the_service(serve):
    def load():
        raise ModelError("this is no model")

    server = serve(load=load)
    wait_for(lambda: server.service.crash is not None)
    assert server.service.crash == "this is no model"


def test_loading_is_tried_again(serve, documents):
    tries = iter([RuntimeError("no memory"), RuntimeError("no memory"), None])

    def load():
        if error := next(tries):
            raise error
        return fake_teacher()

    server = serve(load=load)
    assert server.finish(server.submit(server.upload(documents))["id"])["status"] == "completed"


def test_cancel_keeps_what_is_published(serve, documents, tmp_path):
    server = serve(fake={"seconds_per_document": 0.2, "in_flight": 2})
    started = server.submit(server.upload(documents))
    wait_for(lambda: server.get(started["id"])["documents"]["captured"] > 0)
    answer = server.client.post(f"/v1/extractions/{started['id']}/cancel")
    assert answer.status_code == 202
    assert answer.json()["status"] == "cancelling"
    done = server.finish(started["id"])
    assert done["status"] == "cancelled"
    assert 0 < done["documents"]["captured"] < 40
    assert len(cask_of(tmp_path)) == done["documents"]["captured"]
    manifest = server.client.get(f"/v1/extractions/{done['id']}/manifest").json()
    assert manifest["partial"] is True
    assert sum(shard["documents"] for shard in manifest["shards"]) == done["documents"]["captured"]
    again = server.client.post(f"/v1/extractions/{started['id']}/cancel")
    assert again.status_code == 409
    assert again.json()["current_status"] == "cancelled"
    assert not list((tmp_path / "state" / "extractions").iterdir())


def test_cancel_while_queued_and_while_validating(serve, documents):
    server = serve(fake={"seconds_per_document": 0.5, "in_flight": 1})
    corpus = server.upload(documents)
    running = server.submit(corpus)
    wait_for(lambda: server.get(running["id"])["status"] == "in_progress")  # else the other might overtake it
    queued = server.submit(corpus, cask="other")
    wait_for(lambda: server.get(queued["id"])["status"] == "queued")
    assert server.client.post(f"/v1/extractions/{queued['id']}/cancel").json()["status"] == "cancelled"
    third = server.submit(corpus, cask="third")
    server.client.post(f"/v1/extractions/{third['id']}/cancel")
    assert server.finish(third["id"])["status"] == "cancelled"
    server.client.post(f"/v1/extractions/{running['id']}/cancel")
    assert server.finish(running["id"])["status"] == "cancelled"


def test_a_cask_of_another_teacher_is_refused(serve, documents, tmp_path):
    server = serve()
    corpus = server.upload(documents[:3])
    server.finish(server.submit(corpus)["id"])
    answer = server.client.post(
        "/v1/extractions", json={"corpus_id": corpus["id"], "cask": "cask", "capture": {"seed": 5}}
    )
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "cask_mismatch"
    assert "seed: 0 here, 5 offered" in answer.json()["detail"]
    assert str(tmp_path) not in answer.text


def test_a_cask_that_became_another_teachers_fails_the_job(serve, documents, tmp_path):
    server = serve(fake={"seconds_per_document": 0.5, "in_flight": 1})
    corpus = server.upload(documents)
    running = server.submit(corpus, cask="first")
    wait_for(lambda: server.get(running["id"])["status"] == "in_progress")
    victim = server.submit(corpus, cask="later")
    foreign = identity(weights_digest="1" * 64)
    wait_for(lambda: (tmp_path / "casks" / "first" / "cask.json").exists())
    spec = cask_of(tmp_path, "first").manifest.capture
    CaskWriter.create(tmp_path / "casks" / "later", teacher=foreign, capture=spec)
    server.client.post(f"/v1/extractions/{running['id']}/cancel")
    done = server.finish(victim["id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "cask_mismatch")
    assert "weights_digest" in done["error"]["message"]


def test_jobs_of_another_teacher_wait_for_it(serve, documents, tmp_path):
    first = serve(fake={"seconds_per_document": 0.5, "in_flight": 1})
    started = first.submit(first.upload(documents))
    wait_for(lambda: first.get(started["id"])["documents"]["captured"] > 0)
    first.stop()
    foreign = {"model": "someone-else", "dtype": "bfloat16", "tokenizer_fingerprint": "e" * 64}
    other = serve(fake={"identity": identity(**foreign)})
    wait_for(lambda: other.get(started["id"])["waiting"])
    job = other.get(started["id"])
    assert (job["status"], job["waiting"]["code"]) == ("queued", "other_teacher")
    assert "different: tokenizer_fingerprint" in job["waiting"]["message"]
    mine = other.finish(other.submit(other.upload(documents), cask="mine")["id"])
    assert mine["status"] == "completed"
    other.stop()
    back = serve()
    assert back.finish(started["id"])["status"] == "completed"
    assert len(cask_of(tmp_path)) == 40


def test_a_queue_outlives_another_version_of_the_engine_and_another_name_of_the_folder(serve, documents, tmp_path):
    """Tokens are the same, so the work goes on; whether records may be mixed is the cask's question and a person's."""
    first = serve(fake={"seconds_per_document": 0.5, "in_flight": 1})
    corpus = first.upload(documents)
    started = first.submit(corpus)
    wait_for(lambda: first.get(started["id"])["status"] == "in_progress")
    waiting = first.submit(corpus, cask="fresh")
    wait_for(lambda: first.get(waiting["id"])["status"] == "queued")
    wait_for(lambda: first.get(started["id"])["documents"]["captured"] > 0)
    first.stop()
    upgraded = {"engine_version": "2", "model": "renamed"}
    careful = serve(fake={"identity": identity(**upgraded)})
    assert careful.finish(waiting["id"])["status"] == "completed"
    failed = careful.finish(started["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "cask_mismatch")
    assert "--accept-teacher engine_version" in failed["error"]["message"]
    careful.stop()
    knowing = serve(fake={"identity": identity(**upgraded)}, accept_teacher=("engine_version",))
    knowing.client.post(f"/v1/extractions/{started['id']}/resume").raise_for_status()
    assert knowing.finish(started["id"])["status"] == "completed"
    assert len(cask_of(tmp_path)) == 40


def test_a_shard_published_but_not_committed_is_adopted(serve, documents, tmp_path, monkeypatch):
    """What a crash between publication and commit leaves behind: the next run counts it, and captures none of it."""
    log = tmp_path / "log"
    commit = ChunkStore.commit_chunk

    def crash(self, extraction_id, chunk, outcome):
        if chunk.number == 2:
            raise InvalidRequestError("the process died here")  # one of the database, which ends the service
        commit(self, extraction_id, chunk, outcome)

    monkeypatch.setattr(ChunkStore, "commit_chunk", crash)
    first = serve(fake={"log": log, "in_flight": 1})
    started = first.submit(first.upload(documents))
    wait_for(lambda: first.service.crash is not None)
    assert first.get(started["id"])["status"] == "in_progress"
    first.stop()
    published = {identity.tobytes().hex() for identity in cask_of(tmp_path).document_ids()}
    monkeypatch.undo()
    log.unlink()
    second = serve(fake={"log": log})
    done = second.finish(started["id"])
    assert done["status"] == "completed"
    assert done["documents"] == {"total": 40, "captured": 40, "present": 0, "failed": 0}
    assert not published & set(logged(log))
    cask = cask_of(tmp_path)
    assert len(cask) == 40
    assert (done["usage"]["tokens_captured"], done["usage"]["bytes_written"]) == (cask.num_tokens, cask.num_bytes)
    shards = second.client.get(f"/v1/extractions/{done['id']}/manifest").json()["shards"]
    assert sorted(shard["name"] for shard in shards) == [entry.name for entry in cask.entries]
