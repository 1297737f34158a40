"""`logitcask submit` and `logitcask jobs` against a real server: output, exit codes, broken connections."""

import gzip
import hashlib
import io
import json
import os
import threading

import httpx2
import pytest
from fake_teacher import POISON
from rich.console import Console
from service_harness import jsonl, wait_for

from logitcask_schemas.cli import main
from logitcask_schemas.terminal import printable
from logitcask_services import client as client_module
from logitcask_services.cli.connection import follow
from logitcask_services.client import ServiceClient, ServiceError, ServiceUnreachableError
from logitcask_services.server_url import service_url


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command; (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(server, *arguments):
        monkeypatch.setenv("LOGITCASK_SERVER", server.url if server else "http://127.0.0.1:9")
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return command


@pytest.fixture
def corpus(tmp_path, documents):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl(documents[:10]) + b"nonsense\n" + jsonl(documents[10:]) + b'{"text": ""}\n')
    return path


def test_submit_and_wait(serve, run, corpus):
    code, out, err = run(serve(), "submit", corpus, "--cask", "one", "--wait")
    assert code == 0
    assert out == ""
    assert "completed; cask one: 40 of 42 documents" in err
    assert "2 line(s) or document(s) are not in the cask:" in err
    assert "line 11: not_json: the line is not JSON" in err
    assert "line 42: empty: `text` is empty" in err


def test_json_is_alone_on_stdout(serve, run, corpus):
    code, out, _ = run(serve(), "submit", corpus, "--cask", "one", "--wait", "--json", "--mode", "topk", "--k", "4")
    assert code == 0
    job = json.loads(out)
    assert (job["status"], job["capture"]["mode"], job["capture"]["k"]) == ("completed", "topk", 4)


def test_held_out_text_is_captured_with_what_unbiased_figures_need(serve, run, corpus):
    code, out, _ = run(serve(), "submit", corpus, "--cask", "held", "--held-out", "--json")
    assert code == 0
    assert json.loads(out)["capture"]["tail_logprobs"] is True


def test_submit_without_waiting_prints_the_id(serve, run, corpus):
    server = serve()
    options = ["--metadata", "team=a", "--pin", "5", "--pin", "6", "--temperature", "2.0", "--overflow", "split"]
    code, out, _ = run(server, "submit", corpus, "--cask", "one", *options)
    assert code == 0
    job = server.finish(out.strip())
    assert job["metadata"] == {"team": "a"}
    assert job["capture"]["pinned_ids"] == [5, 6]
    assert job["capture"]["temperatures"] == [2.0]
    assert job["overflow"] == "split"


def test_a_failed_extraction_is_exit_code_3(serve, run, corpus):
    code, _, err = run(serve(), "submit", corpus, "--cask", "one", "--wait", "--on-error", "fail")
    assert code == 3
    assert "failed" in err
    assert "error: 2 of 42 lines are bad" in err


def test_many_failures_are_cut_short(serve, run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "sound"}\n' + b"x\n" * 30)
    code, _, err = run(serve(), "submit", path, "--cask", "one", "--wait")
    assert code == 0
    assert "30 line(s)" in err
    assert "line 21:" in err
    assert "line 22:" not in err
    assert "logitcask jobs errors extraction-" in err


def test_a_corpus_that_gives_nothing_is_a_failure(serve, run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"x\n" * 3)
    code, _, err = run(serve(), "submit", path, "--cask", "one", "--wait")
    assert code == 3
    assert "none of the 3 lines gives a document" in err


def test_refusals(serve, run, corpus, tmp_path):
    server = serve()
    code, _, err = run(server, "submit", corpus, "--cask", "../x")
    assert (code, "error: cask:" in err) == (1, True)
    assert server.client.get("/v1/corpora").json()["data"] == []
    code, _, err = run(server, "submit", tmp_path / "missing.jsonl", "--cask", "x")
    assert (code, "is not a file" in err) == (2, True)
    code, _, err = run(server, "submit", corpus, "--cask", "x", "--metadata", "nothing")
    assert (code, "expected key=value" in err) == (2, True)
    code, _, err = run(None, "submit", corpus, "--cask", "x")
    assert code == 1
    assert "no service answers at http://127.0.0.1:9" in err
    assert "logitcask serve" in err


