"""Extractions under contexts, and of answers alone: what is asked for is in the cask, once, whatever happens."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Context, Extent, document_id
from tests.support.services.fake_teacher import FakeEngine, fake_teacher, identity, records_of

ANSWER = {"role": "assistant", "content": "yes"}


def lines():
    """Thirty lines: answers of conversations, ids under one of two contexts, ids with labels."""
    result: list[dict[str, Any]] = []
    for number in range(10):
        result.append({"messages": [{"role": "user", "content": f"question {number}"}, ANSWER]})
        ids = [number + at for at in range(3 + number)]
        result.append({"context_ids": [700, number % 2], "input_ids": ids, "labels": ids})
        result.append({"input_ids": [500 + number, 1, 2, 3, 4], "labels": [-100, -100, 2, -100, 4]})
    return result


def expected(recorded_of):
    """Documents that the cask should hold, by id, from lines and a rule for what is recorded of them."""
    documents = {}
    for line in lines():
        ids = np.array(line.get("input_ids") or list(f"<user>{line['messages'][0]['content']}<assistant>yes".encode()))
        context = Context.of(np.array(line["context_ids"], np.uint32)) if "context_ids" in line else None
        mask = np.zeros(len(ids) - 1, dtype=np.bool_)
        mask[recorded_of(line, ids)] = True
        extent = Extent.of_mask(mask, context)
        document = records_of(ids.astype(np.uint32), CaptureSpec(), extent)
        documents[document.id] = document
    return documents


def answers(line, ids):
    if "messages" in line:
        return range(len(ids) - 4, len(ids) - 1)
    return [at - 1 for at, label in enumerate(line["labels"]) if label != -100 and at > 0]


RULES = {"all": lambda line, ids: range(len(ids) - 1), "assistant": answers, "completion": answers}


def stored(path):
    cask = Cask.open(path)
    assert [problem for report in verify_shards(cask) for problem in report.problems] == []
    return {document.id: document for document in map(cask.read, range(len(cask)))}


def require_equal(got, wanted):
    assert got.keys() == wanted.keys()
    for identity_, document in wanted.items():
        mine = got[identity_]
        assert np.array_equal(mine.token_ids_L, document.token_ids_L)
        for name in ("head_counts_P", "head_ids_H", "head_logprobs_H", "tail_counts_P", "tail_ids_N", "entropy_P"):
            assert np.array_equal(getattr(mine.records, name), getattr(document.records, name))


@pytest.mark.parametrize("loss_on", RULES)
def test_the_cask_holds_what_was_asked_for(serve, tmp_path, loss_on):
    server = serve()
    corpus = server.upload(lines())
    done = server.finish(server.submit(corpus, loss_on=loss_on)["id"])
    assert done["status"] == "completed", done["error"]
    assert done["loss_on"] == loss_on
    assert done["request_counts"]["completed"] == 30
    require_equal(stored(tmp_path / "casks" / "cask"), expected(RULES[loss_on]))
    assert Cask.open(tmp_path / "casks" / "cask").manifest.version == 2
    again = server.finish(server.submit(corpus, loss_on=loss_on)["id"])
    assert again["documents"]["present"] == 30, "nothing is captured twice"


def test_a_context_makes_another_document_and_so_does_what_is_recorded(serve, tmp_path):
    ids = {"input_ids": [1, 2, 3], "labels": [-100, 2, -100]}
    server = serve()
    corpus = server.upload([ids, {**ids, "context_ids": [7]}, {**ids, "context_ids": [8]}, ids])
    for loss_on, captured, present in (("assistant", 3, 1), ("all", 3, 1)):
        done = server.finish(server.submit(corpus, loss_on=loss_on)["id"])
        assert (done["documents"]["captured"], done["documents"]["present"]) == (captured, present)
    assert len(stored(tmp_path / "casks" / "cask")) == 6


def test_what_needs_nothing_new_is_written_as_ever(serve, tmp_path):
    server = serve()
    done = server.finish(server.submit(server.upload([{"input_ids": [1, 2, 3]}, {"text": "ab"}]))["id"])
    assert done["status"] == "completed"
    cask = Cask.open(tmp_path / "casks" / "cask")
    assert cask.manifest.version == 1
    assert document_id(np.array([1, 2, 3], np.uint32)) in {document.tobytes() for document in cask.document_ids()}


def test_a_cask_of_version_1_is_refused_before_anything_is_captured(serve, tmp_path):
    CaskWriter.create(tmp_path / "casks" / "cask", teacher=identity(), capture=CaptureSpec()).close()
    server = serve(fake={"log": tmp_path / "log"})
    corpus = server.upload(lines())
    plan = {"cask": "cask", "loss_on": "assistant"}
    for path, request in (("", {**plan, "corpus_id": corpus["id"]}), ("/check", plan)):
        answer = server.client.post(f"/v1/extractions{path}", json=request)
        assert answer.status_code == 409, answer.text
        assert answer.json()["error"]["code"] == "cask_version"
        assert "of version 1" in answer.json()["detail"]
    done = server.finish(server.submit(corpus)["id"])  # only its lines tell that there are contexts
    assert (done["status"], done["error"]["code"]) == ("failed", "cask_version")
    assert "made without a context; this extraction asks for others" in done["error"]["message"]
    assert not (tmp_path / "log").exists()


def test_an_engine_that_ignores_what_was_asked_is_found_out(serve, tmp_path):
    """The control: records of all positions, made without the context, are no answer."""

    class Careless(FakeEngine):
        def _finish(self, task, spec):
            return super()._finish(replace(task, recorded_R2=None, context=None), spec)

    teacher = fake_teacher()
    server = serve(load=lambda: type(teacher)(engine=Careless(), tokenizer=teacher.tokenizer))
    done = server.finish(server.submit(server.upload(lines()), loss_on="assistant")["id"])
    assert done["documents"]["failed"] == 30
    assert {error["code"] for error in server.errors(done["id"])} == {"wrong_positions"}
