"""Growth with a scripted writer in the teacher's place."""

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from logitcask_schemas.api.generation_steps import Grow, Sampling
from logitcask_services.engines.generator import Finish, GenerationTask, TeacherTask
from logitcask_services.generation.growth import EVOLUTION_METHODS, GrowingStep, InstructionPool
from logitcask_services.generation.rows import Answer, Dropped, Refusal, Row, Staged

VERBS = [
    "write",
    "explain",
    "list",
    "compare",
    "translate",
    "count",
    "draw",
    "sort",
    "find",
    "describe",
    "invent",
    "plan",
    "judge",
    "repair",
    "name",
]
THINGS = [
    "poem",
    "river",
    "engine",
    "number",
    "recipe",
    "city",
    "planet",
    "proof",
    "letter",
    "garden",
    "battle",
    "market",
    "song",
    "child",
    "winter",
]
PLACES = [
    "Paris",
    "school",
    "space",
    "summer",
    "court",
    "hospital",
    "history",
    "court",
    "forest",
    "theatre",
    "kitchen",
    "museum",
    "harbour",
]


def seeds(count: int = 20) -> list[Row]:
    texts = [
        f"{VERBS[n % 15]} a {THINGS[(3 * n) % 15]} for people in {PLACES[(5 * n) % 13]} number {n}"
        for n in range(count)
    ]
    return [Row(id=f"seed{n}", parent=f"seed{n}", line=n + 1, fields={"instruction": t}) for n, t in enumerate(texts)]


class Asked:
    """Keeps what was asked; the prompt's ids say which request it is."""

    def __init__(self) -> None:
        self.values: list[Mapping[str, Any]] = []
        self.ids: list[str] = []

    def __call__(self, values: Mapping[str, Any], row_id: str) -> TeacherTask | Refusal:
        # As texts, which are easier to compare than rows.
        shown = dict(values)
        if "examples" in values:
            shown["examples_rows"] = values["examples"]
            shown["examples"] = [row["instruction"] for row in values["examples"]]
        if "parent" in values:
            shown["parent"] = values["parent"]["instruction"]
        self.values.append(shown)
        self.ids.append(row_id)
        ids = np.array([len(self.ids) - 1], np.uint32)
        return GenerationTask(key=row_id, prompt_ids_C=ids, sampling=Sampling(), seed=0)


def pool_of(rows: Sequence[Row] | None = None, *, job_seed: int = 0, **options: Any) -> tuple[InstructionPool, Asked]:
    asked = Asked()
    given = {"template": "t", "target": 300, "prompts_per_round": 4, **options}
    step = GrowingStep(Grow.model_validate(given), 2, asked, job_seed)
    return step.begin(seeds() if rows is None else rows), asked


def listed(*texts: str, finish: Finish = "stop") -> Answer:
    return Answer(text="\n".join(f"{n}. {text}" for n, text in enumerate(texts, 1)), finish=finish)


def writer(source: random.Random) -> Answer:
    """A teacher that repeats itself now and then, is cut off, and writes too short ones."""
    texts = []
    for _ in range(8):
        words = [source.choice(VERBS), "the", source.choice(THINGS), "of", source.choice(PLACES), "with"]
        words += source.choices(THINGS + PLACES, k=source.randrange(5))
        texts.append(" ".join(words[: source.choice([2, 20, 20, 20])]))
    return listed(*texts, finish=source.choice(["stop", "stop", "length"]))


def grow(job_seed: int = 0, **options: Any) -> tuple[list[Staged], list[Mapping[str, Any]]]:
    """To the end, as the job does it; the writer's text depends on the request alone."""
    pool, asked = pool_of(job_seed=job_seed, prompts_per_round=32, **options)
    for number in itertools.count():
        if pool.is_full or number == 20:
            return list(pool.result()), asked.values
        before = len(asked.ids)
        assert len(pool.requests(number)) == 32
        pool.accept(number, [writer(random.Random(row_id)) for row_id in asked.ids[before:]])
    raise AssertionError("counts for ever")


def kept(result: Sequence[Staged]) -> list[Row]:
    return [staged for staged in result if isinstance(staged, Row)]


