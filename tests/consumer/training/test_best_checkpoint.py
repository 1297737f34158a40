"""What evaluations of a run come to, and what a person sees of a run while it goes."""

import io
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from rich.console import Console

from logitcask_consumer.training import progress_bar
from logitcask_consumer.training.best_checkpoint import Evaluations, KeepBest
from logitcask_consumer.training.callbacks import HeldOutLog
from logitcask_consumer.training.progress_bar import ProgressBar, best_text, duration_text


def log_of(*values, metric="kl"):
    """A state's log with an evaluation after every tenth step, the first one before training."""
    return [
        line
        for at, value in enumerate(values)
        for line in ({"loss": 1.0, "step": 10 * at}, {f"eval_{metric}": value, "step": 10 * at})
    ]


def evaluations(*values):
    return Evaluations.of(log_of(*values), "kl")


def test_the_best_is_the_lowest_after_the_first_step():
    measured = evaluations(0.1, 3.0, 2.0, 2.0, float("nan"))
    assert measured.before == 0.1
    assert measured.best == (20, 2.0), "the first of equal ones; not the one before training"
    assert measured.as_dict("kl")["best"] == {"step": 20, "value": 2.0}
    assert evaluations(0.1).best is None
    assert Evaluations.of(log_of(1.0, 2.0), "kl_bound").as_dict("kl_bound") == {
        "metric": "kl_bound",
        "evaluations": 0,
        "before": None,
        "best": None,
        "last": None,
    }


@pytest.mark.parametrize(
    ("values", "least", "since"),
    [
        ((9.0, 3.0, 2.0, 1.0), 0.0, 0),
        ((9.0, 3.0, 3.0, 3.0), 0.0, 2),
        ((9.0, 3.0, 4.0, 2.9), 0.0, 0),
        ((9.0, 3.0, 2.95, 2.96), 0.1, 2),
        ((9.0, 3.0, 2.95, 2.85), 0.1, 0),
        ((0.5, 3.0, 2.0, 2.5), 0.0, 1),
        ((9.0, 3.0, float("nan"), float("nan")), 0.0, 2),
        ((9.0,), 0.0, 0),
    ],
)
def test_how_long_ago_the_last_improvement_was(values, least, since):
    """Small steps down that come to more than the least together are an improvement."""
    measured = evaluations(*values)
    assert measured.without_improvement(least) == since
    assert measured.are_exhausted(2, least) == (since >= 2)
    assert not measured.are_exhausted(None, least)


@dataclass
class Control:
    should_save: bool = False
    should_training_stop: bool = False


@dataclass
class State:
    global_step: int
    log_history: list = field(default_factory=list)
    max_steps: int = 60
    is_world_process_zero: bool = True


@pytest.mark.parametrize(
    ("values", "saves", "stops"),
    [
        ((9.0,), False, False),
        ((9.0, 3.0), True, False),
        ((9.0, 3.0, 4.0), False, False),
        ((9.0, 3.0, 4.0, 4.0), True, True),
    ],
)
def test_the_best_so_far_is_saved_and_the_end_too(values, saves, stops):
    control, state = Control(), State(10 * (len(values) - 1), log_of(*values))
    KeepBest("kl", patience=2, min_improvement=0.0).on_evaluate(None, state, control)
    assert (control.should_save, control.should_training_stop) == (saves, stops)


def test_a_line_of_the_file_is_the_figures_and_their_seconds():
    logs = {
        "eval_loss": 1.0,
        "eval_kl": 1.0,
        "eval_nll": 2.0,
        "eval_runtime": 3.0,
        "eval_steps_per_second": 9,
        "epoch": 1,
    }
    assert HeldOutLog.line_of(logs) == {"kl": 1.0, "nll": 2.0, "seconds": 3.0}
    assert HeldOutLog.line_of({"loss": 1.0}) is None


