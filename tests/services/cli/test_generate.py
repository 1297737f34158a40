"""`logitcask generate`: from a corpus to a cask in one command, and looking at what was written."""

import json
import re
import threading
from pathlib import Path

import pytest

from logitcask_schemas.api.generation import Generation
from logitcask_services.cli.dropped_rows import missing_corpora
from tests.support.services.generate_server import generations, start_server
from tests.support.services.service_harness import FINAL, jsonl, wait_for


def test_from_a_corpus_to_a_cask_in_one_command(server, run, lines):
    code, out, err = run(
        server, "generate", lines, "--recipe", "asking", "--n", "4", "--check", "[0-4]", "--cask", "c", "--wait",
        "--tau", "0.1", "--capture", "head_max=16", "--seed", "3", "--metadata", "a=b", "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert (document["status"], document["parameters"]) == ("completed", {"n": 4, "check": "[0-4]"})
    assert (document["seed"], document["metadata"]) == (3, {"a": "b"})
    assert document["stages"][0]["requests_total"] == 80
    [extraction] = document["extractions"]
    assert (extraction["status"], extraction["cask"], extraction["capture"]["tau"]) == ("completed", "c", 0.1)
    assert extraction["capture"]["head_max"] == 16
    kept = document["rows"]["kept"]
    assert f"{document['id']}: completed; recipe asking: {kept} rows kept of 20 lines" in err
    assert f"corpus {document['corpora'][0]['corpus_id']}: {kept} rows; cask c: {extraction['id']}" in err
    assert f"{extraction['id']}: completed; cask c" in err


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--capture", "tail_logprobs=true"], "tail_logprobs", True),
        (["--held-out"], "tail_logprobs", True),
        (["--capture", "mode=topk", "--capture", "k=8"], "mode", "topk"),
        (["--capture", "tau=0.2"], "tau", 0.2),
        ([], "tail_logprobs", False),
    ],
)
def test_every_way_to_say_what_is_captured_counts(server, run, lines, options, field, value):
    code, _, err = run(server, "generate", lines, "--recipe", "asking", "--cask", "c", *options)
    assert code == 0, err
    assert generations(server)[0]["extraction"]["capture"][field] == value


def test_without_a_cask_the_corpus_is_all_and_options_may_come_first(server, run, lines):
    code, out, err = run(server, "generate", "--recipe", "asking", lines, "--wait", "-p", 'check="."', "-p", "n=1")
    assert (code, out) == (0, ""), err
    [done] = generations(server)
    assert (done["extraction"], done["corpora"][0]["rows"], done["parameters"]["n"]) == (None, 20, 1)
    assert server.client.get("/v1/extractions").json()["data"] == []
    code, out, _ = run(server, "generate", "run", lines, "--recipe", "asking", "--no-capture")
    assert (code, out.strip()) == (0, generations(server)[0]["id"])


def test_steps_and_demonstrations_as_files(server, run, lines, tmp_path):
    steps = tmp_path / "steps.yaml"
    steps.write_text("steps:\n- {kind: generate, template: ask}\nemit: [{completion: output}]\n")
    code, _, err = run(server, "generate", lines, "--steps", steps, "--wait", "--budget", "1000000")
    assert "own steps" in run(server, "generate", "ls")[1]
    assert code == 0, err
    assert generations(server)[0]["budget"] == {"generated_tokens": 1_000_000}
    examples = tmp_path / "examples.jsonl"
    examples.write_bytes(jsonl([{"question": "1?", "answer": "1"}]))
    code, _, err = run(server, "generate", lines, "--recipe", "asking", "--demonstrations", examples, "--wait")
    assert code == 0, err
    newest = server.client.get("/v1/corpora").json()["data"]
    shown = next(corpus["id"] for corpus in newest if corpus["name"] == "examples.jsonl")
    assert generations(server)[0]["parameters"] == {"demonstrations": shown}
    assert generations(server)[0]["steps"][0]["demonstrations"]["corpus_id"] == shown


def test_a_generation_of_which_nothing_is_kept_ends_with_3(server, run, lines):
    code, _, err = run(server, "generate", lines, "--recipe", "asking", "--check", "nothing", "--wait")
    assert code == 3
    assert "error: no row was kept of 20 lines" in err
    advice = "look at a few texts with `generate show --step`, then change the pattern or the template"
    assert f"40 left out: no_match, step 1 (keep); {advice}" in " ".join(err.split())
    assert "all of them: logitcask jobs errors generation-" in err
    [failed] = generations(server)
    code, out, _ = run(server, "generate", "show", failed["id"], "--step", "2")
    out = " ".join(out.split())
    assert code == 0
    assert "no rows behind step 2 (check) `--step 1` shows the rows before it, `--dropped` those left out" in out
    assert f"40 left out: no_match, step 1 (keep); {advice}" in out
    shown = json.loads(run(server, "generate", "show", failed["id"], "--json")[1])["generation"]["rows"]
    assert shown["dropped_by_step"] == [{"step": 1, "code": "no_match", "rows": 40}]
    for command in ("jobs", "generate"):
        assert run(server, command, "resume", failed["id"], "--wait")[0] == 3
        assert run(server, command, "watch", failed["id"])[0] == 3


