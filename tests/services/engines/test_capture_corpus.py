"""`logitcask capture` with a real model: one run, two parts, a rerun; what it prints and how it ends."""

import gzip
import json
import os

import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.cli.main import main
from logitcask_services.cli import capture_corpus
from logitcask_services.cli.capture_places import write_errors
from tests.support.services.corpus_captures import files_of


@pytest.fixture
def run(tiny_llama, tmp_path, monkeypatch, capsys):
    """A function: `logitcask capture` with the tiny teacher; the exit code and what it said as JSON."""
    monkeypatch.setenv("LOGITCASK_ENGINE_PROCESS", "false")
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int | str | None, dict]:
        options = ["--teacher", str(tiny_llama), "--engine", "transformers", "--chunk-positions", "40", "--json"]
        with pytest.raises(SystemExit) as ended:
            main(["capture", *words, *options])
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return ended.value.code, json.loads(out.out) if out.out else {"stderr": out.err}

    return call


@pytest.fixture
def corpus(tmp_path):
    lines = [{"text": " ".join(f"w{200 + (at * 7 + place) % 100}" for place in range(4 + at % 9))} for at in range(40)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, lines[3]]) + "no json\n"
    (tmp_path / "corpus.jsonl").write_text(text)
    return "corpus.jsonl"


def test_whole_parts_and_rerun(run, corpus, tmp_path):
    code, whole = run(corpus, "--cask", "whole", "--held-out")
    assert (code, whole["captured_documents"], whole["bad_lines"], whole["corpus_missing"]) == (0, 40, 1, 0)
    assert Cask.open(tmp_path / "whole").manifest.capture.tail_logprobs

    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress((tmp_path / corpus).read_bytes()))
    code, last = run("corpus.jsonl.gz", "--cask", "parts", "--held-out", "--part", "1/2")
    assert code == 0
    assert 0 < last["corpus_missing"] < 40
    assert last["errors"] is None, "part 0 lists the bad lines"
    code, first = run(corpus, "--cask", "parts", "--held-out", "--part", "0/2")
    assert (code, first["corpus_missing"], first["captured_documents"]) == (0, 0, 40 - last["captured_documents"])
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    listed = [json.loads(line) for line in (tmp_path / "parts.errors-0-of-2.jsonl").read_text().splitlines()]
    assert [(each["line"], each["stage"], each["code"]) for each in listed] == [(42, "corpus", "not_json")]

    code, again = run(corpus, "--cask", "whole", "--held-out")
    assert (code, again["captured_documents"], again["present_documents"], again["seconds"]) == (0, 0, 40, 0)
    code, said = run(corpus, "--cask", "whole")
    assert code == 1
    assert "another capture spec" in said["stderr"]


def test_two_teachers_of_one_machine_make_the_same_cask(run, corpus, tmp_path, monkeypatch):
    code, _ = run(corpus, "--cask", "one")
    assert code == 0
    monkeypatch.setenv("LOGITCASK_ENGINE_PROCESS", "true")
    monkeypatch.setenv("LOGITCASK_ENGINES", "7")  # of a service
    code, two = run(corpus, "--cask", "two", "--teachers", "2")
    assert (code, two["captured_documents"], two["workers_lost"]) == (0, 40, 0)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_bad_lines_that_must_not_be(run, corpus, tmp_path):
    code, _ = run(corpus, "--cask", "cask", "--on-error", "fail")
    assert code == 3
    assert len((tmp_path / "cask.errors.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "cask").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "8/8"], "I from 0 to N - 1"),
        (["--part", "1"], "expected I/N"),
        (["--part", "1" * 5000 + "/8"], "expected I/N"),
        (["--part", "0/" + "9" * 300], "expected I/N"),
        (["--errors", "corpus.jsonl"], "corpus.jsonl: is the corpus, which it would replace"),
        (["--errors", "e" * 300], "cannot be used (File name too long)"),
        (["--errors", "cask/errors.jsonl"], "cask/errors.jsonl: lies in the cask"),
        (["--work", "cask"], "cask: lies in the cask"),
        (["--teachers", "2"], "in processes of their own"),
        (["--ray-address", "h:1", "--cpus-per-teacher", "2"], "--ray-address, --cpus-per-teacher: for a Ray cluster"),
        (["--max-length", "129"], "expected 4 to 128"),
    ],
)
def test_what_cannot_be_meant(run, corpus, tmp_path, words, message):
    before = files_of(tmp_path)
    code, said = run(corpus, "--cask", "cask", *words)
    assert code == 2
    assert message in said["stderr"]
    assert files_of(tmp_path) == before, "nothing is made, or written over"


def test_a_part_without_work_is_no_problem(run, corpus, tmp_path):
    """More parts than chunks, or chunks of repetitions alone; a corpus without a document is one."""
    code, said = run(corpus, "--cask", "cask", "--part", "30/31", "--work", "elsewhere", "--errors", "new/errors.jsonl")
    assert (code, said["chunks"], said["documents"], said["corpus_missing"]) == (0, 0, 0, 40)
    (tmp_path / "same.jsonl").write_text((json.dumps({"text": "w201 w202 w203 w204 w205 w206 w207"}) + "\n") * 30)
    for at, documents in ((0, 1), (1, 0)):
        code, said = run("same.jsonl", "--cask", "same", "--part", f"{at}/2")
        assert (code, said["chunks"] > 0, said["documents"], said["corpus_missing"]) == (0, True, documents, 0)
    (tmp_path / "bad.jsonl").write_text("no json\n")
    for part in ("0/2", "1/2"):
        assert run("bad.jsonl", "--cask", "bad", "--part", part)[0] == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--cask", "a-file"], 1, "a-file cannot be written to (File exists)"),
        (["--cask", "a-file/cask"], 1, "name another with --work"),
        (["--cask", "cask", "--work", "a-file"], 1, "name another with --work"),
        (["--cask", "cask", "--errors", "a-file/errors"], 1, "name another with --errors"),
        (["--cask", "cask", "--errors", "a-folder"], 2, "a-folder: is a folder; name a file"),
        (["--cask", "a-folder"], 1, "holds 'notes' and no cask.json"),
        (["--cask", "a-dangling-link"], 1, "a-dangling-link cannot be written to (File exists)"),
        (["--cask", "a-loop"], 1, "a-loop cannot be written to"),
    ],
)
def test_what_is_in_the_way_is_told_before_a_teacher_loads(run, corpus, tmp_path, monkeypatch, words, code, message):
    monkeypatch.setattr(capture_corpus, "load_engine_of", lambda *arguments: pytest.fail("a teacher is loaded"))
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-folder" / "notes").touch()
    (tmp_path / "a-dangling-link").symlink_to("nowhere")
    (tmp_path / "a-loop").symlink_to("a-loop")
    ended, said = run(corpus, *words)
    assert ended == code
    assert message in said["stderr"].replace("\n", "")


def test_an_errors_file_that_is_no_file_of_ours_stays(tmp_path):
    """`--errors /dev/null` took it away from the whole machine, where root captured."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "of-another").write_text("an earlier run\n")
    (tmp_path / "link").symlink_to("of-another")
    (tmp_path / "file").write_text("an earlier run\n")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)  # a writer would wait for one
    try:
        assert [write_errors(tmp_path / name, []) for name in ("pipe", "link", "file", "new")] == [0, 0, 0, 0]
    finally:
        os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "of-another", "pipe"]
    assert (tmp_path / "of-another").read_text() == ""


def test_the_corpus_needs_no_word_before_it(run, corpus):
    assert run("run", corpus, "--cask", "cask")[0] == 0
    assert run("--cask", "cask", corpus)[0] == 0
