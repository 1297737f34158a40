"""The recipes: each is understood by its command, and those that this machine has casks for train a step."""

from pathlib import Path

import pytest
import typer
import yaml

from logitcask_consumer.cli import rounds, train
from logitcask_consumer.config import TrainConfig
from logitcask_consumer.hints import HintObjective
from logitcask_consumer.rounds.config import RoundsConfig
from logitcask_consumer.run_document import read_run
from logitcask_consumer.student.adapters import LoraSpec
from logitcask_consumer.student.from_teacher import FROM_TEACHER, TeacherParts
from logitcask_consumer.training.choose_method import method_class
from logitcask_schemas.cli.main import main
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher

FOLDER = Path(__file__).resolve().parents[3] / "recipes"
ROUNDS = sorted(path.stem for path in FOLDER.glob("rounds_*.yaml"))
PLAIN = sorted({path.stem for path in FOLDER.glob("*.yaml")} - set(ROUNDS))


def options(module, name):
    """What the command is called with, nothing else given."""
    command = typer.main.get_command(module.app)
    with command.make_context("recipe", ["--config", str(FOLDER / f"{name}.yaml")]) as context:
        return dict(context.params)


def written(name):
    """What a recipe says, by the names of the settings."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return {key.replace("-", "_"): value for key, value in content.items()}


def test_there_is_one_for_each_family():
    assert {"forward_kl", "reverse_kl", "js", "skew", "taid", "hints", "multi_teacher", "cross_tokenizer"} <= set(PLAIN)
    assert ROUNDS == ["rounds_distillm", "rounds_f_distill", "rounds_gkd", "rounds_minillm"]
    table = (FOLDER / "README.md").read_text()
    assert all(f"({name}.yaml)" in table for name in (*PLAIN, *ROUNDS))


@pytest.mark.parametrize("name", PLAIN)
def test_train_understands_it(name):
    fields = options(train, name)
    casks, teachers = fields.pop("cask"), fields.pop("teacher") or []
    for other in ("report_to", "eval_cask", "config_file", "as_json"):
        del fields[other]
    config = TrainConfig(casks=tuple(casks), teacher=teachers[0] if teachers else None, **fields)
    method_class(config.loss).check_config(config)
    if config.hints is not None:
        HintObjective.parse(config.hints)
    if config.lora is not None:
        LoraSpec.parse(config.lora)
    if config.student.startswith(FROM_TEACHER):
        TeacherParts.parse(config.student.removeprefix(FROM_TEACHER))
    said = {key: value for key, value in written(name).items() if key in ("loss", "hints", "lora", "student", "lr")}
    assert {key: getattr(config, key) for key in said} == said


@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_understands_it(name):
    fields = options(rounds, name)
    casks, number = fields.pop("cask"), fields.pop("num_rounds")
    for other in ("tau", "server", "api_key_file", "config_file", "as_json"):
        del fields[other]
    config = RoundsConfig(casks=tuple(casks), rounds=number, server="http://127.0.0.1:8000", **fields)
    assert config.recipe.replace("-", "_") == name.removeprefix("rounds_")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher of thirty layers would take long: recipes ask for ten or twenty of them."""
    folder = tmp_path_factory.mktemp("recipes")
    shape = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 4, "hidden_size": 36}
    teacher = save_teacher(folder / "teacher", layers=20, intermediate_size=1030, **shape)
    build_cask(folder / "cask", teacher, random_documents(6), spec=CaptureSpec(tail_logprobs=True))
    return folder


@pytest.mark.parametrize("name", ["forward_kl", "taid", "narrow", "muon"])
def test_it_trains_a_step(name, place, tmp_path):
    arguments = ["--cask", place / "cask", "--teacher", place / "teacher", "--output", tmp_path / "out"]
    arguments += ["--max-steps", 1, "--seq-len", 64]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(FOLDER / f"{name}.yaml"), *map(str, arguments)])
    assert not ended.value.code
    run = read_run(tmp_path / "out") or {}
    assert run["status"] == "finished"
    assert run["settings"]["loss"] == options(train, name)["loss"]