def test_keys(serve, run, corpus, tmp_path, monkeypatch):
    server = serve(api_key="the-real-key")
    code, _, err = run(server, "submit", corpus, "--cask", "one")
    assert (code, "the API key is missing" in err) == (1, True)
    keys = tmp_path / "key"
    keys.write_text("the-real-key\n")
    assert run(server, "submit", corpus, "--cask", "one", "--wait", "--api-key-file", keys)[0] == 0
    monkeypatch.setenv("LOGITCASK_API_KEY", "the-real-key")
    assert run(server, "jobs", "ls")[0] == 0
    monkeypatch.setenv("LOGITCASK_API_KEY", "another-key")
    code, _, err = run(server, "jobs", "ls")
    assert (code, "is not one of the server's keys" in err) == (1, True)


def test_jobs(serve, run, documents):
    server = serve()
    documents[3]["input_ids"][1:1] = [POISON]
    job = server.finish(server.submit(server.upload(documents))["id"])
    code, out, _ = run(server, "jobs", "ls")
    assert code == 0
    assert job["id"] in out
    assert "39/40, 1 failed" in out
    assert [entry["id"] for entry in json.loads(run(server, "jobs", "ls", "--json")[1])["extractions"]] == [job["id"]]
    assert json.loads(run(server, "jobs", "ls", "--json", "--status", "failed")[1])["extractions"] == []
    assert json.loads(run(server, "jobs", "show", job["id"], "--json")[1]) == job
    assert "capture_failed" in run(server, "jobs", "show", job["id"])[1]
    code, out, _ = run(server, "jobs", "errors", job["id"])
    assert json.loads(out)["custom_id"] == "d3"
    assert len(json.loads(run(server, "jobs", "errors", job["id"], "--json")[1])["errors"]) == 1
    assert run(server, "jobs", "watch", job["id"])[0] == 0
    code, _, err = run(server, "jobs", "cancel", job["id"])
    assert (code, "is completed and cannot become cancelling" in err) == (1, True)
    code, _, err = run(server, "jobs", "show", "nothing")
    assert (code, "there is no extraction 'nothing'" in err) == (1, True)


def test_cancel_and_watch(serve, run, documents):
    server = serve(fake={"seconds_per_document": 0.05, "in_flight": 1})
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    code, out, _ = run(server, "jobs", "cancel", job["id"])
    assert (code, out.strip()) == (0, f"{job['id']}: cancelling")
    code, _, err = run(server, "jobs", "watch", job["id"])
    assert code == 3
    assert "cancelled" in err


def test_ctrl_c_leaves_the_extraction_running(serve, run, corpus, monkeypatch):
    server = serve()

    def interrupted(self, extraction_id):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(ServiceClient, "follow", interrupted)
    code, _, err = run(server, "submit", corpus, "--cask", "one", "--wait")
    assert code == 130
    assert "the extraction goes on; follow it with: logitcask jobs watch extraction-" in err
    (job,) = server.client.get("/v1/extractions").json()["data"]
    assert server.finish(job["id"])["status"] == "completed"


class BreakingTransport(httpx2.HTTPTransport):
    """Cuts every event stream after a few events, and refuses every other connection."""

    def __init__(self):
        super().__init__()
        self.streams = 0
        self.last_ids = []

    def handle_request(self, request):
        if "event-stream" not in request.headers.get("accept", ""):
            return super().handle_request(request)
        self.streams += 1
        self.last_ids.append(request.headers.get("last-event-id"))
        if self.streams % 2 == 0:
            raise httpx2.ConnectError("refused, as scripted")
        answer = super().handle_request(request)
        original = answer.stream

        class Cut(httpx2.SyncByteStream):
            def __iter__(self):
                for number, block in enumerate(original):
                    if number == 3:
                        raise httpx2.ReadError("cut, as scripted")
                    yield block

            def close(self):
                original.close()

        answer.stream = Cut()
        return answer


def test_following_survives_broken_connections(serve, documents):
    server = serve(fake={"seconds_per_document": 0.01})
    job = server.submit(server.upload(documents))
    transport = BreakingTransport()
    with ServiceClient(server.url, transport=transport) as client:
        seen = [event.data["id"] for event in client.follow(job["id"]) if event.type != "progress"]
    everything = server.client.get(f"/v1/extractions/{job['id']}/events?limit=1000").json()["data"]
    assert seen == [event["id"] for event in everything]
    assert transport.streams > 2
    assert transport.last_ids[0] is None
    assert None not in transport.last_ids[2:]


