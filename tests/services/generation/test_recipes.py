"""Recipes: the built-in ones resolve, parameters go where they belong, and what is wrong is said in a sentence."""

import json
import re
from pathlib import Path

import pytest
import yaml

from logitcask_schemas.api.generation import GenerationPlan, GenerationRequest, StoredGeneration
from logitcask_services.generation.compile import parsed_templates
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.recipes import RecipeBook
from logitcask_services.generation.step_checks import check_steps

BUILT_IN = Path(__file__).parents[3] / "services/logitcask_services/generation/built_in"
RECIPES = [
    "answer",
    "continue",
    "conversation",
    "cot",
    "counterfactual",
    "evolve",
    "icl",
    "judge",
    "program",
    "rationalize",
    "reflect",
    "self-consistency",
    "self-instruct",
    "seqkd",
    "socratic",
    "step-by-step",
]
REQUIRED = {"self-instruct": {"target": 300}, "evolve": {"target": 300}}
VARIANTS = [
    *((name, REQUIRED.get(name, {})) for name in RECIPES),
    ("seqkd", {"field": "question", "n": 4, "temperature": 1, "min_tokens": 8, "stop": ["###"], "whole": True}),
    ("seqkd", {"field": "instruction"}),
    ("seqkd", {"field": "input-ids"}),
    ("icl", {"demonstrations": "corpus-1", "k": 8, "choose": "bm25"}),
    ("icl", {"candidates": 16, "k": 2, "choose": "seeded"}),
    ("cot", {"n": 4, "check": "answer"}),
    ("cot", {"demonstrations": "corpus-1", "k": 6, "answer": "choice", "check": "answer", "marker": None}),
    ("step-by-step", {"demonstrations": "corpus-1", "check": "answer"}),
    ("self-consistency", {"demonstrations": "corpus-1", "keep": "one", "min_share": 0.5}),
    ("socratic", {"check": "answer"}),
    ("program", {"check": "answer"}),
    ("rationalize", {"contrast": "rationalize-wrong", "demonstrations": "corpus-1"}),
    ("evolve", {"target": 10, "template": "evolve-breadth"}),
    ("judge", {"field": "instruction", "judge": "judge-instruction", "otherwise": "mark"}),
    ("judge", {"judge": "judge-reference"}),
    ("answer", {"template": "instruction-input"}),
    ("reflect", {"select": True}),
    ("continue", {"whole": True}),
]


def request(**fields):
    return GenerationRequest(corpus_id="corpus-1", **fields)


def resolved(recipe, parameters=None, book=None):
    return (book or RecipeBook(None)).resolve(request(recipe=recipe, parameters=parameters or {}))


def write(folder, name, content):
    """A recipe of the operator's: a small good one with `content` in place of its parts."""
    good = {
        "description": "Small.",
        "steps": [{"kind": "generate", "template": "prompt"}],
        "emit": [{"completion": "output"}],
    }
    (folder / f"{name}.yaml").write_text(json.dumps({**good, **content}))  # JSON is YAML
    return RecipeBook(folder)


# -- built-in --------------------------------------------------------------------------------------------------------


