"""Whether steps fit together, before anything runs."""

import pytest
from pydantic import TypeAdapter

from logitcask_schemas.api.generation_steps import EmitRow, Step
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.step_checks import check_steps
from tests.support.services.generation import templates

STEPS = TypeAdapter(list[Step])
WRITE = {"kind": "generate", "template": "answer"}
SAMPLE = {**WRITE, "sampling": {"n": 2, "temperature": 1.0}}
RANK = {"kind": "score", "template": "shots", "of": "answer", "into": "best", "candidates": {"k": 4}}
TEMPLATES = templates(
    pool=("text", ["examples"], "{{ examples }}"),
    parent=("text", ["parent", "method"], "{{ parent }} {{ method }}"),
    final=("text", ["output"], "{{ output }}"),
)


def check(*steps, emit=(), fields=("question", "answer")):
    rows = [EmitRow.model_validate(entry) for entry in emit]
    known = None if fields is None else frozenset(fields)
    check_steps(STEPS.validate_python(list(steps)), rows, TEMPLATES, known)


@pytest.mark.parametrize(
    ("steps", "emit"),
    [
        ([WRITE], [{"completion": "output"}]),
        ([{**WRITE, "template": "shots", "demonstrations": {"choose": "bm25"}}], [{"completion": "output"}]),
        ([RANK, {**WRITE, "template": "shots", "demonstrations": {"choose": "field", "query": "best"}}], []),
        ([SAMPLE, {"kind": "parse"}, {"kind": "vote"}, {"kind": "keep", "more": "majority_share", "best": 1}], []),
        (
            [
                {"kind": "verify", "template": "chat", "accept": "yes"},
                {"kind": "keep", "of": "verdict", "max_tokens": 5},
            ],
            [],
        ),
        ([{"kind": "grow", "template": "pool", "field": "question", "target": 9}, WRITE], [{"completion": "output"}]),
        ([{"kind": "grow", "template": "parent", "field": "question", "mode": "evolve", "target": 9}], []),
        ([], [{"prompt": "answer", "completion_template": "label", "context": "none"}]),
        ([WRITE], [{"prompt": "chat-shots", "completion": "output"}]),
    ],
)
def test_steps_that_fit(steps, emit):
    check(*steps, emit=emit)
    check(*steps, emit=emit, fields=None)


@pytest.mark.parametrize(
    ("steps", "emit", "words"),
    [
        ([{**WRITE, "template": "nix"}], [], "step 0 (generate): `template`: there is no template 'nix'; expected one"),
        ([WRITE, {"kind": "check", "against": "gold"}], [], "step 1 (check): `against` needs the field 'gold'"),
        ([{"kind": "check", "of": "label", "against": "answer"}], [], "step 0 (check): `of` needs the field 'label'"),
        ([{**WRITE, "template": "final"}], [], "step 0 (generate): `template final` needs the field 'output'"),
        ([{"kind": "parse"}], [], "step 0 (parse): `of` needs the field 'output'"),
        ([WRITE, {"kind": "parse", "into": "output"}], [], "step 1 (parse): it would hide 'output'"),
        ([WRITE, {"kind": "parse", "answer": "regex", "pattern": "("}], [], "step 1 (parse): `pattern`: '('"),
        ([{"kind": "verify", "template": "answer", "accept": "*"}], [], "step 0 (verify): `accept`: '*'"),
        ([WRITE, {"kind": "keep", "matches": "[z-a]"}], [], "step 1 (keep): `matches`: '[z-a]'"),
        ([{"kind": "keep", "of": "answer", "finish": "stop"}], [], "step 0 (keep): `finish` is about what the teacher"),
        ([WRITE, {"kind": "keep", "of": "answer", "max_tokens": 1}], [], "expected one of output"),
        ([WRITE, {"kind": "keep", "more": "a", "than": "answer"}], [], "step 1 (keep): `more` needs the field 'a'"),
        ([WRITE, {"kind": "keep", "more": "answer", "best": 1}], [], "step 1 (keep): `best` is among the samples"),
        ([WRITE, {"kind": "vote", "by": "output"}], [], "step 1 (vote): votes are among the samples of a row, and no"),
        ([{"kind": "dedupe"}], [], "step 0 (dedupe): `field` needs the field 'output'"),
        ([{"kind": "score", "template": "answer", "of": "x", "into": "y"}], [], "step 0 (score): `of` needs the field"),
        ([{**RANK, "keep": 5}], [], "step 0 (score): `keep` is 5, and there are 4 candidates"),
        ([{**RANK, "demonstrations": {}}], [], "shown one at a time; leave `demonstrations` out"),
        ([{**RANK, "template": "answer"}], [], "shows no demonstrations; leave `candidates` out"),
        ([{**WRITE, "template": "shots"}], [], "step 0 (generate): template shots shows demonstrations; say with"),
        ([{**WRITE, "demonstrations": {}}], [], "template answer shows no demonstrations; leave `demonstrations` out"),
        (
            [{**WRITE, "template": "shots", "demonstrations": {"choose": "bm25", "query": "q"}}],
            [],
            "`demonstrations.query` needs the field 'q'",
        ),
        (
            [{**WRITE, "template": "shots", "demonstrations": {"choose": "field", "query": "question"}}],
            [],
            "expected one of none",
        ),
        ([{"kind": "grow", "template": "answer", "target": 9}], [], "step 0 (grow): template answer uses ['question']"),
        ([{"kind": "grow", "template": "shots", "target": 9}], [], "a pool's rows are `examples`"),
        ([{"kind": "grow", "template": "pool", "target": 9}], [], "`field` needs the field 'instruction'"),
        (
            [{"kind": "grow", "template": "pool", "field": "question", "target": 9, "min_words": 9, "max_words": 8}],
            [],
            "min_words 9 is more than max_words 8",
        ),
        (
            [
                {"kind": "grow", "template": "pool", "field": "question", "target": 9},
                {"kind": "dedupe", "field": "answer"},
            ],
            [],
            "step 1 (dedupe): `field` needs the field 'answer'",
        ),
        (
            [WRITE],
            [{"completion": "answer"}],
            "emit 0: `completion` is 'answer', which no generate or verify step writes",
        ),
        (
            [WRITE],
            [{"completion": "output"}, {"completion": "output", "prompt": "nix"}],
            "emit 1: `prompt`: there is no",
        ),
        ([], [{"prompt": "final", "completion_template": "label", "context": "none"}], "emit 0: `prompt final` needs"),
        ([], [{"prompt": "answer", "completion_template": "final", "context": "none"}], "`completion_template final`"),
        ([], [{"prompt": "answer", "completion_template": "chat", "context": "none"}], "should be of kind text"),
        ([], [{"prompt": "answer", "completion_template": "shots", "context": "none"}], "without demonstrations"),
    ],
)
def test_steps_that_do_not_fit(steps, emit, words):
    with pytest.raises(RecipeError) as caught:
        check(*steps, emit=emit)
    assert words in str(caught.value)


def test_without_a_known_corpus_any_field_may_be_there():
    check({**WRITE, "template": "final"}, {"kind": "dedupe", "field": "x"}, fields=None)
    with pytest.raises(RecipeError, match="no generate or verify step"):
        check(emit=[{"completion": "x"}], fields=None)