def test_following_gives_up_after_its_patience():
    words = r"has not answered for 0\.3 s .*logitcask jobs watch x"
    client = ServiceClient("http://127.0.0.1:9", patience_seconds=0.3)
    with client, pytest.raises(ServiceUnreachableError, match=words):
        list(client.follow("x"))


def test_a_server_that_is_not_ours():
    answers = [
        httpx2.Response(500, text="<html>nginx</html>"),
        httpx2.Response(200, text="<html>hello</html>"),
        httpx2.Response(200, json=[]),
        httpx2.Response(200, json={"detail": "another API"}),
        httpx2.Response(404, json={"detail": "Not Found"}),
        httpx2.Response(301, headers={"Location": "https://x/"}),
    ]
    for answer in answers:
        client = ServiceClient("http://x", transport=httpx2.MockTransport(lambda request, answer=answer: answer))
        words = f"what answers at http://x is no logitcask service .status {answer.status_code}"
        with client, pytest.raises(ServiceError, match=words) as caught:
            client.extraction("x")
    assert "it points to https://x/" in str(caught.value)


def test_a_damaged_upload_is_noticed(tmp_path):
    def handler(request):
        request.read()
        return httpx2.Response(201, json={"object": "corpus", "id": "corpus-1", "sha256": "0" * 64})

    path = tmp_path / "corpus"
    path.write_bytes(b"x\n")
    client = ServiceClient("http://x", transport=httpx2.MockTransport(handler))
    with client, pytest.raises(ServiceError, match="arrived damaged"):
        client.upload(path)


def test_a_lost_answer_does_not_start_it_twice(serve, corpus):
    server = serve()

    class LosesFirst(httpx2.HTTPTransport):
        lost = False

        def handle_request(self, request):
            answer = super().handle_request(request)
            if request.url.path == "/v1/extractions" and not self.lost:
                self.lost = True
                answer.read()
                raise httpx2.ReadError("the answer was lost, as scripted")
            return answer

    with ServiceClient(server.url, transport=LosesFirst()) as client:
        uploaded = client.upload(corpus)
        job = client.submit({"corpus_id": uploaded["id"], "cask": "c"})
    (only,) = server.client.get("/v1/extractions").json()["data"]
    assert only["id"] == job["id"]


def test_two_clients_follow_one_extraction(serve, documents):
    server = serve(fake={"seconds_per_document": 0.005})
    job = server.submit(server.upload(documents))
    seen = [[], []]

    def follow(into):
        with ServiceClient(server.url) as client:
            into.extend(event.data["id"] for event in client.follow(job["id"]) if event.type != "progress")

    threads = [threading.Thread(target=follow, args=(into,)) for into in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0] == seen[1]
    assert seen[0]


# -- what is said before anything is sent ------------------------------------------------------------------------------


def corpora(server) -> list[dict]:
    return server.client.get("/v1/corpora").json()["data"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--cask", "../x"], 1, "cask: String should match pattern"),
        (["--max-length", "65"], 1, "more than the teacher's context of 64 tokens"),
        (["--max-length", str(2**63)], 1, "max_length: Input should be less than or equal to 2147483647"),
        (["--carrier", "csv"], 1, "carrier: Input should be 'arrow'"),
        (["--overflow", "crop"], 1, "overflow: Input should be 'truncate'"),
        (["--on-error", "ignore"], 1, "on_error"),
        (["--tau", "0"], 1, "capture.tau: Input should be greater than or equal to 0.000001"),
        (["--tau", "nan"], 1, "capture.tau"),
        (["--mode", "guess"], 1, "capture.mode"),
        (["--pin", "1000"], 1, "outside the teacher's vocabulary of 1000"),
        (["--cask", "taken"], 1, "another capture spec (seed: 0 here, 5 offered)"),
        (["--metadata", "k=\udcff"], 1, "metadata.k"),
    ],
)
def test_what_is_refused_is_refused_before_the_upload(serve, run, corpus, options, code, words):
    server = serve()
    server.finish(server.submit(server.upload([{"text": "first"}]), cask="taken")["id"])
    before = corpora(server)
    spec = ["--seed", "5"] if "taken" in options else []
    got, out, err = run(server, "submit", corpus, "--cask", "new", *options, *spec)
    assert (got, out) == (code, "")
    assert words in err
    assert "Traceback" not in err
    assert corpora(server) == before