def test_these_are_there():
    listed = RecipeBook(None).list()
    assert [summary.name for summary in listed] == RECIPES
    assert {summary.source for summary in listed} == {"built-in"}
    assert {len(summary.description) < 120 for summary in listed} == {True}
    cot = next(summary for summary in listed if summary.name == "cot")
    assert cot.parameters["temperature"] == 0.7
    assert cot.parameters["check"] is None


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_a_built_in_recipe_resolves_and_survives_the_database(name, parameters):
    stored = resolved(name, parameters)
    assert stored.steps
    assert stored.emit
    assert StoredGeneration.model_validate_json(stored.model_dump_json()) == stored


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_method_and_paper(name):
    head = (BUILT_IN / f"recipes/{name}.yaml").read_text().partition("description:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "arXiv:2" in head or "arXiv:1" in head


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_the_fields_that_a_recipe_says_it_reads_are_enough(name, parameters):
    """With them the steps find all they need, and without any of them they do not."""
    [recipe] = [recipe for recipe in RecipeBook(None).list() if recipe.name == name]
    said = set(re.findall(r'"(\w+)"', recipe.lines))
    stored = resolved(name, parameters)
    templates = parsed_templates(stored.templates)
    check_steps(stored.steps, stored.emit, templates, said)
    with pytest.raises(RecipeError, match="needs the field"):
        check_steps(stored.steps, stored.emit, templates, set())


def test_what_must_be_given_is_said():
    required = {recipe.name: recipe.required for recipe in RecipeBook(None).list() if recipe.required}
    assert required == {"evolve": ["target"], "self-instruct": ["target"]}


def test_no_template_is_unused():
    used = {template for name, parameters in VARIANTS for template in resolved(name, parameters).templates}
    assert used == {path.stem for path in (BUILT_IN / "templates").glob("*.md")}


@pytest.mark.parametrize("path", sorted((BUILT_IN / "templates").glob("*.md")), ids=lambda path: path.stem)
def test_a_built_in_template_has_the_head_that_is_documented(path):
    opening, head, body = path.read_text().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert opening == ""
    assert fields.keys() <= {"kind", "description", "stop", "fields"}
    assert fields["description"].endswith(".")
    assert fields["kind"] in ("text", "chat", "ids")
    marked = [line for line in body.splitlines() if line.startswith("[") and line.endswith("]")]
    assert bool(marked) == (fields["kind"] == "chat")
    assert (fields["kind"] == "ids") == (not body)
    assert all(name in body for name in fields.get("fields", [])) or fields["kind"] == "ids"


def test_the_plain_recipe_step_by_step():
    stored = resolved("cot", {"n": 4, "check": "answer"})
    generate, keep, parse, check = (step.model_dump(exclude_defaults=True) for step in stored.steps)
    assert generate == {"template": "cot-zero-shot", "sampling": {"n": 4, "temperature": 0.7}}
    assert keep == {"finish": "stop"}
    assert parse == {"into": "predicted", "rationale": "reasoning", "marker": "The answer is"}
    assert check == {"of": "predicted", "against": "answer"}
    assert [row.model_dump(exclude_defaults=True) for row in stored.emit] == [
        {"prompt": "question", "completion": "output"}
    ]


def test_the_answer_of_a_line_is_never_overwritten():
    """A check against a field that an earlier step wrote would compare it with itself."""
    for name, parameters in VARIANTS:
        steps = resolved(name, parameters).steps
        written = {step.into for step in steps if hasattr(step, "into")}
        assert not written & {"question", "answer", "instruction", "prompt", "label", "target", "wrong_answer"}, name


def test_demonstrations_change_template_and_prompt_of_the_student():
    stored = resolved("cot", {"demonstrations": "corpus-9", "k": 8})
    assert stored.steps[0].template == "cot-few-shot"
    assert stored.steps[0].demonstrations.model_dump() == {
        "corpus_id": "corpus-9",
        "k": 8,
        "choose": "first",
        "query": "question",
    }
    assert [row.prompt for row in stored.emit] == [None]
    assert resolved("rationalize").steps[0].demonstrations is None
    assert resolved("rationalize", {"demonstrations": "corpus-9"}).steps[-3].demonstrations.corpus_id == "corpus-9"


def test_candidates_are_scored_and_then_shown():
    score, generate, _ = resolved("icl", {"candidates": 16, "k": 2}).steps
    assert (score.candidates.k, score.keep, score.into) == (16, 2, "shown")
    assert (generate.demonstrations.choose, generate.demonstrations.query) == ("field", "shown")


def test_the_comparison_follows_the_kind_of_answer():
    def equal(answer):
        return resolved("cot", {"answer": answer, "check": "answer"}).steps[-1].equal

    assert [equal(answer) for answer in ("number", "choice", "text")] == ["number", "text", "text"]


# -- parameters ------------------------------------------------------------------------------------------------------


def test_a_value_keeps_its_json_type(tmp_path):
    step = {"kind": "generate", "template": "$t", "sampling": {"n": "$n", "temperature": "$heat", "stop": "$stop"}}
    book = write(
        tmp_path, "typed", {"parameters": {"t": "prompt", "n": 2, "heat": 1.5, "stop": ["a"]}, "steps": [step]}
    )
    sampling = resolved("typed", {"stop": ["b", "$n"], "heat": 2}, book).steps[0].sampling
    assert (sampling.n, sampling.temperature, sampling.stop) == (2, 2.0, ("b", "$n"))  # a value is not filled again


def test_only_a_whole_value_is_a_parameter(tmp_path):
    steps = [
        {"kind": "generate", "template": "prompt", "sampling": {"stop": ["$", "a$n", "$n b"]}},
        {"kind": "keep", "matches": "x$"},
    ]
    book = write(tmp_path, "plain", {"parameters": {"n": 2}, "steps": steps})
    stored = resolved("plain", book=book)
    assert stored.steps[0].sampling.stop == ("$", "a$n", "$n b")
    assert stored.steps[1].matches == "x$"


@pytest.mark.parametrize("off", [None, False, 0, 0.0, "", [], {}])
@pytest.mark.parametrize("on", [True, 1, 0.5, "no", [0], "0"])
def test_conditions(tmp_path, off, on):
    steps = [
        {"kind": "generate", "template": "prompt"},
        {"kind": "keep", "when": "$x", "min_tokens": 1},
        {"kind": "keep", "unless": "$x", "min_tokens": 2},
    ]
    emit = [{"completion": "output"}, {"suffix": "more", "completion": "output", "when": "$x"}]
    for value, bound, rows in ((off, 2, 1), (on, 1, 2)):
        book = write(tmp_path, "conditions", {"parameters": {"x": value}, "steps": steps, "emit": emit})
        stored = resolved("conditions", book=book)
        assert [step.min_tokens for step in stored.steps[1:]] == [bound]
        assert len(stored.emit) == rows


def test_emit_of_the_request_goes_before_that_of_the_recipe():
    plan = GenerationPlan.model_validate({"recipe": "answer", "emit": [{"completion": "output", "context": "none"}]})
    assert [row.context for row in RecipeBook(None).plan(plan).emit] == ["none"]


@pytest.mark.parametrize(
    ("recipe", "parameters", "words"),
    [
        ("cots", {}, "there is no recipe `cots`; there are: answer, continue, conversation, cot, "),
        ("cot", {"temp": 1}, "recipe `cot` has no parameter `temp`; it has: answer, check, "),
        ("evolve", {}, "recipe `evolve` needs the parameter `target`, which has no default; give it"),
        ("evolve", {"target": None}, "recipe `evolve` needs the parameter `target`"),
        ("cot", {"n": "4"}, r"`cot`, parameter `n`: expected a whole number \(its default is 1\), got a text: '4'"),
        ("cot", {"n": 4.0}, "parameter `n`: expected a whole number .*, got a number: '4.0'"),
        ("cot", {"n": True}, "parameter `n`: expected a whole number .*, got true or false: 'True'"),
        ("cot", {"temperature": "hot"}, "parameter `temperature`: expected a number .*, got a text: 'hot'"),
        ("seqkd", {"stop": "x"}, "parameter `stop`: expected a list .*, got a text: 'x'"),
        ("seqkd", {"whole": 1}, "parameter `whole`: expected true or false .*, got a whole number: '1'"),
        ("seqkd", {"field": None}, r"`template` \(parameter `field`\): Input should be a valid string, got 'None'"),
        ("cot", {"answer": "json"}, "`cot`, parameter `answer`: expected one of number, choice, text; got 'json'"),
        ("cot", {"k": 8}, "`cot`, parameter `k`: it changes nothing, since the steps that use it are left out"),
        ("cot", {"check": 5}, r"cot.yaml, `steps` entry 4 \(check\): `against` \(parameter `check`\): .*, got '5'"),
        (
            "seqkd",
            {"n": 4},
            r"seqkd.yaml, `steps` entry 0 \(generate\): `sampling`: n is 4 at temperature 0, .*set a t",
        ),
        ("seqkd", {"max_tokens": 0}, r"`sampling.max_tokens` \(parameter `max_tokens`\): .*or equal to 1, got '0'"),
        ("seqkd", {"stop": [""]}, r"`sampling.stop.0` \(parameter `stop`\): .*at least 1 character"),
        ("seqkd", {"field": "mine"}, r"step 0 \(generate\): there is no template `mine`; there are: .*, prompt, "),
        ("cot", {"student": "mine"}, "emit row 0: there is no template `mine`"),
        (
            "cot",
            {"context": "all"},
            r"`emit` entry 0: `context` \(parameter `context`\): .*'teacher' or 'none', got 'all'",
        ),
    ],
)
def test_what_cannot_be_asked_for(recipe, parameters, words):
    with pytest.raises(RecipeError, match=words):
        resolved(recipe, parameters)


def test_a_parameter_with_its_default_may_be_given_where_it_is_unused():
    assert resolved("cot", {"k": 6}).steps == resolved("cot").steps


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "give a `recipe` or `steps`; recipes: answer, "),
        ({"recipe": "cot", "steps": []}, "both the recipe `cot` and `steps` are given; give one of the two"),
        ({"steps": [{"kind": "dedupe"}]}, "`steps` are given without `emit`"),
        ({"steps": [], "emit": [{"completion": "output"}]}, "`steps` is empty"),
        ({"recipe": "seqkd", "emit": []}, "`emit` is empty"),
        ({"steps": [{"kind": "dedupe"}], "parameters": {"n": 1}}, "`parameters` are those of a recipe"),
    ],
)
def test_either_a_recipe_or_steps(fields, words):
    with pytest.raises(RecipeError, match=words):
        RecipeBook(None).resolve(GenerationRequest.model_validate({"corpus_id": "corpus-1", **fields}))


