"""`logitcask train` from the command line: JSON out, errors with an exit code, the surface frozen."""

import json
import subprocess
import sys

import pytest
import typer

from logitcask_consumer.cli import report, train
from logitcask_schemas.cli.main import main
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_tokenizer

OPTIONS = {
    "train": {
        "--cask", "--student", "--output", "-o", "--teacher", "--loss", "--ce-weight", "--weights", "--extra-ids",
        "--hints", "--target", "--epochs", "--max-steps", "--lora", "--freeze-head", "--no-freeze-head",
        "--seq-len", "--overlap", "--packing", "--batch-tokens", "--micro-tokens", "--lr", "--warmup", "--min-lr-ratio",
        "--optimizer", "--scheduler", "--decay", "--merge", "--no-merge", "--save-dtype", "--router-loss",
        "--quantize", "--save-quantized", "--no-save-quantized",
        "--weight-decay", "--max-grad-norm", "--keep-checkpoints", "--cache", "--cache-bytes",
        "--seed", "--precision", "--fsdp", "--gradient-checkpointing", "--no-gradient-checkpointing", "--save-steps",
        "--logging-steps", "--workers", "--report-to", "--resume", "--json", "--config",
        "--eval-cask", "--eval-every", "--eval-documents", "--patience", "--min-improvement", "--load-best",
        "--no-load-best",
    },
    "report": {
        "--cask", "--model", "--output", "-o", "--train-log", "--seq-len", "--batch-tokens", "--teacher", "--seed",
        "--json", "--token-scores", "--card", "--checkpoints", "--control", "--draft-length", "--generate", "--speed",
        "--tasks", "--perturb", "--task-code",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    build_cask(folder / "cask", save_teacher(folder / "teacher"), random_documents(20))
    return folder


def call(*arguments):
    """In a process of its own, as a user does."""
    command = [sys.executable, "-c", "from logitcask_schemas.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def said_by(capsys):
    """Run a command in this process, which has loaded what it needs already; what it prints."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        assert not ended.value.code
        return capsys.readouterr().out

    return run


@pytest.fixture
def refusal(capsys, monkeypatch):
    """Run a command in this process, for errors that are found before anything is loaded; (exit code, out, err)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


@pytest.mark.parametrize(("name", "module"), [("train", train), ("report", report)])
def test_options_are_a_promise(name, module):
    """Adding one is adding it here; removing one breaks somebody's script."""
    parameters = typer.main.get_command(module.app).params
    found = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    off = {
        "--no-gradient-checkpointing",
        "--no-freeze-head",
        "--no-merge",
        "--no-load-best",
        "--no-save-quantized",
    }
    assert found - {"--help"} == OPTIONS[name] - (off - found)


def test_train_prints_one_json_document_and_continues_nothing_twice(place, said_by):
    arguments = ["train", "--cask", place / "cask", "--student", "from-teacher:layers=2", "--teacher"]
    arguments += [place / "teacher", "--output", place / "out", "--seq-len", 64, "--epochs", 10, "--lr", 3e-3, "--json"]
    first = call(*arguments)
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["run"]["status"] == "finished"
    assert document["run"]["result"]["last"]["kl"] < document["run"]["result"]["first"]["kl"]
    assert "sequences of 64" in first.stderr
    assert "step " in first.stderr
    assert json.loads(said_by(*arguments))["already_finished"]


def test_errors_are_one_line_and_an_exit_code(place, tmp_path, refusal):
    tiny_tokenizer("x").save_pretrained(tmp_path)
    cases = [
        (["--cask", tmp_path / "gone", "--student", place / "teacher"], 1, "gone"),
        (["--cask", place / "cask", "--student", "nothing"], 1, "neither"),
        (["--cask", place / "cask", "--student", place / "teacher", "--loss", "kl"], 2, "there is no loss 'kl'"),
        (["--cask", place / "cask", "--student", place / "teacher", "--lr", "fast"], 2, "--lr"),
        (["--cask", place / "cask"], 2, "--student"),
        (["--cask", place / "cask", "--student", ""], 2, "is empty;"),
        (["--cask", place / "cask", "--student", place / "teacher", "--packing", "tight"], 2, "packing must be"),
        (["--cask", place / "cask", "--student", place / "teacher", "--loss", "nan*forward_kl"], 2, "must be finite"),
    ]
    for arguments, code, message in cases:
        found, out, err = refusal("train", *arguments, "--output", tmp_path / "out")
        assert (found, out) == (code, "")
        assert message in err
        assert "Traceback" not in err
        assert code == 2 or err.count("\n") == 1, err
    code, _, err = refusal("train", "--cask", place / "cask", "--student", place / "teacher", "--output", "")
    assert (code, "is empty;" in err) == (2, True)


def test_a_report_takes_models_of_the_hub(place, tmp_path, refusal, monkeypatch):
    def snapshot_download(repository, **_):
        raise OSError(f"{repository} was asked for")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    arguments = ("--cask", place / "cask", "--output", tmp_path / "out")
    code, _, err = refusal("report", "--model", f"a={place / 'teacher'}", "--model", "b=org/tiny", *arguments)
    assert (code, "org/tiny was asked for" in err) == (1, True), err
    code, _, err = refusal("report", "--model", f"b={place / 'student'}", *arguments)
    assert (code, "or a model of the Hub as label=ORG/NAME" in err) == (1, True), err


def test_a_file_of_options_stands_under_those_of_the_command_line(place, tmp_path, refusal, said_by):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"cask: {place / 'cask'}\nstudent: from-teacher:layers=2\nteacher: {place / 'teacher'}\n"
        f"output: {tmp_path / 'out'}\nseq-len: 64\nmax_steps: 9\nlr: 0.003\nreport-to: []\nfreeze-head: true\n"
    )
    settings = json.loads(said_by("train", "--config", path, "--max-steps", 2, "--json"))["run"]["settings"]
    assert (settings["seq_len"], settings["max_steps"], settings["lr"]) == (64, 2, 0.003)
    assert settings["freeze_head"]
    for content, message in (
        ("learning_rate: 1", "there is no option learning_rate"),
        ("batch_token: 1", "there is no option batch_token; the nearest is batch-tokens; there are: batch-tokens"),
        ("lr: fast", "Invalid value for '--lr'"),
        ("- lr", "holds no options"),
        ("lr: [", "cannot be read"),
        ("seq-len: 64\nseq_len: 32", "seq-len stands there twice"),
        ("packing: null", "packing: expected a text, a number, true or false, got no value"),
        ("teacher: ''", "teacher: is empty"),
        ("json: true", "there is no option json"),
        ("student: 12", "student '12' is neither"),  # a number may be a folder's name
        ("student: 012", "student '012' is neither"),  # no octal number, as on the command line
        ("student: 10:30", "student '10:30' is neither"),  # nor one of minutes and seconds
        ("student: 2026-01-02", "student '2026-01-02' is neither"),
        ("epochs: yes", "epochs: expected a text or a number, got yes, which is true or false in YAML"),
        ("lr: true", "lr: expected a text or a number, got true"),
        ("max-steps: off", "max-steps: expected a text or a number, got off"),
        ("student: no", "student: expected a text or a number, got no, which is true or false"),
        ("cask: [on]", "cask: expected a text or a number, got on"),
        ("report-to: [null]", "report-to: expected a text, a number, true or false, got no value"),
        ("epochs: [1, 2]", "epochs: expected a text, a number, true or false, got a list"),
        ("epochs: {a: 1}", "epochs: expected a text, a number, true or false, got a mapping"),
        ("epochs: 1 2", "Invalid value for '--epochs'"),
        ("freeze-head: 2", "Invalid value for '--freeze-head'"),
    ):
        path.write_text(content)
        is_student = message.startswith("student '")
        more = [] if is_student else ["--student", "x"]
        options = ["--config", path, "--cask", place / "cask", *more, "--output", tmp_path / "no"]
        code, out, err = refusal("train", *options)
        assert (code, out) == (1 if is_student else 2, ""), err
        assert message in " ".join(err.replace("\u2502", " ").split()), err


@pytest.mark.parametrize("option", ["--output", "--cache", "--teacher"])
def test_what_a_run_writes_or_reads_here_is_no_address(place, tmp_path, monkeypatch, refusal, option):
    """As a path it would be a folder `s3:` of this machine, which may be lent for the run alone."""
    monkeypatch.chdir(tmp_path)
    given = {"--output": "out", "--student": "x", "--cask": place / "cask", option: "s3://bucket/folder"}
    code, out, err = refusal("train", *(word for pair in given.items() for word in pair))
    assert (code, out) == (2, "")
    assert "expected a folder of this machine, got s3://bucket/folder" in err
    assert not list(tmp_path.iterdir())


def test_a_report_says_that_it_reads_folders(tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    for place, output in (("s3://bucket/held", "report"), (tmp_path / "held", "s3://bucket/report")):
        code, _, err = refusal("report", "--cask", place, "--output", output)
        assert code == 2
        assert "expected a folder of this machine, got s3://bucket/" in err
    assert not list(tmp_path.iterdir())
