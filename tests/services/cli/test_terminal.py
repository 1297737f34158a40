"""What the client commands show: whole, right, and harmless to the terminal."""

import io
import json
import time

import httpx2
from rich.console import Console

from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.objects import Failure
from logitcask_schemas.terminal import printable
from logitcask_services.cli import connection
from logitcask_services.cli.connection import follow
from tests.support.services.fake_teacher import POISON
from tests.support.services.service_harness import jsonl


def test_nothing_from_a_request_steers_the_terminal(serve, run, tmp_path):
    evil = "evil\x1b]0;pwned\x07\x1b[31mRED\x9b31m\u202e\u2028\r\nline 99: forged"
    server = serve()
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl([{"text": "", "custom_id": evil}, {"input_ids": [1, 2, POISON], "custom_id": evil}]))
    _, out, err = run(server, "submit", path, "--cask", "one", "--wait", "--metadata", f"note={evil}")
    job = server.client.get("/v1/extractions").json()["data"][0]["id"]
    shown = out + err
    for arguments in (("show", job), ("show", job, "--json"), ("errors", job), ("errors", job, "--json"), ("ls",)):
        code, out, err = run(server, "jobs", *arguments)
        assert code == 0
        shown += out + err
    corpus = server.upload(jsonl([{"text": evil}]) + evil.replace("\n", " ").encode() + b"\n")["id"]
    code, out, err = run(server, "corpora", "rows", corpus)
    assert (code, "line 2: not_json" in err, "\\x1b]0;pwned" in out) == (0, True, True)
    shown += out + err
    for unknown in (evil, "b?x#y"):
        code, out, err = run(server, "jobs", "show", unknown)
        assert (code, "is no extraction's id" in err) == (1, True)
        shown += out + err
    assert "evil" in shown
    assert [character for character in set(shown) if not character.isprintable() and character != "\n"] == []
    assert not [line for line in shown.splitlines() if line.startswith("line 99")]


def test_printable():
    for text in ("plain", "Ünïcödé 日本語　🙂", ""):
        assert printable(text) == text
    assert printable("a\x1b[0m\n\x9b\u202e\u2028\ud800\x7f") == r"a\x1b[0m\n\x9b\u202e\u2028\ud800\x7f"
    assert printable("two\nlines\r", keep="\n") == "two\nlines\\r"


def test_lines_of_failures_end_at_line_ends_alone():
    """JSON may hold U+2028, U+0085 and their kin as they are; a block may end anywhere."""
    failures = [
        Failure(stage="corpus", line=1, custom_id=f"a{separator}b", code="x", message="y")
        for separator in "\u2028\u2029\x85\x0b\x0c\x1c"
    ]
    content = b"".join(json.dumps(failure.model_dump(), ensure_ascii=False).encode() + b"\n" for failure in failures)

    class Blocks(httpx2.SyncByteStream):
        def __iter__(self):
            return (content[start : start + 7] for start in range(0, len(content), 7))

    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, stream=Blocks()))
    with ServiceClient("http://x", transport=transport) as client:
        assert list(client.failures("x")) == failures


def test_cut_documents_are_said(serve, run, tmp_path):
    """The default `overflow: truncate` does not cut in silence."""
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl([{"input_ids": [number] * (5 + 10 * (number % 3))} for number in range(9)]))
    code, _, err = run(serve(), "submit", path, "--cask", "one", "--wait", "--max-length", "10")
    assert code == 0
    assert "6 of 9 lines longer than 10 tokens and cut there (overflow: truncate" in err


def test_into_a_log_progress_comes_as_lines(serve, documents, monkeypatch):
    """`nohup logitcask submit --wait > log`: hours without a word would look like a hang."""
    server = serve(fake={"seconds_per_document": 0.05})

    def told():
        job = server.submit(server.upload(documents[:8]), cask=f"cask{time.monotonic_ns()}")
        shown = io.StringIO()
        with ServiceClient(server.url) as client:
            tokens = follow(client, job["id"], Console(file=shown, width=200)).usage.tokens_total
        return shown.getvalue(), f" of {tokens:,} tokens"

    text, count = told()
    assert count not in text  # over before the first half minute
    monkeypatch.setattr(connection, "LINE_SECONDS", 0.0)
    text, count = told()
    lines = [line for line in text.splitlines() if count in line]
    assert len(lines) > 2
    assert any("tokens/s" in line for line in lines)


def test_the_finished_bar_shows_the_pace_of_the_run(serve, documents):
    """Tokens over the time of capture, and no estimate of what is left."""
    server = serve(fake={"seconds_per_document": 0.05})
    job = server.submit(server.upload(documents[:8]))
    shown = io.StringIO()
    console = Console(file=shown, width=200, force_terminal=True, color_system=None)
    with ServiceClient(server.url) as client:
        ended = follow(client, job["id"], console)
    last = shown.getvalue().rsplit("\r", 1)[-1].splitlines()[0]
    assert ended.status == "completed"
    assert f"{ended.throughput_tps:,.0f} tokens/s" in last
    assert "ETA" not in last
    total = ended.usage.tokens_total
    assert f"{total}/{total}" in last