def test_steps_without_a_recipe():
    steps = [{"kind": "generate", "template": "question"}, {"kind": "verify", "template": "judge", "accept": "9"}]
    plan = GenerationPlan.model_validate({"steps": steps, "emit": [{"completion": "output", "prompt": "instruction"}]})
    assert sorted(RecipeBook(None).plan(plan).templates) == ["instruction", "judge", "question"]


# -- the operator's folder -------------------------------------------------------------------------------------------


def test_the_operators_files_win(tmp_path):
    book = write(tmp_path, "seqkd", {"description": "Ours."})
    (tmp_path / "prompt.md").write_text("---\nkind: text\n---\n> {{ prompt }}\n")
    (tmp_path / "README.md").write_text("No template.")
    ours = next(summary for summary in book.list() if summary.name == "seqkd")
    assert (ours.source, ours.description) == ("operator", "Ours.")
    assert sum(summary.source == "built-in" for summary in book.list()) == len(RECIPES) - 1
    assert resolved("seqkd", book=book).templates["prompt"].text.endswith("> {{ prompt }}\n")


def test_a_changed_file_changes_the_next_job_only(tmp_path):
    path = tmp_path / "prompt.md"
    path.write_text("one")
    book = RecipeBook(tmp_path)
    before = resolved("seqkd", book=book)
    path.write_text("two")
    after = resolved("seqkd", book=book)
    assert (before.templates["prompt"].text, after.templates["prompt"].text) == ("one", "two")
    assert before.templates["prompt"].sha256 == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert after.templates["prompt"].sha256 != before.templates["prompt"].sha256


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match="is not there; make it first"):
        RecipeBook(tmp_path / "missing")


