"""Teacher steps: what they ask, and what becomes of the answers."""

import pytest
from pydantic import TypeAdapter

from logitcask_schemas.api.generation_steps import Step
from logitcask_services.engines.generator import GenerationTask, ScoreTask
from logitcask_services.generation.compile import StepResources, compile_steps
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.rows import Answer, Dropped, Refusal, Row, child_id, request_seed
from tests.support.services.fake_teacher import FakeTokenizer
from tests.support.services.generation import row, rows, stored, wrote

STEPS = TypeAdapter(list[Step])
SAMPLES = {"n": 3, "temperature": 1.0, "max_tokens": 20, "stop": ["!"]}


def compiled(*steps, own=(), window=600, **resources):
    return compile_steps(
        STEPS.validate_python(list(steps)),
        StepResources(
            tokenizer=FakeTokenizer(),
            max_model_len=window,
            templates=stored(**resources),
            rows_of=lambda corpus_id: list(own) if corpus_id is None else rows(6),
            job_seed=5,
        ),
    )


def teacher_step(*steps, **resources):
    kind, step = compiled(*steps, **resources)[-1]
    assert kind == "teacher"
    return step


def text_of(ids):
    return FakeTokenizer().decode(list(ids))


def test_samples_are_rows_of_their_own():
    step = teacher_step({"kind": "generate", "template": "answer", "sampling": SAMPLES})
    asked = rows(1)[0]
    assert step.requests_per_row == 3
    tasks = [step.request(asked, number) for number in range(3)]
    assert all(isinstance(task, GenerationTask) for task in tasks)
    assert {text_of(task.prompt_ids_C) for task in tasks} == {"<256>Q: 0 and 0\nA:"}
    ids = [child_id(asked.id, 0, number) for number in range(3)]
    assert [task.seed for task in tasks] == [request_seed(name, 5) for name in ids]
    assert tasks[0].sampling.stop == ("!",)
    samples = list(step.join(asked, [wrote("zero", logprob=-2.0), wrote(""), wrote("0")]))
    assert [sample.id for sample in samples] == ids
    assert {(sample.parent, sample.line, sample.custom_id) for sample in samples} == {(asked.id, 1, "q0")}
    assert [sample.fields["output"] for sample in samples] == ["zero", "", "0"]
    written = samples[0].written["output"]
    assert (written.token_ids, written.mean_logprob, written.sample) == (tuple(b"zero"), -0.5, 0)
    assert (written.template, written.seed) == ("answer", tasks[0].seed)
    assert list(written.prompt_ids()) == tasks[0].prompt_ids_C.tolist()
    assert written.bare_prompt_ids is None
    assert samples[1].written["output"].mean_logprob == 0.0
    assert asked.fields.keys() == {"question", "answer"}, "nothing is changed in place"


def test_one_sample_stays_the_row_that_it_is_of():
    """So that a vote behind it is among the samples of the step before."""
    first, second = (
        step
        for _, step in compiled(
            {"kind": "generate", "template": "answer", "sampling": SAMPLES, "into": "rationale"},
            {"kind": "generate", "template": "again", "into": "output"},
            again=("text", ["rationale"], "{{ rationale }} So:"),
        )
    )
    asked = rows(1)[0]
    samples = list(first.join(asked, [wrote("a"), wrote("b"), wrote("c")]))
    assert text_of(second.request(samples[1], 0).prompt_ids_C) == "<256>b So:"
    (answered,) = second.join(samples[1], [wrote("d")])
    assert (answered.id, answered.parent) == (samples[1].id, asked.id)
    assert {name: entry.text for name, entry in answered.written.items()} == {"rationale": "b", "output": "d"}
    assert second.request(samples[0], 0).seed != second.request(samples[1], 0).seed


def test_a_template_brings_its_own_stops():
    text = "---\nkind: text\ndescription: d\nstop: ['Q:', '!']\nfields: [question]\n---\n{{ question }}"
    from logitcask_schemas.api.generation import StoredTemplate
    from logitcask_services.generation.templates import PromptTemplate

    template = StoredTemplate(text=text, sha256=PromptTemplate.parse("s", text).sha256)
    resources = StepResources(
        tokenizer=FakeTokenizer(),
        max_model_len=99,
        templates={"s": template},
        rows_of=lambda corpus_id: [],
        job_seed=0,
    )
    ((_, step),) = compile_steps(
        STEPS.validate_python([{"kind": "generate", "template": "s", "sampling": SAMPLES}]), resources
    )
    assert step.request(rows(1)[0], 0).sampling.stop == ("Q:", "!")