def test_a_suffix_without_a_corpus_is_told_when_the_generation_is_completed(server, run, lines):
    """Only then: a job that failed, or is under way, has no corpora."""
    run(server, "generate", lines, "--recipe", "asking", "--wait")
    [document] = generations(server)
    done = Generation.model_validate(document)
    assert list(missing_corpora(done)) == []
    other = done.emit[0].model_copy(update={"suffix": "extra"})
    more = done.model_copy(update={"emit": [*done.emit, other, other]})
    assert list(missing_corpora(more)) == ["no corpus (extra): no row could be written for it"]
    none = done.model_copy(update={"corpora": []})
    assert list(missing_corpora(none)) == ["no corpus: no row could be written for it"]
    for status in ("in_progress", "failed", "cancelled"):
        assert list(missing_corpora(none.model_copy(update={"status": status}))) == []


def test_rows_are_shown_in_a_readable_way(server, run, lines):
    run(server, "generate", lines, "--recipe", "asking", "--wait")
    [done] = generations(server)
    code, out, _ = run(server, "generate", "show", done["id"], "--dropped", "--limit", "40", "--step", "1")
    assert code == 0
    assert "question: what is 0?" in out
    assert "stop, sample 0, -" in out
    assert re.search(r"left out: no_match: step 1 \(keep\): line \d+, sample 1: expected that `output` matches", out)
    assert "rows 0 to 39 behind step 1 (keep)" in out
    assert "step 0 (generate, template ask): 40 of 40 requests" in out
    last = run(server, "generate", "show", done["id"], "--limit", "3")[1]
    assert "rows 0 to 2 behind step 2 (check); more: --after 3" in last
    assert re.search(r"checks: \w+: false", last)
    whole = json.loads(run(server, "generate", "show", done["id"], "--json", "--limit", "3")[1])
    assert (whole["generation"]["id"], len(whole["rows"]["data"])) == (done["id"], 3)
    printed = run(server, "generate", "rows", done["id"], "--step", "0")[1].splitlines()
    assert [json.loads(row)["line"] for row in printed] == [number for line in range(1, 21) for number in (line, line)]
    assert len(run(server, "generate", "rows", done["id"])[1].splitlines()) == done["rows"]["kept"]
    code, _, err = run(server, "generate", "show", done["id"], "--step", "9")
    assert (code, "expected -1 (the lines as they came) to 2" in err) == (1, True)


def test_what_rows_hold_cannot_steer_the_terminal(server, run, tmp_path):
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(jsonl([{"question": "\x1b[31mred\x9b", "custom_id": "\x1b]0;x"}]))
    run(server, "generate", path, "--recipe", "asking", "-p", 'check="."', "--wait")
    code, out, _ = run(server, "generate", "show", generations(server)[0]["id"])
    dry = run(server, "generate", path, "--recipe", "asking", "--dry-run")[1]
    assert code == 0
    assert "red" in out
    assert "red" in dry
    assert not {"\x1b", "\x9b"} & {*out, *dry}


def test_rows_while_the_teacher_has_not_answered(serve, run, lines, tmp_path):
    go_on = threading.Event()
    server = start_server(serve, tmp_path, answers=lambda prompt, seed: go_on.wait(30) and "5")
    try:
        identity = run(server, "generate", lines, "--recipe", "asking")[1].strip()
        wait_for(lambda: generations(server)[0]["stages"])
        shown = run(server, "generate", "show", identity)[1]
        behind = run(server, "generate", "show", identity, "--step", "1")[1]
        listed = run(server, "generate", "ls")[1]
        cancelled = run(server, "jobs", "cancel", identity)
    finally:
        go_on.set()
    assert "rows 0 to 4 as the lines came" in shown
    assert "no rows behind step 1 (keep) yet" in behind
    assert "0/40" in listed
    assert (cancelled[0], cancelled[1].strip()) == (0, f"{identity}: cancelling")
    wait_for(lambda: generations(server)[0]["status"] in FINAL)
    assert run(server, "generate", "watch", identity)[0] == 3
    code, _, err = run(server, "generate", "cancel", identity)
    assert (code, "cancelled" in err) == (1, True)


@pytest.mark.parametrize("command", ["show", "rows", "watch", "cancel", "resume"])
def test_an_unknown_id_tells_the_command_that_lists_them(server, run, command):
    code, _, err = run(server, "generate", command, "generation-0")
    told = "there is no generation 'generation-0'; `logitcask generate ls` (GET /v1/generations) lists them"
    assert (code, told in err) == (1, True)