def shown_by(metric, *events, terminal=False, monkeypatch=None):
    """What a bar prints of some events, with a clock that stands at 30 s for each step done."""
    text = io.StringIO()
    bar = ProgressBar(metric=metric, line_seconds=0.0, console=Console(file=text, width=60, force_terminal=terminal))
    state = State(0)
    monkeypatch.setattr(progress_bar, "time", SimpleNamespace(monotonic=lambda: 100.0 + 30.0 * state.global_step))
    bar.on_train_begin(None, state, None)
    for step, name, logs in events:
        state.global_step = step
        if name == "evaluate":
            state.log_history.append({**logs, "step": step})
            bar.on_evaluate(None, state, None, metrics=logs)
        else:
            bar.on_log(None, state, None, logs=logs)
    bar.on_train_end(None, state, None)
    return text.getvalue()


METRICS = {"loss": 2.5, "kl": 0.4, "ce": 2.75, "lr": 5e-4, "tokens_per_second": 3210.0, "grad_norm": 7.0}


def test_a_line_says_how_far_it_is_and_how_long_it_takes(monkeypatch):
    events = [
        (0, "evaluate", {"eval_kl": 2.0, "eval_nll": 4.0, "eval_agreement": 0.125}),
        (10, "log", METRICS),
        (10, "evaluate", {"eval_kl": 0.512, "eval_nll": 2.31, "eval_agreement": 0.612}),
        (20, "log", METRICS),
        (20, "evaluate", {"eval_kl": 0.6, "eval_nll": 2.31, "eval_agreement": 0.612}),
        (60, "log", METRICS),
    ]
    figures = "loss of the real tokens 2.31, likeliest token as the teacher's 61.2%"
    step = "loss 2.5  kl 0.4  ce 2.75  lr 0.0005  3,210 tokens/s"
    assert shown_by("kl", *events, monkeypatch=monkeypatch).splitlines() == [
        "held out, before training: kl 2 nats, loss of the real tokens 4, likeliest token as the teacher's 12.5%",
        f"step 10 of 60  {step}  held-out kl 2  25 min 0 s left",
        f"held out, after step 10: kl 0.512 nats (the best so far), {figures}",
        f"step 20 of 60  {step}  held-out kl 0.512  20 min 0 s left",
        f"held out, after step 20: kl 0.6 nats (best 0.512, step 10), {figures}",
        f"step 60 of 60  {step}  held-out kl 0.6",
    ]


def test_a_run_without_held_out_documents_says_nothing_of_them(monkeypatch):
    shown = shown_by(None, (1, "log", METRICS), (1, "evaluate", {"eval_loss": 1.0}), monkeypatch=monkeypatch)
    assert shown.splitlines() == [
        "step 1 of 60  loss 2.5  kl 0.4  ce 2.75  lr 0.0005  3,210 tokens/s  29 min 30 s left"
    ]


def test_a_terminal_has_a_bar_and_a_line_for_each_evaluation(monkeypatch):
    events = [(10, "log", METRICS), (10, "evaluate", {"eval_kl_bound": 0.5, "eval_nll": 2.0})]
    shown = shown_by("kl_bound", *events, terminal=True, monkeypatch=monkeypatch)
    assert "held out, after step 10: kl, at least 0.5 nats (the best so far)" in shown


def test_the_closing_line_says_what_was_measured():
    """Of records that keep the k largest only, the KL is not known, only what it is at least."""
    log = [{"step": 0, "eval_kl": 2.0}, {"step": 10, "eval_kl": 0.51, "eval_kl_bound": 0.4}]

    def text(lines, metric="kl", *, saved=10, ended_early=False):
        held_out = Evaluations.of(lines, metric).as_dict(metric) | {"ended_early": ended_early}
        return best_text(held_out, saved=saved, steps=20)

    assert text(log) == "; held-out kl 0.510 at step 10, the best, which is saved"
    assert text(log, "kl_bound") == "; held-out kl, at least 0.400 at step 10, the best, which is saved"
    last = "; held-out kl 0.510 at step 10, the best; the student is that of step 20"
    assert [text(log, saved=saved) for saved in (20, None)] == [last, last]
    assert text(log, saved=20, ended_early=True) == f"{last}, after which training ended early"
    assert text(log, ended_early=True) == text(log)
    assert best_text(None, saved=10, steps=10) == text(log[:1]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (4e5, "111 h 6 min"),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text