@pytest.mark.parametrize("name", ["Mine.yaml", "my recipe.yaml", "mine.yml"])
def test_a_recipe_that_cannot_be_asked_for_by_name(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(RecipeError, match="needs another name: 1 to 64 small letters"):
        RecipeBook(tmp_path).list()


STEP = {"kind": "generate", "template": "prompt"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"description": None}, "`description` must be a text, got nothing"),
        ({"description": " "}, "`description` must be a text"),
        ({"parameters": ["n"]}, "`parameters` must be a mapping of names to defaults, got a list"),
        ({"parameters": {"a b": 1}}, "parameter 'a b' must have a name of letters, digits and _"),
        ({"required": "n"}, "`required` must be a list of parameters, got a str"),
        ({"required": ["n"]}, "`required` names 'n', which is not among `parameters`"),
        ({"required": [["n"]]}, "`required` names"),
        ({"required": ["n"], "parameters": {"n": 1}}, "parameter `n` is required, so its default must be null"),
        ({"steps": []}, "`steps` must be a list with at least one entry, got an empty list"),
        ({"steps": {"kind": "keep"}}, "`steps` must be a list with at least one entry, got a dict"),
        ({"steps": ["generate"]}, "`steps` entry 0: expected a mapping, got a str"),
        ({"emit": None}, "`emit` must be a list with at least one entry, got nothing"),
        ({"stages": []}, "unknown `stages`; a recipe has description, lines, parameters, required, steps, emit"),
        ({"steps": [{**STEP, "into": "$x"}]}, "`steps` entry 0: `\\$x` is not among `parameters`"),
        ({"steps": [STEP, {"kind": "keep", "when": "yes"}]}, "`steps` entry 1: `when` must be `\\$name` of a param"),
        ({"steps": [STEP, {"kind": "check", "equal": {"case": 3}}]}, "entry 1: `case` must be `\\$name`"),
        ({"parameters": {"x": 0}, "steps": [{**STEP, "when": "$x"}]}, "no entry of `steps` is left"),
        ({"parameters": {"x": 1}, "emit": [{"completion": "output", "unless": "$x"}]}, "no entry of `emit` is left"),
        ({"steps": [{"template": "prompt"}]}, r"`steps` entry 0: .*'kind'"),
        ({"steps": [{"kind": "think"}]}, r"`steps` entry 0 \(think\): .*'think'"),
        ({"steps": [{"kind": "generate"}]}, r"entry 0 \(generate\): `template`: Field required"),
        ({"steps": [{**STEP, "tempo": 1}]}, r"entry 0 \(generate\): `tempo`: Extra inputs are not permitted, got '1'"),
        ({"steps": [STEP, {"kind": "keep", "best": 1}]}, r"entry 1 \(keep\): the entry: `than` and `best` need `more`"),
        ({"steps": [{**STEP, "template": "$x"}], "parameters": {"x": [1]}}, r"`template` \(parameter `x`\)"),
    ],
)
def test_a_recipe_that_is_wrong_is_named(tmp_path, content, words):
    book = write(tmp_path, "wrong", content)
    with pytest.raises(RecipeError, match=r"recipe .*wrong\.yaml.*" + words):
        resolved("wrong", book=book)


def test_the_guides_example_resolves(tmp_path):
    guide = (Path(__file__).parents[3] / "docs/generation.md").read_text()
    (tmp_path / "explain.yaml").write_text(guide.partition("```yaml\n")[2].partition("```")[0])
    (tmp_path / "explain.md").write_text(guide.partition("```markdown\n")[2].partition("```")[0])
    for name in ("explain-check", "explain-question"):
        (tmp_path / f"{name}.md").write_text("---\n")
    book = RecipeBook(tmp_path)
    kinds = [step.kind for step in resolved("explain", {"n": 3, "judge": False, "demonstrations": "c"}, book).steps]
    assert kinds == ["generate", "keep", "dedupe"]
    stored = resolved("explain", {"demonstrations": "corpus-2"}, book)
    assert stored.steps[0].demonstrations.corpus_id == "corpus-2"
    assert stored.templates.keys() == {"explain", "explain-check", "explain-question"}


def test_the_guide_lists_every_recipe():
    guide = (Path(__file__).parents[3] / "docs/generation.md").read_text()
    assert [name for name in RECIPES if f"\n| `{name}` | " not in guide] == []
