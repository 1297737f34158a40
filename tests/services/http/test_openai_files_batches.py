"""OpenAI's own client, unchanged, on a corpus of chat lines: files, uploads in parts, batches, what they give back."""

import contextlib
import io
import json

import pytest
from openai import BadRequestError, ConflictError, NotFoundError, OpenAI, UnprocessableEntityError

from logitcask_schemas.cask import Cask
from tests.support.services.service_harness import jsonl, wait_for

USER = {"role": "user", "content": "What is up?"}


def request_line(name, *messages, **options):
    body = {"messages": list(messages), **options}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture
def client_of():
    """A function: OpenAI's client of a server, closed behind the test."""
    with contextlib.ExitStack() as opened:
        yield lambda server: opened.enter_context(
            OpenAI(base_url=f"{server.url}/v1", api_key="no key is needed", max_retries=0)
        )


def upload(client, lines, name="requests.jsonl"):
    return client.files.create(file=(name, io.BytesIO(jsonl(lines))), purpose="batch")


def finish(client, batch):
    wait_for(lambda: client.batches.retrieve(batch.id).status in ("completed", "failed", "cancelled"), 60)
    return client.batches.retrieve(batch.id)


def content(client, file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def begin(client, file, endpoint="/v1/chat/completions", **fields):
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)


def test_openai_sdk_files_batches_end_to_end(start, client_of):
    """The teacher writes a turn for each line; the answers have the callers' names, bad lines are in the errors."""
    server = start(writer={"answers": lambda prompt, seed: f"answer to {len(prompt)}"})
    client = client_of(server)
    lines = [request_line(f"q{number}", {"role": "user", "content": "x" * number}) for number in range(1, 6)]
    file = upload(client, [*lines, request_line("bad", {"role": "tool", "content": "y"})])
    assert (file.object, file.purpose, file.filename, file.status) == ("file", "batch", "requests.jsonl", "processed")
    assert [entry.id for entry in client.files.list(purpose="batch")] == [file.id]
    assert client.files.retrieve(file.id) == file
    batch = finish(client, begin(client, file, metadata={"who": "me"}))
    assert (batch.status, batch.errors, batch.input_file_id) == ("completed", None, file.id)
    assert batch.endpoint == "/v1/chat/completions"
    assert batch.metadata == {"who": "me"}
    assert batch.request_counts.model_dump() == {"total": 6, "completed": 5, "failed": 1}
    answers = content(client, batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == [f"q{number}" for number in range(1, 6)]
    for answer in answers:
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        body = answer["response"]["body"]
        assert body["object"] == "chat.completion"
        [choice] = body["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"].startswith("answer to ")
        assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    lengths = [int(answer["response"]["body"]["choices"][0]["message"]["content"].split()[-1]) for answer in answers]
    assert [length - lengths[0] for length in lengths] == [0, 1, 2, 3, 4]  # each line its own prompt
    [error] = content(client, batch.error_file_id)
    assert (error["custom_id"], error["response"], error["error"]["line"]) == ("bad", None, 6)
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert [entry.id for entry in client.batches.list()] == [batch.id]


def test_samples_are_choices_and_what_is_written_is_captured(start, client_of):
    server = start()
    client = client_of(server)
    lines = [
        request_line(
            f"q{n}",
            USER,
            {"role": "assistant", "content": "?"},
            USER | {"content": str(n)},
            n=2,
            seed=7,
            temperature=0.7,
            max_completion_tokens=20,
            stop="#",
        )
        for n in range(3)
    ]
    batch = finish(client, begin(client, upload(client, lines), metadata={"cask": "written"}))
    assert batch.status == "completed"
    answers = content(client, batch.output_file_id)
    assert [[choice["index"] for choice in answer["response"]["body"]["choices"]] for answer in answers] == [[0, 1]] * 3
    [chained] = [entry for entry in client.batches.list() if entry.endpoint == "/v1/extractions"]
    assert finish(client, chained).status == "completed"
    assert len(Cask.open(server.service.folders.cask("written"))) == 6


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/extractions"])
def test_conversations_that_are_answered_are_captured(start, client_of, endpoint):
    """Each line's document is found by the caller's name, in the output and under the extraction itself."""
    server = start()
    client = client_of(server)
    answer = {"role": "assistant", "content": "Not much."}
    lines = [request_line(f"c{n}", USER | {"content": f"turn {n}"}, answer, model="any") for n in range(4)]
    lines.append({"custom_id": "empty", "messages": []})
    batch = finish(
        client, begin(client, upload(client, lines), endpoint, metadata={"cask": "docs", "max_length": "64"})
    )
    assert (batch.status, batch.endpoint) == ("completed", "/v1/extractions")
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 4, "failed": 1}
    outputs = content(client, batch.output_file_id)
    assert [output["custom_id"] for output in outputs] == ["c0", "c1", "c2", "c3"]
    cask = Cask.open(server.service.folders.cask("docs"))
    inside = [bytes(identity).hex() for identity in cask.document_ids()]
    assert [output["response"]["body"]["document"] for output in outputs] == inside
    assert [error["custom_id"] for error in content(client, batch.error_file_id)] == ["empty"]
    job = batch.id.removeprefix("batch_")
    names = server.client.get(f"/v1/extractions/{job}/documents").text.splitlines()
    assert [json.loads(name) for name in names] == [
        {
            "custom_id": f"c{n}",
            "line": n + 1,
            "piece": 0,
            "document": inside[n],
            "tokens": len(cask.read(n).token_ids_L),
        }
        for n in range(4)
    ]


