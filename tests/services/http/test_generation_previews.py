"""Dry runs of generations, and the checks that they share with a beginning."""

import json

import pytest

from logitcask_services.http import generation_work
from tests.support.services.generation_calls import LINES, PLAN, create, preview
from tests.support.services.service_harness import jsonl
from tests.support.services.simple_steps import STEPS

JSONL = {"Content-Type": "application/jsonl"}
SSE = {"Accept": "text/event-stream"}


def test_a_template_whose_field_no_line_has_is_refused(start, monkeypatch):
    server = start()
    answer = create(server, server.upload([{"text": "1"}, {"other": "2"}]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_recipe")
    assert "needs the field 'question', which neither the corpus has nor a step before makes" in answer.json()["detail"]
    assert "there are other, text" in answer.json()["detail"]
    late = server.upload([{"text": "1"}, {"text": "2"}, {"question": "3"}])
    assert create(server, late).status_code == 202
    monkeypatch.setattr(generation_work, "READ_LINES", 100)
    for lines, status in ((100, 422), (101, 202)):
        long = server.upload([{"text": str(number)} for number in range(lines)])
        assert create(server, long).status_code == status


def test_a_dry_run_refuses_what_the_beginning_refuses(start):
    """Of a part of a corpus it says what is missing, and of the whole it refuses in the same words."""
    server, lines = start(), jsonl([{"text": "1"}])
    refused = preview(server, lines)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_recipe")
    assert refused.json()["detail"] == create(server, server.upload(lines)).json()["detail"]
    part = preview(server, lines, whole=False)
    assert part.status_code == 200
    assert part.json()["note"].startswith(refused.json()["detail"])
    assert preview(server, jsonl(LINES), whole=False).json()["note"] is None
    extraction = {"cask": "kept", "capture": {"mode": "threshold", "tau": 2}}
    assert preview(server, lines, {**PLAN, "extraction": extraction}).status_code == 422


@pytest.mark.parametrize(
    ("recipe", "parameters", "line", "told"),
    [
        ("cot", {"check": "answr"}, {"question": "?", "answer": 1}, "needs the field 'answr'"),
        ("seqkd", {"field": "question"}, {"prompt": "?"}, "needs the field 'question'"),
        ("icl", {"choose": "bm25", "query": "qestion"}, {"question": "?", "answer": "!"}, "needs the field 'qestion'"),
        ("icl", {"candidates": 4, "of": "anser"}, {"question": "?", "answer": "!"}, "needs the field 'anser'"),
        ("rationalize", {}, {"question": "?"}, "needs the field 'answer'"),
        ("self-instruct", {"target": 9}, {"text": "?"}, "needs the field 'instruction'"),
    ],
)
def test_every_parameter_that_names_a_field_is_checked(start, recipe, parameters, line, told):
    server = start()
    plan = {"recipe": recipe, "parameters": parameters}
    lines = [line] * 5
    begun = server.client.post("/v1/generations", json={"corpus_id": server.upload(lines)["id"], **plan})
    dry = preview(server, jsonl(lines), plan)
    assert (begun.status_code, dry.status_code) == (422, 422)
    assert begun.json()["detail"] == dry.json()["detail"]
    assert told in dry.json()["detail"]
    assert all(name in dry.json()["detail"].partition("there are")[2] for name in line)


def test_demonstrations_without_the_field_that_they_are_chosen_by_are_refused(start):
    server = start()
    examples = server.upload([{"text": str(number)} for number in range(9)])
    parameters = {"choose": "bm25", "demonstrations": examples["id"]}
    body = {"corpus_id": server.upload(LINES)["id"], "recipe": "icl", "parameters": parameters}
    answer = server.client.post("/v1/generations", json=body)
    assert answer.status_code == 422
    assert "their field 'question' (`query`), which none of them has; there are text" in answer.json()["detail"]


def test_a_preview_shows_prompts_and_what_they_may_cost(start):
    server = start()
    body = jsonl([*LINES, {"other": 1}]) + b"nonsense\n"
    seen = preview(server, body, prompts=2).raise_for_status().json()
    assert (seen["lines"], seen["bad_lines"], seen["requests"], seen["refused"]) == (22, 1, 40, 2)
    assert [prompt["line"] for prompt in seen["shown"]] == [1, 2]
    assert [(loss["code"], loss["count"]) for loss in seen["bad"]] == [("not_json", 1)]
    assert [(loss["code"], loss["count"]) for loss in seen["refusals"]] == [("unknown_field", 2)]
    assert "line 22" in seen["bad"][0]["message"]
    assert "`question`" in seen["refusals"][0]["message"]
    assert "Q: what is 0?\nA:" in seen["shown"][0]["text"]
    lengths = [len(f"Q: {line['question']}\nA:") + 1 for line in LINES]  # and the tokenizer's own
    assert seen["shown"][0]["tokens"] == lengths[0]
    assert seen["prompt_tokens"] == 2 * sum(lengths)
    assert seen["generated_tokens_at_most"] == 40 * 30
    refused = preview(server, jsonl([{"other": 1}]), prompts=1, whole=False).json()["shown"]
    assert (refused[0]["error"]["code"], refused[0]["text"]) == ("unknown_field", "")
    assert server.client.get("/v1/corpora").json()["data"] == []
    assert list(server.service.folders.generations.iterdir()) == []


@pytest.mark.parametrize(
    ("plan", "content", "status", "code", "param"),
    [
        ("{", b"{}", 422, "invalid_request", "plan"),
        ('{"seed": -1}', b"{}", 422, "invalid_request", "plan"),
        ("{}", b"{}", 422, "invalid_recipe", "recipe"),
        (json.dumps(PLAN), b"", 400, "empty_body", None),
        (json.dumps(PLAN), b"PK\x03\x04", 415, "not_json_lines", None),
    ],
)
def test_previews_that_cannot_be(start, plan, content, status, code, param):
    answer = start().client.post("/v1/generations/preview", params={"plan": plan}, content=content, headers=JSONL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["param"] == param


def test_more_demonstrations_than_there_are_is_told_at_once(start, templates):
    (templates / "shots.md").write_text(
        "---\nkind: text\ndescription: shots\nfields: [question]\n---\n"
        "{% for demonstration in demonstrations %}{{ demonstration.question }}\n{% endfor %}{{ question }}"
    )
    server = start()
    corpus, shown = server.upload(LINES), server.upload(LINES[:3])
    for k, status in ((3, 202), (4, 422)):
        step = {**STEPS[0], "template": "shots", "demonstrations": {"corpus_id": shown["id"], "k": k}}
        answer = create(server, corpus, steps=[step])
        assert answer.status_code == status, answer.text
    assert "invalid_recipe" in answer.text
    assert "`k` is 4, and the corpus of demonstrations" in answer.json()["detail"]


def test_too_large_a_corpus_of_demonstrations_is_told_before_anything_runs(start):
    server = start(max_demonstration_bytes=40)
    corpus = server.upload(LINES)
    for parameters in ({"demonstrations": corpus["id"], "k": 2}, {"k": 2}):
        body = {"corpus_id": corpus["id"], "recipe": "icl", "parameters": parameters}
        answer = server.client.post("/v1/generations", json=body)
        assert answer.status_code == 422
        assert "and at most 40 are taken into memory" in answer.json()["error"]["message"]
