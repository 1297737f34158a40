"""`logitcask generate` before anything is asked: what is refused, and dry runs."""

import json

import pytest

from tests.support.services.service_harness import jsonl


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "give --recipe or --steps, one of the two"),
        (["--recipe", "nope"], 1, "there is no recipe `nope`; there are: answer, asking"),
        (["--recipe", "asking", "--k", "3"], 1, "has no parameter `k`; it has: check, demonstrations, n"),
        (["--recipe", "asking", "--n", "many"], 2, "should be a valid integer"),
        (["--recipe", "asking", "-p", "n=many"], 1, "parameter `n`: expected a whole number"),
        (["--recipe", "asking", "-p", "n"], 2, "expected key=value"),
        (["--recipe", "asking", "-p", "n=3", "--n", "3"], 2, "n is given twice"),
        (["--recipe", "asking", "--n", "0"], 1, "(parameter `n`): Input should be greater than or equal to 1"),
        (["--recipe", "asking", "--cask", "../c"], 2, "expected a name, not a path"),
        (["--recipe", "asking", "--tau", "0.1"], 2, "options of the capture go with it"),
        (["--recipe", "asking", "--cask", "c", "--no-capture"], 2, "leave --cask or --no-capture out"),
        (["--recipe", "asking", "--cask", "c", "--capture", "head=3"], 2, "head"),
        (["--recipe", "asking", "--cask", "c", "--capture", "tau=0.1", "--tau", "0.2"], 2, "tau is given twice"),
        (["--recipe", "asking", "--cask", "c", "--capture", "tail_logprobs=true", "--held-out"], 2, "given twice"),
        (["--recipe", "asking", "--cask", "c", "--max-length", "513"], 1, "context of 512"),
        (["--recipe", "asking", "--idempotency-key", "ö"], 2, "printable ASCII"),
        (["--recipe", "asking", "--budget", "0"], 1, "budget.generated_tokens"),
        (["--recipe", "asking", "--demonstrations", "nowhere.jsonl"], 2, "nowhere.jsonl is not a file"),
    ],
)
def test_what_is_refused_is_refused_before_the_upload(server, run, lines, options, code, words):
    got, out, err = run(server, "generate", lines, *options)
    assert (got, out) == (code, "")
    assert words in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert server.client.get("/v1/corpora").json()["data"] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- 1", "expected a mapping with `steps` and `emit`, got list"),
        ("steps: []", "expected a mapping with `steps` and `emit`, got steps"),
        ("{", "line 1"),
        ("", "got NoneType"),
    ],
)
def test_files_of_steps_that_are_none(run, lines, tmp_path, content, words):
    steps = tmp_path / "s.yaml"
    steps.write_text(content)
    code, _, err = run(None, "generate", lines, "--steps", steps)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())


def test_a_dry_run_shows_prompts_and_cost_and_keeps_nothing(server, run, lines):
    code, out, err = run(server, "generate", lines, "--recipe", "asking", "--dry-run", "--documents", "2")
    assert code == 0, err
    assert "line 1: 17 tokens" in out
    assert "Q: what is 0?\nA:" in out
    assert "what is 2?" not in out
    assert "20 lines give 40 requests: 700 tokens of prompts, at most 1,200 tokens written" in out
    assert "as the last generation wrote" not in out
    assert server.client.get("/v1/corpora").json()["data"] == []
    run(server, "generate", lines, "--recipe", "asking", "--wait")
    code, out, _ = run(server, "generate", lines, "--recipe", "asking", "--dry-run", "--json")
    document = json.loads(out)
    assert document["estimate"]["requests"] == 40
    assert document["tokens_per_second"] > 0
    assert "as the last generation wrote" in run(server, "generate", lines, "--recipe", "asking", "--dry-run")[1]


def test_a_dry_run_without_a_possible_request_fails(server, run, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(jsonl([{"question": "long" * 200}, [1]]))
    code, out, err = run(server, "generate", path, "--recipe", "asking", "--dry-run")
    assert (code, "no request can be made of these lines" in err) == (3, True)
    assert "2 requests cannot be made" in out
    told = " ".join(out.split())
    assert "not_an_object: line 2: the line is a JSON list; expected one JSON object per line" in told
    assert "prompt_too_long: line 1" in told.partition("cannot be made")[2]
    assert told.endswith("(and 1 more)")
    code, out, _ = run(server, "generate", path, "--recipe", "asking", "--dry-run", "--json")
    assert (code, json.loads(out)["refused"]) == (3, 2)


def test_a_dry_run_tells_of_a_field_that_no_line_has(server, run, lines, tmp_path, monkeypatch):
    code, _, err = run(server, "generate", lines, "--recipe", "cot", "--check", "answr", "--dry-run")
    assert (code, "needs the field 'answr'" in err, "there are" in err) == (1, True, True)
    monkeypatch.setattr("logitcask_services.cli.generate.SAMPLE_BYTES", 40)
    path = tmp_path / "late.jsonl"
    path.write_bytes(jsonl([{"question": "is it?"}, {"question": "is it?", "answr": 1}]))
    code, out, _ = run(server, "generate", path, "--recipe", "cot", "--check", "answr", "--dry-run")
    assert (code, "further ones may have it" in " ".join(out.split())) == (0, True)


def test_a_dry_run_renders_the_beginning_of_a_large_corpus(server, run, tmp_path, monkeypatch):
    monkeypatch.setattr("logitcask_services.cli.generate.SAMPLE_BYTES", 300)
    path = tmp_path / "large.jsonl"
    path.write_bytes(jsonl([{"question": f"{number:06}"} for number in range(1000)]))
    code, out, _ = run(server, "generate", path, "--recipe", "asking", "--dry-run", "--json")
    document = json.loads(out)
    assert (code, document["lines"], document["estimate"]["lines"]) == (0, 13, 1000)
    path.write_bytes(jsonl([{"question": "long" * 100}]))
    code, _, err = run(server, "generate", path, "--recipe", "asking", "--dry-run")
    assert (code, "the first line is longer" in err) == (2, True)