def test_a_corpus_that_does_not_fit_is_refused_before_the_upload(serve, run, corpus):
    server = serve(max_body_bytes=100)
    code, _, err = run(server, "submit", corpus, "--cask", "x")
    assert (code, "the corpus is larger than 100 bytes" in err) == (1, True)
    assert corpora(server) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (gzip.compress(b'{"text": "a"}\n'), "is compressed with gzip, expected JSON lines: gzip -dc"),
        (b"\x28\xb5\x2f\xfd....", "is compressed with zstd"),
        (b"PK\x03\x04....", "is a ZIP archive"),
        (b"PAR1....", "is a Parquet file, expected JSON lines; write its rows as JSON lines"),
        ('{"text": "a"}\n'.encode("utf-16"), "is UTF-16, expected JSON lines: iconv -f UTF-16 -t UTF-8"),
        (b'[{"text": "a"}, {"text": "b"}]', "is a JSON array, expected one object per line: jq -c '.[]'"),
        (b'[\n  {"text": "a"}\n]\n', "is a JSON array"),
        (b'{\n  "text": "a"\n}\n', "has objects of several lines"),
    ],
)
def test_files_that_are_no_json_lines(serve, run, tmp_path, content, words):
    server = serve()
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    code, _, err = run(server, "submit", path, "--cask", "x")
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert corpora(server) == []


def test_paths_that_are_no_file(serve, run, tmp_path, corpus):
    server = serve()
    for arguments, words in (
        ([tmp_path], "is a folder; a corpus is one file of JSON lines"),
        ([tmp_path / "missing"], "is not a file: nothing of that name exists"),
        ([corpus, corpus], "2 files were named; a corpus is one: cat"),
        ([corpus / "x"], "cannot be read: Not a directory"),
    ):
        code, _, err = run(server, "submit", "--cask", "x", *arguments)
        assert (code, words in " ".join(err.replace("│", " ").split())) == (2, True), err


def test_standard_input_and_pipes(serve, run, corpus, tmp_path, monkeypatch):
    server = serve()
    with corpus.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        code, out, _ = run(server, "submit", "-", "--cask", "one")
    assert code == 0
    assert server.finish(out.strip())["request_counts"]["total"] == 42
    assert [entry["name"] for entry in corpora(server)] == ["standard input"]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b'{"text": "through a pipe"}\n'))
    writer.start()
    code, out, _ = run(server, "submit", pipe, "--cask", "one")
    writer.join()
    assert (code, server.finish(out.strip())["request_counts"]["completed"]) == (0, 1)
    with (tmp_path / "nothing").open("w+") as file:
        monkeypatch.setattr("sys.stdin", file)
        code, _, err = run(server, "submit", "-", "--cask", "one")
    assert (code, "standard input is empty" in err) == (2, True)


def test_content_that_is_there_is_not_sent_again(serve, run, corpus, monkeypatch):
    server = serve()
    assert run(server, "submit", corpus, "--cask", "one", "--wait")[0] == 0
    monkeypatch.setattr(ServiceClient, "upload", lambda *_, **__: pytest.fail("sent again"))
    code, _, err = run(server, "submit", corpus, "--cask", "two", "--wait")
    assert code == 0
    assert f"the service has this content already ({corpora(server)[0]['id']}); nothing is sent" in err


class BreaksUploads(httpx2.HTTPTransport):
    """Breaks the first uploads in the middle, or loses their answers."""

    def __init__(self, *, times, answered):
        super().__init__()
        self.times, self.answered, self.uploads = times, answered, 0

    def handle_request(self, request):
        if request.url.path != "/v1/corpora" or request.method != "POST":
            return super().handle_request(request)
        self.uploads += 1
        if self.uploads > self.times:
            return super().handle_request(request)
        if self.answered:
            super().handle_request(request).read()
        else:
            next(iter(request.stream))
        raise httpx2.WriteError("cut, as scripted")


