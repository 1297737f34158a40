"""`logitcask capture` into an object store: the shards of a folder, in parts and at once, over a store that fails."""

import json
import threading
from functools import partial

import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cli.main import main
from logitcask_services.jobs.executors import chunk_worker
from logitcask_services.jobs.executors.corpus_capture import CaptureStoppedError, Part
from tests.services.engines.conftest import tiny_llama, tokenizer_saver
from tests.support.services.corpus_captures import capture, captures, files_of, missing, prepare, some_documents
from tests.support.services.fake_teacher import FakeEngine
from tests.support.services.stored_casks import require_sound, stored_files

__all__ = ["tiny_llama", "tokenizer_saver"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


@pytest.fixture
def prepared(tmp_path):
    return prepare(tmp_path / "corpus", some_documents(120, repeated=10))


@pytest.fixture
def whole(tmp_path, prepared):
    """The files of a single run into a folder."""
    capture(prepared, tmp_path / "whole")
    return files_of(tmp_path / "whole")


def test_the_cask_is_that_of_a_folder(bucket, prepared, whole):
    captured = capture(prepared, f"{bucket}/cask")
    assert (captured.documents, captured.failures) == (120, [])
    assert stored_files(f"{bucket}/cask") == whole
    require_sound(f"{bucket}/cask")
    assert not missing(prepared, f"{bucket}/cask").chunks


def test_parts_at_once_and_what_is_there_already(bucket, tmp_path, prepared, whole, faults):
    url = f"{bucket}/cask"
    capture(prepared, url, part=Part(index=1, parts=3))
    log = tmp_path / "log"
    parts = [
        threading.Thread(
            target=capture,
            args=(prepared, url),
            kwargs={"part": Part(index=at, parts=3), "load": partial(FakeEngine, log=log, seconds_per_document=0.001)},
        )
        for at in (0, 1, 2)
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    assert stored_files(url) == whole
    share = missing(prepared, f"{bucket}/none", Part(index=1, parts=3))
    assert len(captures(log)) == 120 - share.missing_documents, "the part that was there is not captured again"
    require_sound(url)


def test_machines_that_share_nothing_but_the_store(bucket, tmp_path, whole):
    """Each makes the corpus's tokens itself."""
    for at in range(2):
        own = prepare(tmp_path / f"machine-{at}", some_documents(120, repeated=10))
        capture(own, f"{bucket}/cask", part=Part(index=at, parts=2))
    assert stored_files(f"{bucket}/cask") == whole


def test_what_is_missing_is_asked_without_fetching_shards(bucket, prepared, monkeypatch):
    """Of a cask that nobody has closed, too: ids are parts of shards."""
    url = f"{bucket}/cask"
    capture(prepared, url, part=Part(index=0, parts=2))
    RemoteStore(url).delete("index.json")
    RemoteStore(url).delete("documents.bin")
    fetched = []
    original = RemoteStore.download
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            RemoteStore, "download", lambda self, name, *rest: (fetched.extend([name]), original(self, name, *rest))[1]
        )
        left = missing(prepared, url)
    assert 0 < left.missing_documents < 120
    assert [name for name in fetched if name != "documents.bin"] == []


def test_a_teacher_that_dies_is_started_again(bucket, prepared, whole):
    captured = capture(prepared, f"{bucket}/cask", load=partial(FakeEngine, fatal_documents=50), restarts=100)
    assert captured.workers_lost > 1
    assert stored_files(f"{bucket}/cask") == whole


def test_a_store_that_is_away_is_waited_for(bucket, tmp_path, prepared, whole, faults, monkeypatch, caplog):
    monkeypatch.setattr(chunk_worker, "FIRST_PAUSE", 0.01)
    seen = set()

    def away_twice(call, number):
        tries = sum(other == call for other in faults.calls)
        seen.add(call)
        return "gone" if call[0] == "PutObject" and tries <= 2 and "/shards/" in call[1] else None

    faults.fault = away_twice
    log = tmp_path / "log"
    captured = capture(prepared, f"{bucket}/cask", load=partial(FakeEngine, log=log))
    faults.fault = None
    assert (captured.documents, captured.workers_lost) == (120, 0)
    assert len(captures(log)) == 120
    assert "the capture waits" in caplog.text
    assert stored_files(f"{bucket}/cask") == whole


def test_a_store_that_stays_away_ends_it_and_the_rest_is_captured_later(bucket, prepared, whole, faults, monkeypatch):
    monkeypatch.setattr(chunk_worker, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(chunk_worker, "STORE_PATIENCE_SECONDS", 0.0)
    puts = []

    def after_some(call, number):
        if call[0] == "PutObject":
            puts.append(call)
        return "denied" if call[0] == "PutObject" and len(puts) > 7 else None

    faults.fault = after_some
    with pytest.raises(CaptureStoppedError, match="the object store failed"):
        capture(prepared, f"{bucket}/cask")
    faults.fault = None
    left = missing(prepared, f"{bucket}/cask")
    assert 0 < left.missing_documents < 120
    assert capture(prepared, f"{bucket}/cask").documents == left.missing_documents
    assert stored_files(f"{bucket}/cask") == whole


def test_the_command(bucket, tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOGITCASK_ENGINE_PROCESS", "false")
    monkeypatch.chdir(tmp_path)
    lines = [{"text": " ".join(f"w{200 + (at * 7 + place) % 100}" for place in range(4 + at % 9))} for at in range(40)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    options = ["--teacher", str(tiny_llama), "--engine", "transformers", "--chunk-positions", "40", "--json"]

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["capture", "corpus.jsonl", *words, *options])
        return ended.value.code, json.loads(capsys.readouterr().out)

    code, here = run("--cask", "cask")
    assert code == 0
    code, far = run("--cask", f"{bucket}/cask/", "--work", "work")
    assert (code, far["cask"], far["captured_documents"]) == (0, f"{bucket}/cask", here["captured_documents"])
    assert far["errors"] == str(tmp_path / "work.errors.jsonl")
    assert stored_files(f"{bucket}/cask") == files_of(tmp_path / "cask")
    code, again = run("--cask", f"{bucket}/cask", "--work", "work")
    assert (code, again["captured_documents"], again["present_documents"]) == (0, 0, 40)
    assert len(Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")) == 40
    assert not (tmp_path / "s3:").exists()
