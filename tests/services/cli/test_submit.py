"""`logitcask submit` before and while it sends: what is refused early, what is not sent, what is sent again."""

import gzip
import hashlib
import os
import threading

import httpx2
import pytest

from logitcask_schemas.api import client as client_module
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.connection import ServiceUnreachableError
from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.services.fake_teacher import identity


def corpora(server) -> list[dict]:
    return server.client.get("/v1/corpora").json()["data"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--max-length", "65"], 1, "more than the teacher's context of 64 tokens"),
        (["--max-length", str(2**63)], 1, "max_length: Input should be less than or equal to 2147483647"),
        (["--tau", "0"], 2, "tau: Input should be greater than or equal to 0.000001"),
        (["--tau", "nan"], 2, "tau"),
        (["--mode", "topk", "--tau", "0.1"], 2, "mode topk does not use tau"),
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


@pytest.mark.parametrize(
    ("stored", "options", "words"),
    [
        (
            False,
            ["--held-out"],
            "Here it is without --held-out (or --tail-logprobs), offered is with: capture without it",
        ),
        (True, [], "Here it is with --held-out (or --tail-logprobs), offered is without: capture with it"),
        (True, ["--seed", "5"], "Use another cask for this spec."),
    ],
)
def test_a_cask_with_or_without_what_held_out_stores_says_so(serve, run, corpus, stored, options, words):
    server = serve()
    spec = CaptureSpec(tail_logprobs=stored)
    CaskWriter.create(server.service.folders.cask("one"), teacher=identity(), capture=spec).close()
    code, _, err = run(server, "submit", corpus, "--cask", "one", *options)
    assert code == 1
    assert "tail_logprobs" in err
    assert words in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cask", "a/b"], "'a/b': expected a name, not a path; 1 to 128 letters, digits"),
        (["--cask", "../x"], "'../x': expected a name, not a path"),
        (["--cask", ""], "'': expected a name, not a path"),
        (["--mode", "top-k"], "'top-k' is not one of 'threshold', 'topk', 'sampled'"),
        (["--carrier", "csv"], "'csv' is not one of 'arrow', 'zarr', 'parquet'"),
        (["--overflow", "crop"], "'crop' is not one of 'truncate', 'split', 'skip'"),
        (["--on-error", "ignore"], "'ignore' is not one of 'skip', 'fail'"),
        (["--sampler", "none"], "'none' is not one of 'systematic', 'multinomial'"),
        (["--codec", "f8"], "'f8' is not one of 'f16', 'f32', 'u8'"),
    ],
)
def test_wrong_words_are_refused_before_a_service_is_asked(run, corpus, options, words):
    """No server runs here."""
    code, out, err = run(None, "submit", corpus, "--cask", "new", *options)
    assert (code, out) == (2, "")
    assert words in " ".join(err.replace("│", " ").split())


def test_a_file_is_looked_at_before_a_service_is_asked(run, tmp_path):
    """No server runs here."""
    (tmp_path / "empty").touch()
    for path, words in ((tmp_path / "missing", "nothing of that name exists"), (tmp_path / "empty", "is empty")):
        code, _, err = run(None, "submit", path, "--cask", "x")
        assert (code, words in " ".join(err.replace("│", " ").split())) == (2, True), err


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
        (b"BZh....", "is compressed with bzip2, expected JSON lines: bzip2 -dc"),
        (b"PK\x03\x04....", "is a ZIP archive"),
        (b"ARROW1....", "is an Arrow file, expected JSON lines; write its rows as JSON lines"),
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


def test_packed_files_are_sent_as_they_are_and_not_previewed(serve, run, tmp_path):
    server = serve()
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a b"}\n', mtime=0))
    code, out, _ = run(server, "submit", path, "--cask", "x")
    assert code == 0
    assert server.finish(out.strip())["documents"]["captured"] == 1
    code, _, err = run(server, "submit", path, "--cask", "x", "--dry-run")
    assert code == 2
    assert "is compressed with gzip, and --dry-run reads JSON lines" in " ".join(err.replace("│", " ").split())


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
    assert sent.sha256 == sha256
    assert transport.uploads == uploads
    assert heard[-1] == corpus.stat().st_size
    assert heard.count(0) == uploads
    transport = BreaksUploads(times=9, answered=False)
    with ServiceClient(server.url, transport=transport) as client, pytest.raises(ServiceUnreachableError, match="cut"):
        client.upload(corpus)
    assert transport.uploads == 3
