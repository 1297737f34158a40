"""Task files that do not fit: one line each, no code run, no network asked."""

import lm_eval.utils
import pytest

from logitcask_consumer.tasks.harness import load_task, sandboxed_templates
from logitcask_consumer.tasks.perturbations import parse_perturbations
from logitcask_consumer.tasks.questions import TaskError
from logitcask_consumer.tasks.suite import TaskSuite
from logitcask_consumer.tasks.task_file import read_task
from logitcask_schemas.errors import MissingExtraError
from tests.support.consumer.task_sets import knowable_questions, rewritten, save_task

ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


@pytest.fixture
def task(tmp_path):
    return save_task(tmp_path / "set", knowable_questions(12))


def load(*paths, **options):
    settings = {"seed": 0, "batch_tokens": 256, "run_code": False, **options}
    return TaskSuite.load(paths, settings.pop("perturbations", ()), **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_to_text": None}, "a task needs doc_to_text"),
        ({"doc_to_choice": None, "task": None}, "a task needs task, doc_to_choice"),
        ({"doc_to_txt": "a"}, "knows no key 'doc_to_txt'; did you mean doc_to_text?"),
        ({"zzz": 1}, "knows no key 'zzz'"),
        ({"custom_dataset": "a"}, "knows no key 'custom_dataset'"),
        ({"class": "os.system"}, "knows no key 'class'"),
        ({"group": "all"}, "is a group of tasks"),
        ({"task": ["a", "b"]}, "is a group of tasks"),
        ({"use_prompt": "x:y"}, "promptsource"),
        ({"unsafe_code": True}, "are not run"),
        ({"output_type": "loglikelihood_rolling"}, "right or wrong only of"),
        ({"dataset_path": "pandas"}, "dataset_path: pandas may run code, or reach for other machines; take arrow, csv"),
        ({"repeats": 3}, "every question is asked once"),
        ({"metric_list": [{"metric": "f1"}]}, "by none of its metrics (f1)"),
        ({"metric_list": [{"metric": "accuracy"}]}, "has no metric 'accuracy'"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "code that would be downloaded"),
        ({"metric_list": [{"metric": ["acc"]}]}, "has no metric ['acc']"),
        ({"task": 7}, "task must be a name (in quotes where it is a number), got 7"),
        ({"test_split": ["test"]}, "test_split must be the name of a split, got ['test']"),
        ({"dataset_kwargs": ["a"]}, "dataset_kwargs must be a mapping, got ['a']"),
        ({"generation_kwargs": [1]}, "generation_kwargs must be a mapping"),
        ({"num_fewshot": "two"}, "num_fewshot must be a number, got 'two'"),
        ({"num_fewshot": -1}, "num_fewshot must be at least 0, got -1"),
        ({"generation_kwargs": {"max_gen_toks": "all"}}, "max_gen_toks must be a number of at least 1, got 'all'"),
        ({"generation_kwargs": {"max_gen_toks": 0}}, "max_gen_toks must be a number of at least 1, got 0"),
        ({"generation_kwargs": {"until": 5}}, "until must be a text, or a list of some, got 5"),
        ({"generation_kwargs": {"do_sample": True}}, "do_sample: answers would be drawn"),
        ({"generation_kwargs": {"do_sample": False, "temperature": 0.7}}, "temperature: answers would be drawn"),
        ({"include": 5}, "include must be the name of a file, or a list of some, got 5"),
        ({"include": ["base.yml", {"a": "b"}]}, "include must be the name of a file, or a list of some, got {'a'"),
        ({"metric_list": "acc"}, "must be a list of mappings"),
        ({"test_split": "dev"}, "in the split 'dev' (test_split or validation_split), but its data have test"),
        ({"test_split": None}, "in the split None"),
        ({"dataset_kwargs": {}}, "needs dataset_kwargs: data_files"),
        ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, "gone.jsonl is not there"),
        ({"dataset_kwargs": {"data_files": "https://example.org/a.json"}}, "is not on this machine"),
        ({"dataset_kwargs": {"data_files": "known.jsonl", "trust_remote_code": True}}, "code of the Hub is not run"),
        ({"dataset_path": "nobody/nothing", "dataset_kwargs": None}, "cannot be had from the Hub"),
        ({"metadata": {"fields": {"text": "question"}}}, "names the columns of question"),
        ({"metadata": {"fields": {"question": "prompt"}}}, "the column 'prompt' of `metadata: fields` is missing"),
        ({"metadata": {"fields": {"question": "answer"}}}, "the column 'answer' of `metadata: fields` is of type int"),
        ({"doc_to_text": "{{ prompt }}"}, "'prompt' is undefined"),
        ({"doc_to_text": "{% for %}"}, "cannot make this task: TemplateSyntaxError"),
        ({"doc_to_text": ESCAPE}, "SecurityError"),
        ({"doc_to_target": "{{ 7 }}"}, "cannot make this task: IndexError"),
        ({"doc_to_target": "{{ -1 if 'w2 ' in question else 0 }}"}, " is none of its 4 choices"),
        ({"doc_to_target": "{{ 'w1' }}"}, "the answer 'w1' to question 0 is none of its 4 choices"),
        ({"filter_list": [{"name": "a", "filter": [{"function": "b"}]}]}, "cannot make this task: KeyError"),
        ({"fewshot_config": {"sampler": "best"}}, "cannot make this task: KeyError"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_in_one_line(task, changes, message):
    (task.parent / "base.yml").write_text("description: ''\n")
    with pytest.raises(TaskError) as refused:
        load_task(read_task(rewritten(task, changes)))
    said = str(refused.value)
    assert message in said
    assert str(task) in said
    assert "\n" not in said


def test_without_the_sandbox_a_template_would_reach_python():
    assert "<class" in lm_eval.utils.apply_template(ESCAPE, {})
    with sandboxed_templates():
        assert lm_eval.utils.apply_template("{{ a[0] | regex_replace('b', 'c') }}\n", {"a": ["b"]}) == "c\n"
    assert "<class" in lm_eval.utils.apply_template(ESCAPE, {}), "other users of the harness keep their own"


def test_files_that_are_no_task(tmp_path):
    for name, text in (
        ("list.yaml", "- a\n"),
        ("broken.yaml", "task: [a\n"),
        ("text.yaml", "task\n"),
        ("deep.yaml", "[" * 9999),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(TaskError, match="cannot be read as a task"):
            read_task(tmp_path / name)
    with pytest.raises(TaskError, match="cannot be read as a task"):
        read_task(tmp_path / "gone.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="holds no task"):
        load(tmp_path / "empty")


def test_a_function_runs_only_where_it_is_allowed(task):
    """Also one that stands in an included file."""
    (task.parent / "code.py").write_text(
        "from pathlib import Path\n\nPath(__file__).with_name('has_run').touch()\n\n\ndef first_ten(rows):\n"
        "    return rows.select(range(10))\n"
    )
    (task.parent / "base.yml").write_text(task.read_text() + "process_docs: !function code.first_ten\n")
    task.write_text("include: base.yml\ntask: mine\n")
    with pytest.raises(TaskError, match=r"base\.yml, line \d+ names a !function.*--task-code"):
        read_task(task)
    assert not (task.parent / "has_run").exists()
    loaded = load_task(read_task(task, run_code=True))
    assert (task.parent / "has_run").exists()
    assert (loaded.config.task, len(loaded.eval_docs)) == ("mine", 10)
    assert [each.questions for each in load(task, run_code=True).tasks] == [10]
    with pytest.raises(TaskError, match="process_docs may leave questions out"):
        load(task, perturbations=parse_perturbations("case"), run_code=True)
    (task.parent / "base.yml").write_text("process_docs: !function code.gone\n")
    with pytest.raises(TaskError, match="that cannot be loaded"):
        read_task(task, run_code=True)


def test_an_included_file_that_is_no_name_is_refused_where_code_is_allowed(task):
    with pytest.raises(TaskError, match="cannot be read as a task"):
        read_task(rewritten(task, {"include": 5}), run_code=True)


def test_greedy_answers_may_be_asked_for(task):
    settings = {"do_sample": False, "temperature": 0.0, "until": ["x", "y"], "max_gen_toks": 8}
    changes = {"output_type": "generate_until", "doc_to_choice": None, "generation_kwargs": settings}
    assert len(load_task(read_task(rewritten(task, changes))).eval_docs) == 12


def test_two_tasks_of_one_name_and_too_few_questions(task, tmp_path):
    other = save_task(tmp_path / "other", knowable_questions(11))
    with pytest.raises(TaskError, match=r"are both of the task known; rename one"):
        load(task, other)
    lines = (task.parent / "known.jsonl").read_text().splitlines()
    (task.parent / "known.jsonl").write_text("\n".join(lines[:9]))
    with pytest.raises(TaskError, match="there are 9 questions; at least 10"):
        load(task)
    (task.parent / "known.jsonl").write_text("no JSON")
    with pytest.raises(TaskError, match="its data cannot be read"):
        load(task)


def test_what_cannot_be_perturbed_is_refused(task):
    from logitcask_consumer.tasks.perturbations import parse_perturbations

    typos = parse_perturbations("typos")
    shown = {"num_fewshot": 2, "fewshot_split": "test"}
    with pytest.raises(TaskError, match="shows questions with answers that would change"):
        load(rewritten(task, shown), perturbations=typos)
    assert load(task).tasks[0].questions == 12
    with pytest.raises(TaskError, match="does not say which columns"):
        load(rewritten(task, {"metadata": {"version": 1}}), perturbations=typos)


def test_the_harness_must_be_there(task, monkeypatch):
    monkeypatch.setattr("logitcask_consumer.tasks.suite.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install \"\.\[tasks\]\""):
        load(task)


def test_a_folder_is_all_its_tasks(task):
    save_task(task.parent, knowable_questions(10, choices=None), name="written")
    suite = load(task.parent)
    assert [(each.file.name, each.file.metric, each.chance) for each in suite.tasks] == [
        ("known", "acc", 0.25),
        ("written", "exact_match", None),
    ]