@pytest.mark.parametrize(("answered", "uploads"), [(False, 3), (True, 1)], ids=["cut", "answer lost"])
def test_a_broken_upload_is_sent_again(serve, corpus, monkeypatch, answered, uploads):
    """Where only the answer was lost, the content is found by its digest."""
    monkeypatch.setattr(client_module, "PAUSE", 0.0)
    server = serve()
    transport = BreaksUploads(times=2, answered=answered)
    heard = []
    with ServiceClient(server.url, transport=transport) as client:
        sha256 = hashlib.sha256(corpus.read_bytes()).hexdigest()
        sent = client.upload(corpus, sha256=sha256, sent=heard.append)
    assert sent["sha256"] == sha256
    assert transport.uploads == uploads
    assert heard[-1] == corpus.stat().st_size
    assert heard.count(0) == uploads
    transport = BreaksUploads(times=9, answered=False)
    with ServiceClient(server.url, transport=transport) as client, pytest.raises(ServiceUnreachableError, match="cut"):
        client.upload(corpus)
    assert transport.uploads == 3


# -- where the service is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        ("//localhost:8000", "http://localhost:8000"),
        ("gpu-box", "http://gpu-box:8000"),
        ("http://gpu-box", "http://gpu-box"),
        ("  HTTPS://Host.example/teacher/v1/ ", "https://host.example/teacher"),
        ("http://localhost:8000/v1", "http://localhost:8000"),
        ("localhost:8000/v1/", "http://localhost:8000"),
        ("http://localhost:8000///", "http://localhost:8000"),
        ("::1", "http://[::1]:8000"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("http://[::1]:9000/", "http://[::1]:9000"),
        ("http://::1", "http://[::1]"),
    ],
)
def test_ways_to_write_a_server(text, url):
    assert service_url(text) == url
    assert service_url(url) == url


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://host", "the service speaks http, not ftp"),
        ("unix:///run/x", "the service speaks http, not unix"),
        ("", "names no host"),
        ("http://", "names no host"),
        (":8000", "names no host"),
        ("http://my host", "names no host"),
        ("localhost:http", "is no URL"),
        ("localhost:99999", "is no URL"),
        ("localhost:0", "port 0"),
        ("::1:18071", "with an IPv6 address in brackets: http://[::1]:8000"),
        ("http://[::1", "is no URL"),
        ("http://user:secret@host", "a key does not belong into the URL"),
        ("http://host?x=1", "has a query"),
    ],
)
def test_servers_that_are_none(run, text, words):
    code, _, err = run(None, "jobs", "ls", "--server", text)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert "secret" not in err


def test_a_server_from_the_command_line(serve, run, monkeypatch):
    server = serve()
    port = server.url.rpartition(":")[2]
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no proxy reaches this machine's own loopback
    for text in (f"localhost:{port}", f"http://127.0.0.1:{port}/v1", f"127.0.0.1:{port}/"):
        assert run(None, "jobs", "ls", "--server", text)[0] == 0, text
    code, _, err = run(None, "jobs", "ls", "--server", "localhost:9")
    assert (code, "no service answers at http://localhost:9 (" in err) == (1, True)
    assert len(err.splitlines()) == 1
    code, _, err = run(None, "jobs", "ls", "--server", f"https://127.0.0.1:{port}")
    assert (code, len(err.splitlines())) == (1, 1)


def test_a_key_that_no_header_can_carry(run, monkeypatch):
    monkeypatch.setenv("LOGITCASK_API_KEY", "ключ-ключ")
    code, _, err = run(None, "jobs", "ls")
    assert (code, "the API key holds characters that no key has" in err) == (2, True)


# -- what is shown -----------------------------------------------------------------------------------------------------


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
    for unknown in (evil, "b?x#y"):
        code, out, err = run(server, "jobs", "show", unknown)
        assert (code, "there is no extraction" in err) == (1, True)
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
    failures = [{"custom_id": f"a{separator}b", "line": 1} for separator in "\u2028\u2029\x85\x0b\x0c\x1c"]
    content = b"".join(json.dumps(failure, ensure_ascii=False).encode() + b"\n" for failure in failures)

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
    assert "6 of 9 line(s) were longer than 10 tokens and lost their end (overflow: truncate" in err


def test_the_finished_bar_shows_the_pace_of_the_run(serve, documents):
    """Tokens over the time of capture, and no estimate of what is left."""
    server = serve(fake={"seconds_per_document": 0.05})
    job = server.submit(server.upload(documents[:8]))
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with ServiceClient(server.url) as client:
        ended = follow(client, job["id"], console)
    last = console.file.getvalue().rsplit("\r", 1)[-1].splitlines()[0]
    assert ended["status"] == "completed"
    assert f"{ended['throughput_tps']:,.0f} tokens/s" in last
    assert "ETA" not in last
    total = ended["usage"]["tokens_total"]
    assert f"{total}/{total}" in last