def codes(result: Sequence[Staged]) -> Counter[str]:
    return Counter(staged.code for staged in result if isinstance(staged, Dropped))


def test_a_pool_of_300_has_no_pair_over_the_threshold():
    result, _ = grow()
    rows = kept(result)
    assert len(rows) == 280
    assert {"seed", "duplicate", "too_short", "unfinished"} <= set(codes(result))
    assert len({row.id for row in rows}) == 280
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    tokens = [row.fields["instruction"] for row in [*seeds(), *rows]]
    grown = range(20, 300)
    worst = max(scorer.score(tokens[a], tokens[b])["rougeL"].fmeasure for b in grown for a in range(b))
    assert 0.5 < worst <= 0.7 + 1e-9


def test_without_the_filter_there_are_such_pairs():
    # The negative control: the writer does repeat itself.
    assert codes(grow(rouge_l=1.0)[0])["duplicate"] < codes(grow()[0])["duplicate"]


def test_two_runs_are_equal_and_another_seed_gives_another_pool():
    assert grow(7) == grow(7)
    assert kept(grow(7)[0]) != kept(grow(8)[0])


def test_every_item_is_a_row_or_counted():
    pool, asked = pool_of(target=22)
    pool.requests(0)
    pool.accept(0, [listed("one two three four", "no", "1 2 3"), listed("five six seven", "eight nine ten"),
                    Answer(error=("prompt_too_long", "it is")), Answer(text="prose")])  # fmt: skip
    result = pool.result()
    assert codes(result) == Counter(
        seed=20, too_short=1, no_letter=1, target_reached=1, prompt_too_long=1, unparsed_answer=1
    )
    assert [row.fields["instruction"] for row in kept(result)] == ["one two three four", "five six seven"]
    assert pool.is_full
    assert len(asked.ids) == 4


def test_grown_rows_say_where_they_come_from():
    pool, asked = pool_of()
    pool.requests(0)
    pool.accept(0, [listed("one two three"), listed("four five six", "seven eight nine"), Answer(), Answer()])
    *_, last = kept(pool.result())
    assert (last.line, last.parent, last.custom_id) == (0, last.id, None)
    assert last.fields == {"instruction": "seven eight nine", "round": 0}
    shown = {row.fields["instruction"]: row.id for row in seeds()}
    assert last.checks["grown"] == {
        "round": 0, "request": 1, "item": 1, "examples": [shown[text] for text in asked.values[1]["examples"]],
    }  # fmt: skip


def test_prompts_show_seeds_and_grown_rows_without_repetition():
    pool, asked = pool_of(seeds_per_prompt=3, own_per_prompt=2, prompts_per_round=50)
    pool.requests(0)
    own = [f"{a} {b} {c}" for a, b, c in [("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i")]]
    pool.accept(0, [listed(*own)] + [Answer()] * 49)
    pool.requests(1)
    first, second = asked.values[:50], asked.values[50:]
    for values in first:
        assert len(set(values["examples"])) == 5
        assert values["round"] == 0
    for values in second:
        assert len(set(values["examples"])) == 5
        assert len(set(values["examples"]) & set(own)) == 2
        assert [row["instruction"] for row in values["examples_rows"]] == values["examples"]
    assert len({tuple(values["examples"]) for values in second}) > 40
    assert len(set(asked.ids)) == 100
    # Grown rows stand at any place.
    assert {values["examples"].index(text) for values in second for text in set(values["examples"]) & set(own)} == set(
        range(5)
    )


def test_asking_again_asks_the_same():
    pool, asked = pool_of()
    pool.requests(0)
    pool.requests(0)
    assert asked.values[:4] == asked.values[4:]
    assert asked.ids[:4] == asked.ids[4:]


def test_few_seeds_are_all_shown():
    pool, asked = pool_of(seeds(2))
    pool.requests(0)
    assert [len(values["examples"]) for values in asked.values] == [2] * 4


def test_several_samples_of_a_prompt():
    pool, asked = pool_of(sampling=Sampling(n=3, temperature=1.0), prompts_per_round=2)
    assert len(pool.requests(0)) == 6
    assert asked.values[0] == asked.values[2] != asked.values[3]
    assert len(set(asked.ids)) == 6


