"""`logitcask submit --dry-run`: documents with their answers, every count, what to expect; nothing is kept."""

import json
import threading
from types import SimpleNamespace

import pytest

from logitcask_schemas.api.objects import Preview
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cli.main import main
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.cli import connection
from logitcask_services.cli.dry_run import _estimate
from logitcask_services.corpora.prepare import DocumentLimits
from logitcask_services.corpora.preview import preview
from logitcask_services.pilot.expected_bytes import expected_bytes
from tests.support.services.fake_teacher import VOCAB_SIZE, FakeTokenizer, fake_teacher, identity
from tests.support.services.service_harness import jsonl, wait_for

CHAT = {"messages": [{"role": "user", "content": "hi\x1b[31m"}, {"role": "assistant", "content": "fine\nday"}]}
PADDED = {"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}
LINES = [CHAT, {"text": "plain"}, {"text": "x" * 80}, {"title": "bad"}, PADDED]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl(LINES))

    def command(server, *arguments):
        monkeypatch.setenv("LOGITCASK_SERVER", server.url if server else "http://127.0.0.1:9")
        with pytest.raises(SystemExit) as ended:
            main(["submit", str(path), "--dry-run", *map(str, arguments)])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return command


def test_a_person_sees_documents_counts_and_what_to_expect(serve, run):
    server = serve()
    code, out, err = run(server, "--documents", "2")
    assert code == 0, err
    assert "line 1: 32 tokens, 8 of answers" in out
    assert "<user>hi\\x1b[31m<assistant>fine⏎\nday" in out
    assert "line 5: 2 tokens, the line does not tell what is an answer, padding_removed" in out
    assert "line 2:" not in out
    assert "line 3:" not in out
    assert "5 lines give 4 documents, 104 tokens" in out
    assert "1 longer than 64 tokens and cut there (overflow: truncate) (line 3)" in out
    assert "1 padding_removed: padding was cut off" in out
    assert "1 bad, no_known_field (line 4)" in out
    assert "as SmolLM2-135M took on Python sources" in out
    assert server.client.get("/v1/extractions").json()["data"] == []
    assert server.client.get("/v1/corpora").json()["data"] == []
    assert list(server.service.folders.extractions.iterdir()) == []


def test_it_waits_for_a_teacher_that_loads(serve, run, monkeypatch):
    loaded, pauses = threading.Event(), []

    def load():
        assert loaded.wait(30)
        return fake_teacher()

    def pause(seconds):
        """Stands for one of the waits between two questions."""
        pauses.append(seconds)
        loaded.set()
        wait_for(lambda: server.service.facts_of(None) is not None)

    server = serve(load)
    monkeypatch.setattr(connection, "time", SimpleNamespace(sleep=pause))
    code, out, err = run(server, "--documents", "2")
    assert (code, pauses) == (0, [5.0]), err
    assert err.count("the teacher is loading; waiting until more is known of it") == 1
    assert "line 1: 32 tokens, 8 of answers" in out


def test_unusual_documents_are_shown_before_further_usual_ones(serve, run):
    server = serve()
    code, out, _ = run(server, "--documents", "3")
    assert code == 0
    assert "line 3: 64 tokens, the line does not tell what is an answer, truncated" in out
    shown = [json.loads(run(server, "--json", "--documents", count)[1])["shown"] for count in (0, 1, 2, 3, 4, 9)]
    lines = [[document["line"] for document in documents] for documents in shown]
    assert lines == [[], [1], [1, 5], [1, 3, 5], [1, 2, 3, 5], [1, 2, 3, 5]]


