"""Runs as the page reads them: whole, going on, and damaged."""

import json
from typing import Any

import pytest

from logitcask_services.http.pages.viewer import runs
from logitcask_services.http.pages.viewer.runs import RunFolder, RunNotFoundError

REPORT: dict[str, Any] = {
    "kinds": {"kl": "unbiased"},
    "units": {"kl": "nats per token"},
    "models": [{"label": "after", "metrics": {"kl": {"value": 0.5, "standard_error": 0.1, "low": 0.4, "high": None}}}],
    "cask": {"documents": 3},
}


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_curves_are_the_logged_numbers(tmp_path):
    lines = [{"step": 1, "kl": 2.0, "note": "x"}, {"step": 5, "kl": 1.0, "lr": 0.1}]
    write(tmp_path / "a", "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    curves = RunFolder(tmp_path).run("a").curves
    assert curves.steps == [1, 5]
    assert curves.values == {"kl": [2.0, 1.0], "lr": [None, 0.1]}
    assert curves.lines == 2


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    write(tmp_path / "a", "metrics.jsonl", '{"step": 1, "kl": 2.0}\n{"step": 2, "k')
    assert RunFolder(tmp_path).run("a").curves.steps == [1]


def test_numbers_that_are_not_finite_are_gaps(tmp_path):
    write(tmp_path / "a", "metrics.jsonl", '{"step": 1, "kl": NaN}\n{"step": 2, "kl": 1e999}\n{"step": 3, "kl": 1}\n')
    assert RunFolder(tmp_path).run("a").curves.values == {"kl": [None, None, 1]}


def test_long_curves_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "MAX_POINTS", 10)
    write(tmp_path / "a", "metrics.jsonl", "".join(f'{{"step": {n}, "kl": 1}}\n' for n in range(95)))
    curves = RunFolder(tmp_path).run("a").curves
    assert curves.steps == list(range(0, 95, 10))
    assert curves.lines == 95


def write_lines(folder, name, lines):
    write(folder, name, "".join(json.dumps(line) + "\n" for line in lines))


def test_evaluations_stand_beside_what_training_had_since_the_one_before(tmp_path):
    """Means of the steps trained in between, by their positions; what is measured as nll is ce in training."""
    trained = [{"step": step, "kl": float(step), "ce": 2.0, "positions": 10 * step} for step in range(1, 7)]
    measured = [
        {"step": 0, "kl": 9.0, "nll": 4.0, "agreement": 0.5, "positions": 70, "seconds": 1.5},
        {"step": 2, "kl": 3.0, "nll": 3.0, "agreement": 0.6, "positions": 70, "seconds": 1.5},
        {"step": 5, "kl": 3.5, "nll": 3.1, "positions": 70, "seconds": 1.5},
    ]
    write_lines(tmp_path / "a", "metrics.jsonl", trained)
    write_lines(tmp_path / "a", "held_out.jsonl", measured)
    write(tmp_path / "a", "logitcask.json", {"status": "running"})
    run = RunFolder(tmp_path).run("a")
    assert run.problems == []
    assert run.is_running
    seen = run.evaluations
    assert seen.steps == [0, 2, 5]
    assert seen.values == {"kl": [9.0, 3.0, 3.5], "nll": [4.0, 3.0, 3.1], "agreement": [0.5, 0.6, None]}
    own = (3.0 * 30 + 4.0 * 40 + 5.0 * 50) / 120
    assert seen.in_training == {"kl": [None, (10 + 2 * 20) / 30, own], "nll": [None, 2.0, 2.0]}
    assert seen.best == 1, "the lowest after the first step"
    assert RunFolder(tmp_path).runs()[0].files == ["metrics.jsonl", "held_out.jsonl"]


def test_evaluations_of_records_that_only_bound_the_kl(tmp_path):
    write_lines(tmp_path / "a", "metrics.jsonl", [{"step": 1, "kl": 1.0}])
    write_lines(tmp_path / "a", "held_out.jsonl", [{"step": 0, "kl_bound": 0.1}, {"step": 1, "kl_bound": 0.2}])
    seen = RunFolder(tmp_path).run("a").evaluations
    assert (seen.best, seen.in_training) == (1, {}), "a bound is not the KL of training"


def test_a_run_without_evaluations_has_none(tmp_path):
    write(tmp_path / "a", "metrics.jsonl", '{"step": 1, "kl": 2.0}\n')
    write(tmp_path / "a", "held_out.jsonl", '{"step": 0, "k')
    run = RunFolder(tmp_path).run("a")
    assert (run.evaluations, run.is_running, run.problems) == (None, False, [])