def test_a_failed_sample_is_dropped_and_the_others_stay():
    step = teacher_step({"kind": "generate", "template": "answer", "sampling": SAMPLES})
    asked = rows(1)[0]
    failed = Answer(error=("generation_failed", "poisoned"))
    one, two, three = step.join(asked, [wrote("a"), failed, wrote("b")])
    assert isinstance(two, Dropped)
    assert (two.code, two.step, two.row.id) == ("generation_failed", 0, child_id(asked.id, 0, 1))
    assert two.message == "line 1, step 0 (generate): poisoned"
    assert isinstance(one, Row)
    assert isinstance(three, Row)


def test_a_refusals_message_is_not_said_twice():
    step = teacher_step({"kind": "generate", "template": "answer"}, window=10)
    asked = rows(1)[0]
    refusal = step.request(asked, 0)
    assert isinstance(refusal, Refusal)
    (dropped,) = step.join(asked, [Answer(error=(refusal.code, refusal.message))])
    assert (dropped.code, dropped.message) == ("prompt_too_long", refusal.message)


def test_demonstrations_are_shown_and_noted():
    own = rows(6)
    wanted = {"k": 2, "choose": "bm25"}
    step = teacher_step({"kind": "generate", "template": "shots", "demonstrations": wanted}, own=own)
    task = step.request(own[0], 0)
    assert text_of(task.prompt_ids_C).count("A:") == 3
    (answered,) = step.join(own[0], [wrote("x")])
    written = answered.written["output"]
    assert written.demonstrations == (own[1].id, own[2].id)
    assert list(written.prompt_ids()) == task.prompt_ids_C.tolist()
    assert text_of(written.bare_prompt_ids()) == "<256>Q: 0 and 0\nA:"


def test_a_field_that_is_written_over_leaves_the_prompt_as_it_was():
    step = teacher_step({"kind": "generate", "template": "answer", "into": "question"})
    asked = rows(1)[0]
    (rewritten,) = step.join(asked, [wrote("another")])
    assert rewritten.fields["question"] == "another"
    assert text_of(rewritten.written["question"].prompt_ids()) == "<256>Q: 0 and 0\nA:"


def test_a_demonstration_without_its_field_is_refused():
    own = [row(1, {"question": "a", "answer": "b"}), row(2, {"question": "c"})]
    step = teacher_step({"kind": "generate", "template": "shots", "demonstrations": {"k": 1}}, own=own)
    refusal = step.request(own[0], 0)
    assert (refusal.code, refusal.message[:26]) == ("unknown_field", "line 1, step 0 (generate):")
    assert "answer" in refusal.message


# -- score ---------------------------------------------------------------------------------------------------------


def test_a_text_is_scored_behind_its_prompt():
    step = teacher_step({"kind": "score", "template": "answer", "of": "answer", "into": "nats"})
    asked = row(1, {"question": "x", "answer": "ab"})
    task = step.request(asked, 0)
    assert isinstance(task, ScoreTask)
    assert (text_of(task.token_ids_L), task.first) == ("<256>Q: x\nA:ab", 8)
    (scored,) = step.join(asked, [Answer(logprob=-3.0, scored_tokens=2)])
    assert scored.fields["nats"] == -1.5
    (dropped,) = step.join(asked, [Answer(error=("too_long", "no"))])
    assert dropped.message == "line 1, step 0 (score): no"


@pytest.mark.parametrize(("answer", "said"), [(5, "5"), (-0.5, "-0.5")])
def test_a_number_is_scored_as_templates_say_it(answer, said):
    """Corpora have answers as JSON numbers."""
    step = teacher_step({"kind": "score", "template": "answer", "of": "answer", "into": "nats"})
    task = step.request(row(1, {"question": "x", "answer": answer}), 0)
    assert (text_of(task.token_ids_L), task.first) == (f"<256>Q: x\nA:{said}", 8)


def test_what_the_teacher_wrote_is_scored_by_its_own_ids():
    generate, score = (
        step
        for _, step in compiled(
            {"kind": "generate", "template": "answer"},
            {"kind": "score", "template": "answer", "of": "output", "into": "nats"},
        )
    )
    asked = rows(1)[0]
    (written,) = generate.join(asked, [Answer(token_ids=(7, 300), text="\x07")])
    assert score.request(written, 0).token_ids_L.tolist()[-2:] == [7, 300]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"question": "x"}, "unknown_field"),
        ({"question": "x", "answer": True}, "unknown_field"),
        ({"question": "x", "answer": None}, "unknown_field"),
        ({"question": "x", "answer": ["5"]}, "unknown_field"),
        ({"question": "x", "answer": ""}, "nothing_to_score"),
        ({"question": "x", "answer": "a<end>"}, "control_tokens"),
        ({"question": "x", "answer": "a" * 600}, "prompt_too_long"),
        ({"answer": "a"}, "unknown_field"),
    ],
)
def test_what_cannot_be_scored(fields, code):
    step = teacher_step({"kind": "score", "template": "answer", "of": "answer", "into": "nats"})
    refusal = step.request(row(3, fields), 0)
    assert refusal.code == code
    assert refusal.message.startswith("line 3, step 0 (score): ")


