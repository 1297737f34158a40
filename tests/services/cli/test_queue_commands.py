"""The commands of the queue, of corpora and of downloads: what they do, print and end with."""

import json

import pytest

from logitcask_schemas.cask import Cask
from tests.support.services.service_harness import jsonl, wait_for


def test_the_queue_is_paused_ordered_and_opened(serve, run, documents):
    server = serve()
    code, out, _ = run(server, "jobs", "pause", "--all", "--json")
    assert (code, json.loads(out)["paused"]) == (0, True)
    corpus = server.upload(documents)
    jobs = [server.submit(corpus, cask=name)["id"] for name in ("a", "b", "c")]
    wait_for(lambda: {server.get(job)["status"] for job in jobs} == {"queued"})
    first, second, third = jobs
    assert run(server, "jobs", "priority", third, "5")[:2] == (0, f"{third}: queued, priority 5\n")
    assert run(server, "jobs", "priority", second, "--front")[:2] == (0, f"{second}: queued, priority 5\n")
    code, out, _ = run(server, "jobs", "priority", first, "--before", third, "--json")
    assert (code, json.loads(out)["priority"]) == (0, 5)
    code, out, _ = run(server, "jobs", "queue", "--json")
    assert [entry["id"] for entry in json.loads(out)["data"]] == [second, first, third]
    code, out, _ = run(server, "jobs", "queue")
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == [second, first, third]
    assert out.splitlines()[-1] == "the queue is paused; 3 jobs in it"
    assert "the queue is paused: no job is worked on" in run(server, "jobs", "ls")[2]
    assert run(server, "jobs", "pause", first)[:2] == (0, f"{first}: paused\n")
    assert next(line.split()[1] for line in run(server, "jobs", "ls")[1].splitlines() if first in line) == "paused"
    assert run(server, "jobs", "resume", "--all")[:2] == (0, "the queue is open; 3 jobs in it\n")
    assert "paused" not in run(server, "jobs", "ls")[2]
    server.finish(third)
    assert server.get(first)["status"] == "paused"
    code, out, _ = run(server, "jobs", "resume", first, "--wait", "--json")
    assert (code, json.loads(out)["status"]) == (0, "completed")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pause",), "name one job, or --all"),
        (("pause", "x", "--all"), "name one job, or --all"),
        (("resume",), "name one job, or --all"),
        (("priority", "x"), "give one of a number, --before ID and --front"),
        (("priority", "x", "1", "--front"), "give one of a number"),
        (("priority", "x", "high"), "Invalid value for '[NUMBER]'"),
    ],
)
def test_what_is_asked_in_part_or_twice_is_usage(run, arguments, words):
    code, _, err = run(None, "jobs", *arguments)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())


def test_refusals_are_exit_code_1(serve, run, documents):
    server = serve()
    done = server.finish(server.submit(server.upload(documents))["id"])["id"]
    for arguments, words in (
        (("pause", done), "is completed and cannot become pausing"),
        (("priority", done, "1"), "has no place in the queue"),
        (("priority", "nobody", "1"), "there is no extraction 'nobody'"),
    ):
        code, _, err = run(server, "jobs", *arguments)
        assert (code, words in err) == (1, True), err


def test_corpora(serve, run, documents):
    server = serve()
    assert json.loads(run(server, "corpora", "ls", "--json")[1]) == {"corpora": []}
    corpus = server.upload(documents)
    code, out, _ = run(server, "corpora", "ls")
    assert (code, corpus["id"] in out, "40" in out) == (0, True, True)
    assert json.loads(run(server, "corpora", "show", corpus["id"], "--json")[1])["sha256"] == corpus["sha256"]
    assert f"{corpus['id']}: 40 lines" in run(server, "corpora", "show", corpus["id"])[1]
    code, _, err = run(server, "corpora", "show", "nobody")
    assert (code, "there is no corpus 'nobody'" in err) == (1, True)
    code, _, err = run(server, "corpora", "rm", "")
    assert (code, "is no corpus' id" in err) == (1, True)


def test_download(serve, run, documents, tmp_path):
    server = serve()
    server.finish(server.submit(server.upload(documents), cask="mine")["id"])
    code, out, _ = run(server, "download", "mine", "--to", tmp_path / "here", "--json")
    document = json.loads(out)
    assert (code, document["folder"]) == (0, str(tmp_path / "here"))
    assert document["received_bytes"] == document["bytes"] > 0
    assert len(Cask.open(tmp_path / "here")) == 40
    code, out, _ = run(server, "download", "mine", "--to", tmp_path / "here")
    assert (code, out.endswith(", there already\n")) == (0, True)
    code, _, err = run(server, "download", "nobody", "--to", tmp_path / "nothing")
    assert (code, "there is no cask 'nobody'" in err) == (1, True)
    assert run(server, "download", "../mine")[0] == 2


def test_rows_are_the_lines_and_a_corpus_in_use_stays(serve, run):
    server = serve()
    lines = [{"text": "first", "custom_id": "a"}, {"text": 3}, {"text": "last"}]
    corpus = server.client.post("/v1/corpora", content=jsonl([*lines[:2], *lines[2:]]) + b"not json\n").json()
    code, out, err = run(server, "corpora", "rows", corpus["id"])
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()[:3]] == lines
    assert out.splitlines()[3:] == ["not json"]
    assert "line 2: " in err
    assert "line 4: " in err
    code, out, _ = run(server, "corpora", "rows", corpus["id"], "--offset", "2", "--length", "1", "--json")
    page = json.loads(out)
    assert (code, [row["row"] for row in page["data"]], page["has_more"]) == (0, lines[2:], True)
    assert run(server, "jobs", "pause", "--all")[0] == 0
    job = server.submit(corpus, "held")["id"]
    code, _, err = run(server, "corpora", "rm", corpus["id"])
    assert code == 1
    assert job in err
    assert run(server, "jobs", "resume", "--all")[0] == 0
    server.finish(job)
    assert run(server, "corpora", "rm", corpus["id"])[:2] == (0, f"{corpus['id']}: deleted\n")
    assert json.loads(run(server, "corpora", "ls", "--json")[1]) == {"corpora": []}
