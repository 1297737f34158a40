"""`serve --engines N` and `capture --teachers N`: what each engine gets, and what is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from logitcask_schemas.errors import MissingExtraError, OptionError
from logitcask_services.cli import teams
from logitcask_services.cli.capture import app
from logitcask_services.cli.capture_corpus import require_many
from logitcask_services.cli.connection import lines_or_documents
from logitcask_services.cli.setting_options import parameters
from logitcask_services.jobs.executors.corpus_capture import CaptureStoppedError
from logitcask_services.settings import ServiceSettings
from tests.support.services.fake_teacher import FakeEngine


def settings(**changes: Any) -> ServiceSettings:
    fields: dict[str, Any] = {"teacher": Path("t"), "cask_root": Path("c"), **changes}
    return ServiceSettings(**fields)


@pytest.fixture
def devices(monkeypatch):
    """A function: a machine with these GPUs."""

    def have(*names: str) -> None:
        monkeypatch.setattr(teams, "visible_devices", lambda: list(names))

    return have


def test_each_engine_has_gpus_of_its_own(devices):
    devices("0", "1", "2", "3")
    assert teams.device_shares(settings(), 3, option="--engines") == [("0",), ("1",), ("2",)]
    two = settings(engine_options={"tensor_parallel_size": 2})
    assert teams.device_shares(two, 2, option="--engines") == [("0", "1"), ("2", "3")]
    four = settings(engine_options={"tensor_parallel_size": 2, "pipeline_parallel_size": 2})
    assert teams.device_shares(four, 1, option="--engines") == [("0", "1", "2", "3")]


def test_names_of_gpus_are_passed_on(devices):
    devices("GPU-a", "GPU-b")
    assert teams.device_shares(settings(), 2, option="--engines") == [("GPU-a",), ("GPU-b",)]


def test_a_machine_without_gpus_shares_none(devices):
    devices()
    assert teams.device_shares(settings(), 3, option="--engines") == [(), (), ()]
    teams.require_team(settings(engines=3))


@pytest.mark.parametrize(
    ("options", "engines", "words"),
    [
        ({}, 5, r"--engines 5: expected a GPU each, 5 in all; 4 can be seen here \(CUDA_VISIBLE_DEVICES=0,1,2,3\)"),
        ({"tensor_parallel_size": 2}, 3, "expected 2 GPUs each, 6 in all; 4 can be seen here .* Ask for at most 2"),
    ],
)
def test_too_few_gpus_are_refused_in_one_line(devices, options, engines, words):
    devices("0", "1", "2", "3")
    with pytest.raises(OptionError, match=words) as refused:
        teams.require_team(settings(engines=engines, engine_options=options))
    assert "\n" not in str(refused.value)


def test_visible_devices_are_those_of_the_environment(monkeypatch):
    monkeypatch.setattr(teams, "gpu_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert teams.visible_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert teams.visible_devices() == ["5", "7"]


def test_gpus_are_counted_as_torch_counts_them():
    """In another process; here torch may be asked itself."""
    torch = pytest.importorskip("torch")
    teams.gpu_count.cache_clear()
    assert teams.gpu_count() == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engines": 0}, "greater than or equal to 1"),
        ({"teacher": None, "teachers": Path("4")}, "for 4 engines of one teacher say --engines 4"),
        ({"ray_address": "h:1"}, "ray_address: for a Ray cluster; add --executor ray"),
        ({"gpus_per_engine": 1}, "gpus_per_engine: for a Ray cluster"),
        ({"engines": 2, "engine_process": False}, "leave --no-engine-process out"),
        (
            {"engines": 2, "engine": "openai", "remote_url": "http://h"},
            "for teachers that are loaded here; with engine openai leave them out: --remote-concurrency",
        ),
        ({"executor": "slurm"}, "'local' or 'ray'"),
    ],
)
def test_combinations_that_make_no_sense(changes, words):
    with pytest.raises(ValidationError, match=words):
        settings(**changes)


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"\.\[ray\]"):
        teams.require_team(settings(executor="ray", engines=2))


def test_a_cluster_that_does_not_listen_is_named():
    pytest.importorskip("ray", reason="in the extra `ray`")
    with pytest.raises(CaptureStoppedError, match=r"no Ray cluster at 127.0.0.1:1"):
        teams.require_team(settings(executor="ray", engines=2, ray_address="127.0.0.1:1"))


def test_a_capture_finds_the_cluster_before_it_makes_tokens(tmp_path):
    pytest.importorskip("ray", reason="in the extra `ray`")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"input_ids": [1, 2, 3]}\n')
    words = [str(corpus), "--teacher", "absent", "--cask", str(tmp_path / "cask"), "--executor", "ray"]
    result = CliRunner().invoke(app, ["run", *words, "--ray-address", "127.0.0.1:1"])
    assert isinstance(result.exception, CaptureStoppedError)
    assert "no Ray cluster at 127.0.0.1:1" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.mark.parametrize(
    ("count", "text"), [(1, "1 line or document"), (2, "2 lines or documents"), (1200, "1,200 lines or documents")]
)
def test_a_number_of_lines_or_documents(count, text):
    assert lines_or_documents(count) == text


def test_one_engine_asks_for_nothing(monkeypatch):
    """No look at devices, and no Ray."""
    monkeypatch.setattr(teams, "visible_devices", lambda: pytest.fail("nobody asked"))
    teams.require_team(settings())
    engine = FakeEngine()
    assert teams.load_team(settings(), source=None, hints=None, load=lambda: engine) == (engine, None)  # type: ignore[arg-type]


def test_the_options_stand_together_in_the_help():
    panels = {each.name: each.annotation.__metadata__[0].rich_help_panel for each in parameters()}
    named = ("engines", "executor", "ray_address", "gpus_per_engine", "cpus_per_engine")
    assert {panels[name] for name in named} == {"Many engines"}


@pytest.mark.parametrize(
    "changes", [{"engine_process": False}, {"engine": "openai", "remote_url": "http://h"}], ids=["inside", "elsewhere"]
)
def test_capture_of_many_needs_processes_of_its_own(changes):
    with pytest.raises(OptionError, match="--teachers 2: for engines that are loaded here, in processes of their own"):
        require_many(settings(**changes), 2)


def test_capture_of_many_needs_gpus(devices):
    devices("0")
    with pytest.raises(OptionError, match="--teachers 2: expected a GPU each"):
        require_many(settings(), 2)
