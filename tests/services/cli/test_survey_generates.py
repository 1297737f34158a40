"""Each `generate` command of docs/survey.md runs as it stands, from lines to a corpus and, where it says so, a cask."""

import json
import shlex

import pytest

from logitcask import Cask
from logitcask_services.jobs.loaded_teacher import Teacher
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import FakeEngine, FakeTokenizer
from tests.support.services.recipe_answers import recipe_answer, recipe_lines
from tests.support.services.service_harness import jsonl, wait_for
from tests.support.survey_commands import survey_commands

WITH_PASSAGE = "---\nkind: text\ndescription: d\nfields: [passage, question]\n---\n{{ passage }} {{ question }}"
SUFFIXES = {"step-by-step": ["label", "rationale"], "socratic": ["decompose", "solve"]}
PROGRAM = "print(3 + 4)"
SMALL = {"target=500": "target=26"}
"""A made-up teacher has not so many ideas."""


@pytest.mark.parametrize("command", survey_commands("generate"))
def test_it_runs(command, serve, run, tmp_path, monkeypatch):
    program, *options = [SMALL.get(word, word) for word in shlex.split(command)]
    recipe = options[options.index("--recipe") + 1]
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "with-passage.md").write_text(WITH_PASSAGE)
    answers = (lambda prompt, seed: PROGRAM) if recipe == "program" else recipe_answer(recipe)

    def load():
        generator = FakeGenerator(answers=answers)
        return Teacher(engine=FakeEngine(max_model_len=4096), generator=generator, tokenizer=FakeTokenizer())

    server = serve(load=load, templates=templates)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    monkeypatch.chdir(tmp_path)  # where d.jsonl is
    (tmp_path / "lines.jsonl").write_bytes(jsonl(recipe_lines(24)))
    (tmp_path / "d.jsonl").write_bytes(jsonl(recipe_lines(8)))
    code, out, err = run(server, program, "lines.jsonl", *options, "--wait", "--json")
    assert code == 0, err
    done = json.loads(out)
    assert done["status"] == "completed"
    assert done["rows"]["kept"] > 0
    if "--cask" not in options:
        assert [made["cask"] for made in done["corpora"]] == [None] * len(done["corpora"])
        return
    name = options[options.index("--cask") + 1]
    casks = [f"{name}.{suffix}" for suffix in SUFFIXES[recipe]] if recipe in SUFFIXES else [name]
    assert [made["cask"] for made in done["corpora"]] == casks
    assert all(len(Cask.open(tmp_path / "casks" / cask)) > 0 for cask in casks)


def test_a_command_that_is_wrong_fails(serve, run, tmp_path):
    """The control: the same, for a recipe that is not there."""
    server = serve()
    (tmp_path / "lines.jsonl").write_bytes(jsonl(recipe_lines(1)))
    code, _, err = run(server, "generate", tmp_path / "lines.jsonl", "--recipe", "socrates")
    assert (code, "there is no recipe `socrates`" in err) == (1, True)
