"""The contract: what the description says is what is answered, and no request makes an answer of 500."""

import json
import re
import threading
from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcask_schemas.api.generation import GenerationRequest
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.http import description as description_route
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import fake_teacher

PROBLEM = "application/problem+json"


@pytest.fixture
def server(serve):
    return serve()


def test_the_description_is_in_order(server):
    description = server.client.get("/openapi.json").json()
    operations = [
        (path, method, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(names) == len(set(names))
    for path, _, operation in operations:
        assert operation["description"], path
        assert operation["tags"], path
        assert ("security" in operation) == path.startswith("/v1/"), path
        assert ("401" in operation["responses"]) == path.startswith("/v1/"), path
        assert {"400", "403", "431", "503"} <= operation["responses"].keys(), path
        for status, documented in operation["responses"].items():
            if status >= "400" and (path, status) != ("/health/ready", "503"):
                schema = {"schema": {"$ref": "#/components/schemas/ProblemBody"}}
                assert documented["content"] == {PROBLEM: schema}, (path, status)
    for path in ("/v1/corpora", "/v1/extractions", "/v1/generations", "/v1/batches", "/v1/files"):
        assert {"404", "422"} <= description["paths"][path]["get"]["responses"].keys()
    schemas = description["components"]["schemas"]
    assert schemas["ExtractionRequest"]["properties"]["max_length"]["anyOf"][0]["maximum"] == 2**31 - 1
    assert "ProblemBody" in schemas
    assert "HTTPValidationError" not in schemas
    generations = {
        "/v1/generations": {"get", "post"},
        "/v1/generations/check": {"post"},
        "/v1/generations/preview": {"post"},
        "/v1/generations/{generation_id}": {"get", "patch", "delete"},
        "/v1/generations/{generation_id}/pause": {"post"},
        "/v1/generations/{generation_id}/move": {"post"},
        "/v1/generations/{generation_id}/cancel": {"post"},
        "/v1/generations/{generation_id}/resume": {"post"},
        "/v1/generations/{generation_id}/events": {"get"},
        "/v1/generations/{generation_id}/errors": {"get"},
        "/v1/generations/{generation_id}/rows": {"get"},
        "/v1/recipes": {"get"},
    }
    for path, methods in generations.items():
        assert description["paths"][path].keys() == methods
    kinds = schemas["GenerationPlan"]["properties"]["steps"]["anyOf"][0]["items"]["discriminator"]["mapping"]
    assert {"generate", "score", "verify", "parse", "check", "vote", "keep", "dedupe", "grow"} == kinds.keys()
    text = server.client.get("/openapi.json").text
    for reference in set(_references(description)):
        assert reference.removeprefix("#/components/schemas/") in description["components"]["schemas"], text[:200]


def _references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_unknown_routes_and_methods_are_problems_too(server):
    for method, path, status in (("GET", "/nowhere", 404), ("DELETE", "/v1/corpora", 405), ("PUT", "/health", 405)):
        answer = server.client.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == PROBLEM
        assert answer.json()["status"] == status


def test_allow_lists_every_method_of_a_path(server):
    for path, allowed in (
        ("/v1/corpora", "GET, HEAD, POST"),
        ("/v1/corpora/x", "DELETE, GET, HEAD"),
        ("/v1/extractions", "GET, HEAD, POST"),
        ("/v1/extractions/x/cancel", "POST"),
        ("/v1/generations", "GET, HEAD, POST"),
        ("/v1/generations/x/resume", "POST"),
        ("/health", "GET, HEAD"),
    ):
        assert server.client.put(path).headers["allow"] == allowed


def test_head_is_get_without_the_body(server):
    for path in ("/health", "/health/ready", "/version", "/v1/corpora", "/v1/models", "/openapi.json", "/nowhere"):
        full, head = server.client.get(path), server.client.head(path)
        assert (head.status_code, head.content) == (full.status_code, b"")
        assert head.headers["content-type"] == full.headers["content-type"]
    assert server.client.head("/v1/extractions/x/cancel").status_code == 405
    job = server.submit(server.upload([{"text": "hello"}]))
    stream = server.client.head(f"/v1/extractions/{job['id']}/events", headers={"Accept": "text/event-stream"})
    assert stream.status_code in (200, 204)  # and does not last as long as the extraction
    assert 'method="HEAD",route="/health",status="200"' in server.client.get("/metrics").text


def test_the_description_is_rendered_once(server, monkeypatch):
    """It needs no key: whoever asks for it again and again gets bytes from memory, or none."""
    first = server.client.get("/openapi.json")

    def render_again(*_args):
        raise AssertionError("rendered for a request")

    monkeypatch.setattr(description_route, "JSONResponse", render_again)
    again = server.client.get("/openapi.json")
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["cache-control"] == "public, max-age=300"
    known = server.client.get("/openapi.json", headers={"If-None-Match": f'W/{first.headers["etag"]}, "x"'})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", first.headers["etag"])
    assert server.client.get("/openapi.json", headers={"If-None-Match": '"x"'}).content == first.content


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"corpus_id":"x",}', "Illegal trailing comma|Expecting property name"),
        (b'{"corpus_id":\n  x}', "Expecting value at line 2, column 3"),
        (b"{", "Expecting property name .* at line 1, column 2"),
        (b'{"corpus_id": "x"} {}', "Extra data at line 1, column 20"),
    ],
)
def test_a_body_that_is_no_json_says_where(server, body, words):
    answer = server.client.post("/v1/extractions", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_body")
    assert answer.json()["error"]["param"] is None
    assert re.search(f"the body is not JSON: ({words})", answer.json()["detail"]), answer.json()["detail"]


@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_json_under_another_name_is_told(server, media_type):
    """`curl -d '{...}'` calls its body a form."""
    headers = {"Content-Type": media_type} if media_type else {}
    for path in ("/v1/extractions", "/v1/extractions/check", "/v1/generations", "/v1/generations/check"):
        answer = server.client.post(path, content=b'{"cask": "c"}', headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
        assert "--json" in answer.json()["detail"]


def test_the_page_after_what_does_not_exist(server):
    for path in ("/v1/corpora", "/v1/extractions", "/v1/generations", "/v1/batches", "/v1/files"):
        answer = server.client.get(f"{path}?after=nope")
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after")


def test_methods_without_end_are_one_label(server):
    """The client names the method; the metrics do not grow by it."""
    for number in range(50):
        server.client.request(f"M{number}", "/health")
    for method in ("BREW", "TRACE", "LINK"):
        server.client.request(method, "/health")
    text = server.client.get("/metrics").text
    assert 'method="M1"' not in text
    assert 'method="BREW"' not in text
    assert 'method="other",route="/health"' in text or 'method="other",route="unmatched"' in text


TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
NUMBER = st.sampled_from([0, -1, 1, 4, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 1e-320, 1e308, 0.5])
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
HEADER = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)


def escaped(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


# The threads of the server under test draw random numbers of their own, sometimes while an example is made.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "loading"])
def test_no_request_is_answered_with_500(serve, loaded):
    """Any method, parameter, header and body, from the description; before the teacher is loaded and after."""
    go_on = threading.Event()

    def load():
        if not loaded:
            go_on.wait(60)
        return replace(fake_teacher(), generator=FakeGenerator())

    server = serve(load=load)
    description = server.client.get("/openapi.json").json()
    operations = [
        (method.upper(), path, operation)
        for path, methods in sorted(description["paths"].items())
        for method, operation in sorted(methods.items())
    ]
    corpus = server.upload([{"text": "hello", "question": "what?"}])
    valid = {"corpus_id": corpus["id"], "cask": "c"}
    fields = sorted(ExtractionRequest.model_fields)
    spec_fields = sorted(CaptureSpec.model_fields)
    plan = {"recipe": "cot", "extraction": {"cask": "d"}}
    generation = server.client.post("/v1/generations", json={**plan, "corpus_id": corpus["id"]}).json()["id"]
    ids = st.sampled_from([corpus["id"], server.submit(corpus)["id"], generation]) | TEXT
    plan_fields = sorted(GenerationRequest.model_fields)
    parameters_of_cot = st.sampled_from(["n", "temperature", "check", "template", "demonstrations", "marker", "k"])
    steps = st.sampled_from(["generate", "score", "parse", "keep", "grow"]).flatmap(
        lambda kind: st.dictionaries(
            TEXT | st.sampled_from(["template", "of", "by", "sampling"]), VALUE, max_size=3
        ).map(lambda some: {"template": "cot-zero-shot", "into": "x", "of": "output", **some, "kind": kind})
    )
    bodies = st.one_of(
        VALUE,
        st.dictionaries(st.sampled_from(fields), VALUE, min_size=1, max_size=2).map(lambda some: valid | some),
        st.dictionaries(st.sampled_from(spec_fields), VALUE | st.lists(NUMBER, max_size=3), min_size=1, max_size=2).map(
            lambda some: valid | {"capture": some}
        ),
        st.dictionaries(TEXT, TEXT, max_size=3).map(lambda some: valid | {"metadata": some}),
        st.dictionaries(st.sampled_from(plan_fields), VALUE, max_size=2).map(
            lambda some: plan | {"corpus_id": corpus["id"]} | some
        ),
        st.dictionaries(parameters_of_cot, VALUE, max_size=2).map(lambda some: plan | {"parameters": some}),
        st.lists(steps, max_size=2).map(
            lambda some: {"corpus_id": corpus["id"], "steps": some, "emit": [{"completion": "x"}]}
        ),
    ).map(lambda body: json.dumps(body).encode())

    plans = st.sampled_from([plan, {"steps": []}, {"recipe": "seqkd"}]).map(json.dumps)

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.data())
    def ask(data):
        method, path, operation = data.draw(st.sampled_from(operations))
        parameters = operation.get("parameters", [])
        for parameter in parameters:
            if parameter["in"] == "path":
                name = data.draw(ids).strip(".") or "x"  # the client takes `.` and `..` out of a path
                path = path.replace(f"{{{parameter['name']}}}", escaped(name))
        query = "&".join(
            f"{parameter['name']}={escaped(data.draw(TEXT | ids | NUMBER.map(str) | plans))}"
            for parameter in parameters
            if parameter["in"] == "query" and data.draw(st.booleans())
        )
        headers = {
            parameter["name"]: data.draw(HEADER).strip().encode("latin-1")
            for parameter in parameters
            if parameter["in"] == "header" and parameter["name"] != "authorization" and data.draw(st.booleans())
        }
        if method == "POST":
            kind = st.sampled_from(
                [b"application/json", b"application/jsonl", b"text/plain", b"application/json; x=\xff"]
            )
            headers["Content-Type"] = data.draw(kind)
        content = data.draw(bodies | st.binary(max_size=30)) if method == "POST" else None
        answer = server.client.request(method, f"{path}?{query}", headers=headers, content=content)
        assert answer.status_code != 500, answer.text
        if answer.status_code >= 400 and path != "/health/ready":
            assert answer.headers["content-type"] == PROBLEM
            assert str(answer.status_code) in operation["responses"], (method, path, answer.text)

    try:
        ask()
    finally:
        go_on.set()