def test_pieces_of_a_line_and_ids_of_others(start):
    server = start()
    lines = [{"input_ids": list(range(2, 32)), "id": 17}, {"text": "plain"}]
    job = server.finish(server.submit(server.upload(lines), max_length=10, overflow="split")["id"])
    names = [json.loads(line) for line in server.client.get(f"/v1/extractions/{job['id']}/documents").text.splitlines()]
    assert [(name["custom_id"], name["line"], name["piece"]) for name in names] == [
        *[("17", 1, piece) for piece in range(3)],
        (None, 2, 0),
    ]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([request_line("a", USER), request_line("b", USER, {"role": "assistant", "content": "x"})], "line 2 ends with"),
        ([request_line("a", USER), request_line("b", USER, temperature=0.5)], "line 2 has `temperature` 0.5"),
        ([request_line("a", USER, tools=[{"type": "function"}])], "line 1 has `tools`"),
        ([request_line("a", USER, stream=True)], "line 1 has `stream`"),
        ([request_line("a", USER, model="gpt-4o")], "line 1 asks the model 'gpt-4o'"),
    ],
)
def test_batches_that_cannot_be(start, client_of, lines, words):
    client = client_of(start())
    file = upload(client, lines)
    with pytest.raises(BadRequestError, match=words):
        begin(client, file)


def test_what_clients_do_wrong(start, client_of):
    client = client_of(start())
    file = upload(client, [request_line("a", USER)])
    with pytest.raises(UnprocessableEntityError):
        client.files.create(file=("x", io.BytesIO(b"{}")), purpose="assistants")
    with pytest.raises(UnprocessableEntityError):
        begin(client, file, "/v1/embeddings")
    with pytest.raises(UnprocessableEntityError):
        begin(client, file, "/v1/extractions", metadata={"overflow": "burst"})
    with pytest.raises(NotFoundError):
        client.batches.retrieve("batch_nothing")
    with pytest.raises(NotFoundError):
        client.files.content("file-output-generation-nothing")
    batch = finish(client, begin(client, file))
    with pytest.raises(ConflictError):
        client.batches.cancel(batch.id)


def test_the_clients_uploads_in_parts(start, client_of):
    """`uploads.upload_file_chunked`, as it comes."""
    client = client_of(start())
    body = jsonl([request_line(f"q{n}", USER) for n in range(500)])
    done = client.uploads.upload_file_chunked(
        file=body,
        filename="big.jsonl",
        bytes=len(body),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=20_000,
    )
    assert done.status == "completed"
    assert client.files.content(done.file.id).content == body