def test_lists_and_single_ones(server, run, lines):
    run(server, "generate", lines, "--recipe", "asking", "--wait", "--cask", "c")
    [done] = generations(server)
    listed = run(server, "generate", "ls")[1]
    assert done["id"] in listed
    assert "asking" in listed
    assert json.loads(run(server, "generate", "ls", "--status", "failed", "--json")[1]) == {"generations": []}
    code, out, _ = run(server, "jobs", "show", done["id"])
    assert (code, f"{done['id']}: completed; recipe asking" in out) == (0, True)
    assert json.loads(run(server, "jobs", "show", done["id"], "--json")[1])["object"] == "generation"
    errors = [json.loads(line) for line in run(server, "jobs", "errors", done["id"])[1].splitlines()]
    assert {error["code"] for error in errors} == {"no_match"}
    assert run(server, "generate", "watch", done["id"])[0] == 0
    code, _, err = run(server, "generate", "show", "x y")
    assert (code, "'x y' is no generation's id; `logitcask generate ls` lists" in err) == (1, True)


def test_all_jobs_are_listed_with_what_they_are_about(server, run, lines):
    """Generations and extractions together, newest first; as JSON each kind under its own name."""
    run(server, "generate", lines, "--recipe", "asking", "--cask", "kept", "--wait")
    code, out, _ = run(server, "jobs", "ls")
    rows = [line.split() for line in out.splitlines()[1:]]
    [generation] = generations(server)
    [extraction] = [corpus["extraction_id"] for corpus in generation["corpora"]]
    assert (code, {row[0] for row in rows}) == (0, {generation["id"], extraction})
    [line] = [" ".join(row) for row in rows if row[0] == generation["id"]]
    assert "completed asking 40/40 requests of step 0" in line
    [line] = [" ".join(row) for row in rows if row[0] == extraction]
    assert f"completed kept {generation['rows']['kept']}/{generation['rows']['kept']} documents" in line
    document = json.loads(run(server, "jobs", "ls", "--json")[1])
    assert [job["id"] for job in document["extractions"]] == [extraction]
    assert document["generations"] == json.loads(run(server, "generate", "ls", "--json")[1])["generations"]
    document = json.loads(run(server, "jobs", "ls", "--json", "--limit", "1")[1])
    assert len(document["extractions"]) + len(document["generations"]) == 1


def test_the_guides_steps_and_budget_run(server, run, tmp_path, monkeypatch):
    """The commands of the guide's section, as they stand there."""
    monkeypatch.chdir(tmp_path)
    guide = (Path(__file__).parents[3] / "docs/generation.md").read_text()
    section = guide.partition("## Steps without a recipe\n")[2].partition("\n## ")[0]
    (tmp_path / "steps.yaml").write_text(section.partition("```yaml\n")[2].partition("```")[0])
    (tmp_path / "prompts.jsonl").write_bytes(jsonl([{"prompt": f"Once {number}"} for number in range(9)]))
    commands = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    dry, real = (run(server, *command.split()[1:]) for command in commands)
    assert (dry[0], "9 lines give 18 requests" in dry[1]) == (0, True)
    assert real[0] == 0, real[2]
    [done] = generations(server)
    assert (done["status"], done["budget"], done["recipe"]) == ("completed", {"generated_tokens": 20_000}, None)
    assert done["rows"]["kept"] > 0


def test_a_budget_leaves_out_what_it_does_not_reach(server, run, tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_bytes(jsonl([{"question": f"what is {number}?"} for number in range(100)]))
    code, _, err = run(server, "generate", path, "--recipe", "asking", "--budget", "100", "--wait")
    [done] = generations(server)
    spent = done["rows"]["dropped"]["budget_spent"]
    assert 0 < spent < 200
    assert (code, f"{spent} left out: budget_spent, step 0 (generate); raise --budget" in " ".join(err.split())) == (
        0,
        True,
    )
    code, _, err = run(server, "generate", path, "--recipe", "asking", "--budget", "0")
    assert (code, "generated_tokens" in err) == (1, True)


def test_recipes_are_listed_with_their_parameters(server, run):
    code, out, _ = run(server, "generate", "recipes")
    assert code == 0
    assert 'asking, of the operator\n  Ask [n times].\n  -p n=2\n  -p check="[05]"\n' in out
    assert "\ncot\n" in out
    evolve = out.partition("\nevolve\n")[2].partition("\nicl\n")[0]
    assert '\n  lines: {"instruction"}.\n  -p target=... (required)\n' in evolve
    assert "=null" not in evolve
    recipes = json.loads(run(server, "generate", "recipes", "--json")[1])["recipes"]
    assert [recipe["required"] for recipe in recipes if recipe["name"] == "evolve"] == [["target"]]
    assert {"cot", "asking"} <= {recipe["name"] for recipe in recipes}


def test_the_same_key_starts_one_generation(server, run, lines):
    once = [run(server, "generate", lines, "--recipe", "asking", "--idempotency-key", "k")[1] for _ in range(2)]
    assert once[0] == once[1]
    assert len(generations(server)) == 1


def test_help_names_the_commands_and_the_corpus(run):
    code, out, _ = run(None, "generate", "--help")
    assert code == 0
    assert {"run", "show", "rows", "recipes", "ls", "watch", "cancel", "resume"} <= {*out.replace("│", " ").split()}
    assert "--recipe" in run(None, "generate", "run", "--help")[1]