def test_the_first_of_each_kind_comes_before_the_second_of_one(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(jsonl([{"text": "ab"}] * 3 + [PADDED] * 3 + [{"text": "x" * 90}, {"text": "cd"}]))
    limits = DocumentLimits(vocab_size=VOCAB_SIZE, max_length=64, window=64, overflow="split", max_line_bytes=1000)
    for many, lines in ((2, [1, 4]), (3, [1, 4, 7]), (4, [1, 4, 5, 7]), (6, [1, 2, 4, 5, 6, 7])):
        report = preview(corpus, tmp_path / f"store-{many}", FakeTokenizer(), limits, documents=many)
        assert [document.line for document in report.shown] == lines, many


def test_json_marks_answers_and_the_cask_tells_bytes(serve, run):
    server = serve()
    report = json.loads(run(server, "--json", "--overflow", "skip")[1])
    assert report["skipped_lines"] == 1
    assert report["bad_by_code"] == {"no_known_field": 1, "too_long": 1}
    kinds = [(piece["kind"], piece["text"]) for piece in report["shown"][0]["pieces"]]
    assert kinds == [("text", "<user>hi\x1b[31m<assistant>"), ("answer", "fine\nday")]
    assert report["shown"][1]["pieces"][0] == {"kind": "control", "text": "<256>", "tokens": 1}
    assert report["bytes_per_token"]["basis"] == "measured_elsewhere"
    job = server.finish(server.submit(server.upload(LINES), cask="c")["id"])
    assert job["lines"]["notes"] == {"padding_removed": 1}
    assert job["lines"]["first_lines"] == {"no_known_field": [4], "truncated": [3], "padding_removed": [5]}
    report = json.loads(run(server, "--json", "--cask", "c")[1])
    assert report["bytes_per_token"]["basis"] == "cask"
    assert report["estimate"]["cask_bytes"] == job["usage"]["bytes_written"]


def test_refusals(serve, run):
    server = serve()
    assert "tau" in run(server, "--tau", "7")[2]
    assert "more than the teacher's context of 64" in run(server, "--max-length", "100")[2]
    code, _, err = run(None)
    assert (code, "no service answers" in err) == (1, True)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [({"tau": 1 / 20}, 30.26), ({}, 40.15), ({"tau": 1 / 50}, 47.4), ({"tau": 0.9}, None), ({"mode": "topk"}, None)],
)
def test_expected_bytes_are_those_of_the_documentation(spec, expected):
    """docs/capture.md measured 30.3 (1/20), 39.9 (1/36) and 47.4 (1/50), with offsets and ids of documents."""
    report = expected_bytes(CaptureSpec(**spec), 49_152)
    assert report.expected == (None if expected is None else pytest.approx(expected, abs=0.15))
    assert report.basis == ("bounds" if expected is None else "measured_elsewhere")
    assert report.low <= (report.expected or report.low) <= report.high


def test_bytes_of_topk_are_known():
    report = expected_bytes(CaptureSpec(mode="topk", k=50), 49_152)
    assert (report.low, report.high) == (208, 212)


def test_contexts_and_what_is_recorded_are_told(serve, monkeypatch, capsys, tmp_path):
    """Through a service; a corpus that costs a tenth of the bytes says so before it is captured."""
    corpus = tmp_path / "parts.jsonl"
    corpus.write_bytes(jsonl([{"context": "See: ", "prompt": "p" * 40, "completion": "c" * 10}] * 2))
    monkeypatch.setenv("LOGITCASK_SERVER", serve().url)
    outputs = {}
    for loss_on in ("all", "completion"):
        for form in ("--json", "--no-json") if loss_on == "completion" else ("--json",):
            with pytest.raises(SystemExit) as ended:
                main(["submit", str(corpus), "--dry-run", "--loss-on", loss_on, *([form] if form == "--json" else [])])
            assert not ended.value.code
            outputs[loss_on, form] = capsys.readouterr().out
    whole, part = (json.loads(outputs[loss_on, "--json"]) for loss_on in ("all", "completion"))
    assert (whole["recorded_positions"], part["recorded_positions"]) == (100, 20)
    assert part["context_tokens"] == 2 * len([256, *b"See: "])
    assert part["estimate"]["cask_bytes"] < whole["estimate"]["cask_bytes"] / 3
    text = " ".join(outputs["completion", "--no-json"].split())
    assert "10 recorded, under a context of 6" in text
    assert "20 positions recorded, 20.0% of all" in text
    assert "12 tokens of contexts are read and not stored" in text


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_the_estimate_from_a_cask_is_of_that_cask(serve, tmp_path, loss_on):
    """`all` is the control: a tenth of the positions recorded is estimated as well as all of them."""
    server = serve(chunk_positions=1_000_000)
    ids = [[number % 600, *range(300, 359)] for number in range(600)]
    rows = [{"input_ids": row, "labels": [-100] * 54 + row[54:]} for row in ids]
    server.finish(server.submit(server.upload(rows), loss_on=loss_on)["id"])
    answer = server.client.post("/v1/previews", content=jsonl(rows), params={"cask": "cask", "loss_on": loss_on})
    preview = Preview.model_validate(answer.raise_for_status().json())
    assert preview.bytes_per_token.basis == "cask"
    stored = Cask.open(tmp_path / "casks" / "cask").num_bytes
    assert _estimate(preview, 1.0).cask_bytes == pytest.approx(stored, rel=0.05)


def test_a_cask_that_cannot_hold_contexts_is_told_before_anything_is_captured(serve, tmp_path):
    CaskWriter.create(tmp_path / "casks" / "cask", teacher=identity(), capture=CaptureSpec()).close()
    client, line = serve().client, jsonl([{"context_ids": [3], "input_ids": [1, 2, 3]}])
    wait_for(lambda: client.get("/health/ready").status_code == 200)
    answer = client.post("/v1/previews", content=line, params={"cask": "cask"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "cask_version")
    assert client.post("/v1/previews", content=line, params={"cask": "another"}).status_code == 200