def test_candidates_are_ranked_by_what_they_bring():
    """Each is the only demonstration; the best come first, of equals the earlier; a failed one has no score."""
    rank = {
        "kind": "score",
        "template": "shots",
        "of": "answer",
        "into": "best",
        "candidates": {"k": 4, "choose": "first"},
        "keep": 3,
    }
    use = {
        "kind": "generate",
        "template": "shots",
        "demonstrations": {"k": 2, "choose": "field", "query": "best"},
    }
    own = rows(6)
    (_, score), (_, generate) = compiled(rank, use, own=own)
    asked = own[1]
    assert score.requests_per_row == 4
    tasks = [score.request(asked, number) for number in range(4)]
    assert [text_of(task.token_ids_L) for task in tasks] == [
        f"<256>Q: {at} and {at}\nA: {2 * at}\nQ: 1 and 1\nA:2" for at in (0, 2, 3, 4)
    ]
    answers = [
        Answer(logprob=-3.0, scored_tokens=1),
        Answer(logprob=-2.0, scored_tokens=2),
        Answer(error=("failed", "no")),
        Answer(logprob=-1.0, scored_tokens=1),
    ]
    (ranked,) = score.join(asked, answers)
    assert ranked.fields["best"] == [own[2].id, own[4].id, own[0].id]
    assert ranked.fields["best_scores"] == [-3.0, -1.0, None, -1.0]
    (answered,) = generate.join(ranked, [wrote("x")])
    assert answered.written["output"].demonstrations == (own[2].id, own[4].id)
    (dropped,) = score.join(asked, [Answer(error=("failed", "no"))] * 4)
    assert dropped.code == "failed"


# -- verify --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("otherwise", ["drop", "mark"])
def test_a_verdict(otherwise):
    step = teacher_step(
        {"kind": "verify", "template": "answer", "accept": r"(?i)\byes\b", "otherwise": otherwise, "into": "verdict"}
    )
    asked = rows(1)[0]
    assert step.requests_per_row == 1
    assert step.request(asked, 0).sampling.max_tokens == 64
    (kept,) = step.join(asked, [wrote("Well, YES.")])
    assert (kept.fields["verdict"], kept.checks, kept.id) == ("Well, YES.", {"verdict": True}, asked.id)
    (other,) = step.join(asked, [wrote("eyes")])
    if otherwise == "mark":
        assert other.checks == {"verdict": False}
    else:
        assert (other.code, other.row.checks) == ("not_accepted", {"verdict": False})
        assert other.message.startswith("line 1, step 0 (verify): the verdict 'eyes' does not match")
    (failed,) = step.join(asked, [Answer(error=("generation_failed", "no"))])
    assert failed.code == "generation_failed"


# -- grow and row steps --------------------------------------------------------------------------------------------


def test_a_pool_asks_with_its_template_and_seed():
    body = "{% for e in examples %}\n{{ loop.index }}. {{ e }}\n{% endfor %}\n{{ examples|length + 1 }}."
    ((kind, step),) = compiled(
        {"kind": "grow", "template": "pool", "field": "question", "target": 9, "own_per_prompt": 0},
        pool=("text", ["examples"], body),
    )
    assert kind == "grow"
    first = step.begin(rows(3)).requests(0)
    assert len(first) == 32
    text = text_of(first[0].prompt_ids_C)
    assert text.startswith("<256>1. ")
    assert text.endswith("\n4.")
    assert len({task.seed for task in first}) == 32
    assert [task.seed for task in step.begin(rows(3)).requests(0)] == [task.seed for task in first]


def test_row_steps_are_compiled_with_their_numbers():
    kinds = [
        kind
        for kind, _ in compiled(
            {"kind": "generate", "template": "answer", "sampling": SAMPLES},
            {"kind": "parse"},
            {"kind": "check", "against": "answer", "of": "answer"},
            {"kind": "vote"},
            {"kind": "keep", "finish": "stop"},
            {"kind": "dedupe"},
        )
    ]
    assert kinds == ["teacher", "row", "row", "row", "row", "row"]


def test_a_template_of_another_digest_is_refused():
    broken = {name: entry.model_copy(update={"sha256": "0" * 64}) for name, entry in stored().items()}
    resources = StepResources(
        tokenizer=FakeTokenizer(), max_model_len=99, templates=broken, rows_of=lambda corpus_id: [], job_seed=0
    )
    with pytest.raises(RecipeError, match="start the generation anew"):
        compile_steps([], resources)
