"""How far a report is, and how often it loads a model: once where memory allows, with the same figures otherwise."""

import io
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.counted_work import CountedWork
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.report.readers import OpenedModels, free_bytes
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.training.run import train
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model, tiny_tokenizer

DOCUMENTS = random_documents(10, low=26, high=50, seed=3)
ANSWERS = [[(8 + n, 14 + n)] for n in range(10)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of three models: a student, a checkpoint whose weights its run rounds, one that cannot read packed documents."""
    folder = tmp_path_factory.mktemp("counted")
    teacher = save_teacher(folder / "teacher")
    build_cask(folder / "train", teacher, random_documents(12))
    build_cask(folder / "held", teacher, DOCUMENTS, answers=ANSWERS)
    tiny_model(seed=9).save_pretrained(folder / "student")
    sizes: dict[str, Any] = {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8}
    tiny_model("mamba2", layers=1, **sizes).save_pretrained(folder / "mamba")
    for name in ("student", "mamba"):
        tiny_tokenizer().save_pretrained(folder / name)
    settings: dict[str, Any] = {
        "seq_len": 64,
        "batch_tokens": 256,
        "max_steps": 2,
        "save_steps": 1,
        "quantize": "int4:group=16",
    }
    run: dict[str, Any] = {"student": "from-teacher:layers=2", "teacher": folder / "teacher", "output": folder / "run"}
    train(TrainConfig(casks=(folder / "train",), **run, **settings))
    models = (
        ("student", folder / "student"),
        ("rounded", folder / "run" / "checkpoints" / "checkpoint-1"),
        ("recurrent", folder / "mamba"),
    )
    return ReportConfig(casks=(folder / "held",), models=models, output=folder / "out", generate=4)


@pytest.fixture
def loaded(monkeypatch):
    """Names of the folders that a model is loaded from, in order."""
    names = list[str]()

    def counted(folder, **options):
        names.append(folder.name)
        return load(folder, **options)

    load = load_model
    for module in ("held_out.reading", "report.readers"):
        monkeypatch.setattr(f"logitcask_consumer.{module}.load_model", counted)
    return names


def test_models_are_loaded_once_where_there_is_room(config, loaded, monkeypatch, tmp_path):
    monkeypatch.setattr("logitcask_consumer.report.build.OpenedModels", lambda: OpenedModels(free=lambda: 1 << 40))
    kept = make_report(replace(config, output=tmp_path / "kept"))
    # Masks were tried on the one that keeps no documents apart.
    assert loaded == ["student", "checkpoint-1", "mamba", "mamba"]
    loaded.clear()
    monkeypatch.setattr("logitcask_consumer.report.build.OpenedModels", lambda: OpenedModels(free=lambda: 0))
    again = make_report(replace(config, output=tmp_path / "again"))
    assert loaded == ["student", "checkpoint-1", "mamba"] * 2
    assert kept == again


def test_what_is_kept_fits_into_a_share_of_what_is_free():
    model = tiny_model(layers=1)
    size = sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))
    free = 10 * size
    opened = OpenedModels(free=lambda: free)
    for name in "abcd":
        opened.keep(name, model)
        free -= size
    # A quarter of the ten that are free, and of the one to three that are held.
    assert [opened.take(name) is not None for name in "abcd"] == [True, True, False, False]
    assert opened.take("a") is None, "it is held no longer"
    assert free_bytes() >= 0


def test_each_piece_of_work_is_counted_to_its_end(config, tmp_path):
    pieces, said = dict[str, list[int]](), list[str]()

    @contextmanager
    def counting(what, total, unit):
        done = list[int]()
        yield done.append
        pieces[f"{what}, {unit}"] = [total, sum(done)]

    positions = sum(len(document) - 1 for document in DOCUMENTS)
    make_report(replace(config, output=tmp_path), say=said.append, counting=counting)
    assert pieces == {
        "reading the teacher's records, positions": [positions, positions],
        **{
            f"{what}, {unit}": [total, total]
            for number, (label, _) in enumerate(config.models, start=1)
            for what, unit, total in (
                (f"measuring {label} (model {number} of 3)", "positions", positions),
                (f"{label} writes (model {number} of 3)", "texts", 4),
            )
        },
    }
    assert f"measuring rounded at {positions:,} positions (model 2 of 3)" in said


def test_a_line_every_few_seconds_says_what_is_left(monkeypatch):
    now = 100.0
    monkeypatch.setattr("logitcask_consumer.report.counted_work.time.monotonic", lambda: now)
    file = io.StringIO()
    console = Console(file=file, width=40)
    with CountedWork(console)("measuring [b] (model 1 of 2)", 4000, "positions") as done:
        for later in (110.0, 116.0, 118.0, 200.0):
            now = later
            done(1000)
    # After 16 s half is done; the last line would say that nothing is left.
    assert file.getvalue() == "measuring [b] (model 1 of 2): 2,000 of 4,000 positions, 16 s left\n"


def test_a_terminal_has_a_bar():
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)
    with CountedWork(console)("measuring [b]", 40, "positions") as done:
        done(10)
        done(30)
    shown = file.getvalue()
    assert "measuring [b]" in shown
    assert "40/40" in shown
