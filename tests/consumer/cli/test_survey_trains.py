"""Each `train` command of docs/survey.md trains as it stands, on small casks of the names that it says."""

import itertools
import json
import operator
import re
import shlex
from pathlib import Path

import pytest

from logitcask_schemas.cli.main import main
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher
from tests.support.survey_commands import survey_commands

SMALL = {
    "from-teacher:layers=10": "from-teacher:layers=2",
    "mse:map=1:3/2:6,norm=layer@1.0": "mse:map=1:2/2:4,norm=layer@1.0",
}
"""The teacher of these tests has not so many layers."""
WEIGHTED = operator.itemgetter(slice(1, None))
"""Whether a cask's words have more than its name."""
PLAIN, WITH_TAILS = CaptureSpec(), CaptureSpec(tail_logprobs=True)
CASKS = {
    "plain": PLAIN,
    "with-tails": WITH_TAILS,
    "a": WITH_TAILS,
    "b": WITH_TAILS,
    "x.label": PLAIN,
    "x.rationale": PLAIN,
    "hidden": CaptureSpec(hints=HintSpec(layers=(2, 4))),
    "v": CaptureSpec(hints=HintSpec(layers=(4,), of="v")),
    "qkv": CaptureSpec(hints=HintSpec(layers=(4,), of="qkv")),
}
NEEDS_TAILS = re.compile(r"\b(js|tvd|skew_)")
"""Losses that the page says need them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    teacher = save_teacher(folder / "teacher")
    for name, spec in CASKS.items():
        build_cask(folder / name, teacher, random_documents(8), spec=spec)
    return folder


def cask_for(command):
    """The cask that the page says a command needs, where the command names none."""
    if "--hints relation:heads" in command:
        return "qkv"
    if "--hints" in command:
        return "v" if "relation" in command else "hidden"
    return "with-tails" if NEEDS_TAILS.search(command) else "plain"


@pytest.fixture
def said_by(capsys, monkeypatch, place):
    monkeypatch.chdir(place)  # where the casks are

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.mark.parametrize("command", survey_commands("train"))
def test_it_trains(command, said_by, place, tmp_path):
    program, *options = [SMALL.get(word, word) for word in shlex.split(command)]
    if "--cask" not in options:
        options += ["--cask", cask_for(command)]
    if "--student" not in options:
        options += ["--student", "from-teacher:layers=2"]
    rest = ["--teacher", "teacher", "--output", tmp_path / "student", "--seq-len", 64, "--max-steps", 1, "--json"]
    code, out, err = said_by(program, *options, *rest)
    assert code == 0, err
    run = json.loads(out)["run"]
    assert run["status"] == "finished"
    named = dict(itertools.pairwise(options))
    casks = [word.split(":") for option, word in itertools.pairwise(options) if option == "--cask"]
    assert [Path(place).name for place in run["places"]] == [cask for cask, *_ in casks]
    loss = named.get("--loss", "forward_kl")
    assert run["settings"]["loss"].startswith(loss)  # the run says its parameters, too
    assert run["settings"].get("hints") == named.get("--hints")
    weighted = [(float(weight), own) for _, weight, *own in filter(WEIGHTED, casks)]
    mixed = run["settings"].get("mixture", [])
    assert [part["weight"] for part in mixed] == [weight for weight, _ in weighted]
    assert all(part["loss"].startswith((*own, loss)[0]) for part, (_, own) in zip(mixed, weighted, strict=True))


def test_a_command_that_is_wrong_fails(said_by, tmp_path):
    """The control: the same, for a loss that is not there."""
    code, _, err = said_by(
        "train", "--loss", "forward_lk", "--cask", "plain", "--student", "teacher", "--output", tmp_path / "s"
    )
    assert (code, "there is no loss 'forward_lk'" in err) == (2, True)