def test_report_and_rounds(tmp_path):
    write(tmp_path / "a", "report.json", REPORT)
    rounds = {"status": "running", "rounds": [{"number": 1, "stage": "trained", "share": 0.5, "held_out": {"kl": 0.2}}]}
    write(tmp_path / "a", "rounds.json", rounds)
    run = RunFolder(tmp_path).run("a")
    assert run.problems == []
    assert run.reports[0].models[0].metrics["kl"].value == 0.5
    assert run.rounds.rounds[0].held_out == {"kl": 0.2}


def test_a_figure_that_is_too_large_for_a_number_hides_no_other(tmp_path):
    endless = {"value": None, "standard_error": None, "low": 1e300, "high": None}
    metrics = {**REPORT["models"][0]["metrics"], "perplexity": endless}
    write(tmp_path / "a", "report.json", {**REPORT, "models": [{"label": "before", "metrics": metrics}]})
    run = RunFolder(tmp_path).run("a")
    assert run.problems == []
    shown = run.reports[0].models[0].metrics
    assert (shown["kl"].value, shown["perplexity"].value, shown["perplexity"].low) == (0.5, None, 1e300)


def test_a_report_of_two_teachers_is_two(tmp_path):
    write(tmp_path / "a", "report.json", {"teachers": [REPORT, REPORT]})
    assert len(RunFolder(tmp_path).run("a").reports) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", "no json\n"),
        ("metrics.jsonl", "[1]\n"),
        ("metrics.jsonl", '{"kl": 1}\n'),
        ("metrics.jsonl", '{"step": true}\n'),
        ("metrics.jsonl", f'{{"step": 1, "kl": 1{"0" * 400}}}\n'),
        ("metrics.jsonl", f'{{"step": 1, "kl": {"[" * 100_000}\n'),
        ("report.json", "[" * 100_000),
        ("held_out.jsonl", '{"kl": 1}\n'),
        ("logitcask.json", "[]"),
        ("report.json", "{"),
        ("report.json", "[]"),
        ("report.json", '{"teachers": 5}'),
        ("report.json", '{"kinds": {}, "models": [{"label": "a", "metrics": {"kl": {"value": NaN}}}]}'),
        ("rounds.json", "[]"),
        ("rounds.json", '{"status": "running", "rounds": [{"number": 1, "stage": "x", "share": 1e999}]}'),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path, name, content):
    write(tmp_path / "a", "rounds.json", {"status": "running", "rounds": []})
    write(tmp_path / "a", name, content)
    run = RunFolder(tmp_path).run("a")
    assert len(run.problems) == 1
    assert run.problems[0].startswith(f"{name} cannot be read: ")
    assert (run.curves, run.evaluations, run.reports, run.is_running) == (None, None, [], False)
    assert (run.rounds is None) == (name == "rounds.json")


def test_bytes_that_are_no_text_are_a_sentence(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    assert "metrics.jsonl cannot be read" in RunFolder(tmp_path).run("a").problems[0]


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "MAX_BYTES", 10)
    write(tmp_path / "a", "report.json", REPORT)
    assert "more than the 10 that are read" in RunFolder(tmp_path).run("a").problems[0]


def test_the_folder_may_be_a_run_itself(tmp_path):
    write(tmp_path / "mine", "report.json", REPORT)
    write(tmp_path / "mine" / "inner", "metrics.jsonl", '{"step": 1}\n')
    (tmp_path / "mine" / "other").mkdir()
    assert [line.name for line in RunFolder(tmp_path / "mine").runs()] == ["mine", "inner"]


def test_a_run_before_its_first_step_is_listed(tmp_path):
    """Not so a student that a finished run or another command left."""
    write(tmp_path / "begun", "logitcask.json", {"status": "running"})
    write(tmp_path / "student", "logitcask.json", {"status": "finished"})
    write(tmp_path / "damaged", "logitcask.json", "{")
    runs = RunFolder(tmp_path)
    assert [(line.name, line.files) for line in runs.runs()] == [("begun", ["logitcask.json"])]
    run = runs.run("begun")
    assert (run.is_running, run.curves, run.problems) == (True, None, [])


@pytest.mark.parametrize("name", ["..", ".", "", "a/../a", "outside", "missing", "/etc", "a\0"])
def test_names_lead_nowhere_else(tmp_path, name):
    write(tmp_path / "runs" / "a", "report.json", REPORT)
    write(tmp_path / "elsewhere", "report.json", REPORT)
    (tmp_path / "runs" / "outside").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunNotFoundError):
        RunFolder(tmp_path / "runs").run(name)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RunNotFoundError, match="is no folder"):
        RunFolder(tmp_path / "missing")