def test_evolution_rewrites_rows_in_turn():
    pool, asked = pool_of(seeds(3), mode="evolve", answer="text", prompts_per_round=6)
    pool.requests(0)
    parents = [values["parent"] for values in asked.values]
    assert sorted(parents[:3]) == sorted(parents[3:]) == sorted(row.fields["instruction"] for row in seeds(3))
    assert all(EVOLUTION_METHODS[values["method_name"]] == values["method"] for values in asked.values)
    pool.accept(0, [Answer(text=" one two three four \n")] + [Answer(text="five six seven", finish="length")] * 5)
    (row,) = kept(pool.result())
    assert row.fields == {"instruction": "one two three four", "round": 0}
    grown = row.checks["grown"]
    assert ([f"seed{n}" for n in range(3) if seeds(3)[n].fields["instruction"] == parents[0]]) == grown["examples"]
    assert grown["method"] == asked.values[0]["method_name"]
    assert codes(pool.result())["unfinished"] == 5


def test_a_list_that_was_cut_loses_its_last_item():
    pool, _ = pool_of(prompts_per_round=1)
    pool.accept(0, [listed("one two three", "four five six", finish="length")])
    assert [row.fields["instruction"] for row in kept(pool.result())] == ["one two three"]
    assert codes(pool.result())["unfinished"] == 1


def test_what_is_like_a_seed_is_dropped():
    pool, _ = pool_of(prompts_per_round=1)
    pool.accept(0, [listed(seeds()[3].fields["instruction"].upper() + "!")])
    (drop,) = [staged for staged in pool.result() if isinstance(staged, Dropped) and staged.code == "duplicate"]
    assert "round 0, request 0, item 1: expected a ROUGE-L of at most 0.7" in drop.message
    assert "is like row seed3" in drop.message


def test_two_rounds_in_a_row_that_bring_nothing_end_it():
    pool, _ = pool_of(prompts_per_round=1)
    answers = [Answer(), listed("one two three"), Answer(), Answer()]
    full = []
    for number, answer in enumerate(answers):
        full.append(pool.is_full)
        pool.accept(number, [answer])
    assert full == [False] * 4
    assert pool.is_full


def test_no_seeds():
    assert pool_of([])[0].is_full
    assert pool_of([], mode="evolve", answer="text")[0].is_full
    pool, asked = pool_of([], seeds_per_prompt=0, own_per_prompt=0)
    assert not pool.is_full
    pool.requests(0)
    assert asked.values[0]["examples"] == []


@pytest.mark.parametrize("text", [None, "", " \n", 5, ["a"]])
def test_seeds_without_text(text):
    bad = Row(id="bad", parent="bad", line=9, fields={"instruction": text})
    pool, _ = pool_of([*seeds(3), bad], with_seeds=True)
    result = pool.result()
    assert kept(result) == seeds(3)
    (drop,) = [staged for staged in result if isinstance(staged, Dropped)]
    assert (drop.row, drop.step, drop.code) == (bad, 2, "no_field")
    assert drop.message == f"line 9: expected text in `instruction` of a seed, got {text!r}"


def test_the_seeds_alone_reach_the_target():
    pool, _ = pool_of(target=20, with_seeds=True)
    assert pool.is_full
    assert pool.result() == seeds()


def test_a_refused_request_is_passed_on():
    refusal = Refusal(code="prompt_too_long", message="x")
    step = GrowingStep(Grow(template="t", target=9, prompts_per_round=2), 0, lambda values, row_id: refusal, 0)
    assert step.begin(seeds(2)).requests(0) == [refusal, refusal]
    assert step.rounds_max == 20


def test_another_number_of_answers():
    pool, _ = pool_of()
    with pytest.raises(ValueError, match="round 0 asked for 4 answers, got 3"):
        pool.accept(0, [Answer()] * 3)


def test_bounds_that_no_text_meets():
    with pytest.raises(ValueError, match="step 2: min_words 9 is more than max_words 8"):
        pool_of(min_words=9, max_words=8)


def test_too_long_ones_go():
    pool, _ = pool_of(prompts_per_round=1, max_words=4)
    pool.accept(0, [listed("one two three four", "five six seven eight nine")])
    assert codes(pool.result())["too_long"] == 1
