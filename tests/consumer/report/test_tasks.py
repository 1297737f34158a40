"""Tasks in a report: every figure from the answers, in JSON, Markdown, the page and the card; refusals before work."""

import dataclasses
import gc
import json
import weakref
from typing import Any

import pytest
from huggingface_hub import ModelCard

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import CaskSource
from logitcask_consumer.held_out.reading import load_reader
from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.estimates import Estimate, difference_right, share_right
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.report.model_card import model_card
from logitcask_consumer.report.task_scores import add_tasks, load_suite
from logitcask_consumer.report.task_tables import task_tables
from logitcask_consumer.tasks.perturbations import parse_perturbations
from logitcask_consumer.tasks.questions import TaskError
from logitcask_consumer.training.run import train
from logitcask_schemas.cli.main import main
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model, tiny_tokenizer
from tests.support.consumer.task_sets import knowable_questions, rewritten, save_knowing_model, save_task

NONE = Estimate(value=0.0, standard_error=0.0, low=0.0, high=0.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    teacher = save_teacher(folder / "teacher")
    build_cask(folder / "held", teacher, random_documents(6, low=20, high=40))
    tiny_model(layers=2, seed=9).save_pretrained(folder / "before")
    tiny_tokenizer().save_pretrained(folder / "before")
    save_knowing_model(folder / "after")
    save_task(folder / "set", knowable_questions(40), name="known-set")
    save_task(folder / "set", knowable_questions(20, choices=None), name="written", shots=2)
    return folder


def config_of(place, output, **options):
    fields = {
        "models": (("before", place / "before"), ("after", place / "after")),
        "tasks": (place / "set",),
        "perturb": parse_perturbations("words,order,typos:0"),
        "seed": 5,
    }
    return ReportConfig(casks=(place / "held",), output=output, **{**fields, **options})


@pytest.fixture(scope="module")
def reported(place, tmp_path_factory):
    """A report, its folder, what was said, and how many models were in memory when the next was loaded."""
    output, said, alive, models = tmp_path_factory.mktemp("out"), list[str](), list[int](), []

    def loaded(folder, packing):
        gc.collect()
        alive.append(sum(model() is not None for model in models))
        model = load_reader(folder, packing)
        models.append(weakref.ref(model))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logitcask_consumer.tasks.suite.load_reader", loaded)
        document = make_report(config_of(place, output), say=said.append)
    return document, output, said, alive


def require_figures(scores, answers):
    """Those of a document are the ones that follow from the answers."""
    assert scores.keys() == answers.keys()
    for name, own in answers.items():
        assert scores[name]["accuracy"] == share_right(own.right_N).as_dict()
        assert scores[name]["perturbed"].keys() == own.perturbed.keys()
        for kind, right_N in own.perturbed.items():
            assert scores[name]["perturbed"][kind]["accuracy"] == share_right(right_N).as_dict()
            drop = difference_right(own.right_N, right_N) if kind != "typos" else NONE
            assert scores[name]["perturbed"][kind]["drop"] == drop.as_dict()


def test_figures_are_those_of_the_answers(place, reported):
    document, output, said, alive = reported
    assert json.loads((output / "report.json").read_text()) == document
    assert alive == [0, 0], "one model is in memory at a time"
    tasks = document["tasks"]
    assert tasks["perturbations"] == {"words": 0.2, "order": 1.0, "typos": 0.0}
    known, written = tasks["sets"]
    assert (known["name"], known["questions"], known["metric"], known["chance"]) == ("known-set", 40, "acc", 0.25)
    assert (written["questions"], written["shots"], written["chance"]) == (18, 2, None)
    assert set(known["changed"]) == {"words", "order", "typos"}
    assert set(written["changed"]) == {"words", "typos"}, "written answers have no choices to put in order"
    assert "asking after 58 questions" in "\n".join(said)
    assert tasks["teacher"] is None
    assert "the teacher is not asked the tasks" in "\n".join(said)
    suite = load_suite(config_of(place, output), [])
    for model in document["models"]:
        require_figures(model["tasks"], suite.answers_of(model["label"], place / model["label"], "cpu"))
    after = document["models"][1]["tasks"]
    assert (after["known-set"]["accuracy"]["value"], after["written"]["accuracy"]["value"]) == (1.0, 1.0)
    assert after["known-set"]["perturbed"]["words"]["drop"]["value"] > 0.05
    (pair,) = tasks["pairs"]
    first = document["models"][0]["tasks"]["known-set"]["accuracy"]["value"]
    assert (pair["from"], pair["to"]) == ("before", "after")
    assert pair["difference"]["known-set"]["value"] == pytest.approx(1.0 - first)


def test_the_teacher_is_asked_where_its_weights_are_there(place, tmp_path):
    config = config_of(place, tmp_path, models=(("before", place / "before"),), teacher=place / "teacher")
    suite = load_suite(config, [place / "teacher"])
    document: dict[str, Any] = {"models": [{"label": "before"}]}
    add_tasks(document, suite, config, "cpu", lambda message: None)
    require_figures(document["tasks"]["teacher"], suite.answers_of("teacher", place / "teacher", "cpu"))
    assert document["tasks"]["pairs"] == []
    value = document["tasks"]["teacher"]["known-set"]["accuracy"]["value"]
    assert f"| known-set (acc) | 40 | 25.0% | {value:.1%} [" in "\n".join(task_tables(document))


def test_people_read_them_in_tables_and_a_plot(reported):
    document, output, _, _ = reported
    text, page = (output / "report.md").read_text(), (output / "report.html").read_text()
    after = document["models"][1]["tasks"]["known-set"]
    low = after["accuracy"]["low"]
    for expected in (
        "## Tasks",
        f"100.0% [{low:.1%}, 100.0%] |",
        "| known-set (acc) | 40 | 25.0% |",
        "| written (exact_match, 2 shown with answers) | 18 |  |",
        "| known-set, typos | 0 |  | 0.0% [0.0%, 0.0%] | 0.0% [0.0%, 0.0%] |",
        "words at 20%, order at 100%, typos at 0%",
        "| before → after | +",
        "![tasks](tasks.png)",
    ):
        assert expected in text
    assert (output / "tasks.png").stat().st_size > 5000
    assert "Right answers (dashed: by chance)" in page
    assert "known-set" in page


def test_the_card_of_a_student_has_them(place, tmp_path):
    student = tmp_path / "student"
    run = TrainConfig(
        casks=(CaskSource(place=place / "held"),),
        student=str(place / "before"),
        output=student,
        max_steps=1,
        seq_len=64,
    )
    train(run)
    config = config_of(place, tmp_path / "out", models=(("after", student),), perturb=(), cards=("after",))
    document = make_report(config)
    card = ModelCard.load(student / "README.md")
    told = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    expected = document["models"][0]["tasks"]
    for name in ("known-set", "written"):
        assert told[f"task {name}"] == pytest.approx(expected[name]["accuracy"]["value"])
    assert "### Tasks" in card.content
    assert str(place) not in card.content
    both = [document | {"label": label} for label in ("first", "second")]
    of_two: Any = ModelCard(model_card("after", student, both)).data
    configs = [result.dataset_config for result in of_two.eval_results if result.metric_type == "perplexity"]
    assert configs == ["first", "second"], "results of several teachers are not joined"


def test_models_of_a_report_on_several_teachers_are_asked_once(place, tmp_path, monkeypatch):
    asked = []

    def loaded(folder, packing):
        asked.append(folder)
        return load_reader(folder, packing)

    monkeypatch.setattr("logitcask_consumer.tasks.suite.load_reader", loaded)
    other = save_teacher(tmp_path / "other", seed=4)
    build_cask(
        tmp_path / "casks", other, random_documents(5, low=20, high=40, seed=8), model="other", weights_digest="1" * 64
    )
    config = config_of(place, tmp_path / "out", perturb=())
    page = make_report(dataclasses.replace(config, casks=(place / "held", tmp_path / "casks")))
    first, second = page["teachers"]
    assert asked == [place / "before", place / "after"]
    assert first["tasks"] == second["tasks"]
    assert first["models"][1]["tasks"] == second["models"][1]["tasks"]


def test_what_does_not_fit_is_refused_before_any_model_is_loaded(place, tmp_path, monkeypatch):
    for loads in ("tasks.suite.load_reader", "report.readers.load_reader", "report.readers.load_model"):
        monkeypatch.setattr(f"logitcask_consumer.{loads}", lambda *_: pytest.fail("a model was loaded"))
    config = config_of(place, tmp_path / "out")
    with pytest.raises(ReportError, match="--perturb changes the questions of tasks"):
        make_report(dataclasses.replace(config, tasks=()))
    broken = rewritten(save_task(tmp_path / "set", knowable_questions(10)), {"doc_to_text": None})
    with pytest.raises(TaskError, match="a task needs doc_to_text"):
        make_report(dataclasses.replace(config, tasks=(broken,)))
    long = rewritten(save_task(tmp_path / "long", knowable_questions(10)), {"doc_to_text": "{{ 'w3 ' * 300 }}"})
    with pytest.raises(TaskError, match="before takes 256 tokens"):
        make_report(dataclasses.replace(config, tasks=(long,), perturb=()))
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_it_in_one_line(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def refused(*arguments):
        command = ["report", "--cask", place / "held", "--model", f"a={place / 'after'}", "--output", tmp_path / "out"]
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, [*command, *arguments])))
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        return ended.value.code, said.err

    code, said = refused("--tasks", tmp_path / "gone.yaml")
    assert (code, "cannot be read as a task" in said) == (1, True)
    code, said = refused("--tasks", place / "set", "--perturb", "typo")
    assert (code, "there is no perturbation 'typo'" in said) == (2, True)
    monkeypatch.setattr("logitcask_consumer.tasks.suite.find_spec", lambda name: None)
    code, said = refused("--tasks", place / "set")
    assert (code, 'pip install ".[tasks]"' in said) == (2, True)
