"""The command line: light help, exit codes, JSON on stdout only."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from logitcask_schemas.cli.main import COMMANDS, GROUP, main
from logitcask_schemas.cli.show import token_strip
from logitcask_schemas.errors import CaskError
from tests.support.schemas.cask_samples import make_documents

PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
REGISTERED = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][GROUP]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of pyproject.toml, whether or not the package is installed."""
    points = [importlib.metadata.EntryPoint(name, value, GROUP) for name, value in REGISTERED.items()]

    def entry_points(*, group: str, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
        return [point for point in points if group == GROUP and name in (None, point.name)]

    monkeypatch.setattr("logitcask_schemas.cli.main.importlib.metadata.entry_points", entry_points)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    return stopped.value.code  # type: ignore[return-value]


def with_command(monkeypatch: pytest.MonkeyPatch, work: Any, name: str = "train") -> None:
    app = typer.Typer()
    app.command()(work)
    point = SimpleNamespace(name=name, load=lambda: app)
    monkeypatch.setattr("logitcask_schemas.cli.main.importlib.metadata.entry_points", lambda **_: [point])


def test_the_table_lists_what_is_registered() -> None:
    assert set(COMMANDS) == set(REGISTERED)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom logitcask_schemas.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stopped:\n    code = stopped.code\n"
        "heavy = {'torch', 'transformers', 'vllm', 'fastapi', 'pyarrow', 'numpy', 'zarr'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    for name in COMMANDS:
        assert name in result.stdout


def environment() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(folder for folder in sys.path if folder), "PATH": "/usr/bin:/bin"}


def test_usage_errors_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("no-such-command") == 2
    assert run("cask", "verify") == 2
    assert run("cask", "ls", "--no-such-option") == 2
    assert capsys.readouterr().out == ""


def test_own_errors_are_messages_without_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cask", "stats", str(tmp_path)) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {tmp_path}: not a cask")
    assert "Traceback" not in output.err


def test_a_folder_of_casks_is_no_cask_but_names_them(cask_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cask", "verify", str(cask_path.parent)) == 1
    assert "It holds casks; name one of them: cask." in capsys.readouterr().err


def test_a_folder_without_casks_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cask", "ls", str(tmp_path)) == 0
    assert capsys.readouterr() == ("", f"no casks in {tmp_path}\n")
    assert output_of(capsys, "ls", str(tmp_path)) == []


@pytest.mark.parametrize("late", [False, True], ids=["while loading", "while running"])
def test_a_missing_extra_is_named(monkeypatch, capsys: pytest.CaptureFixture[str], late: bool) -> None:
    def work() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    if late:
        with_command(monkeypatch, work)
    else:
        point = SimpleNamespace(name="train", load=work)
        monkeypatch.setattr("logitcask_schemas.cli.main.importlib.metadata.entry_points", lambda **_: [point])
    assert run("train") == 2
    assert 'pip install ".[trainer]"' in capsys.readouterr().err


def test_a_broken_installation_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        raise ModuleNotFoundError("No module named 'logitcask_consumer.gone'", name="logitcask_consumer.gone")

    with_command(monkeypatch, work)
    with pytest.raises(ModuleNotFoundError):
        main(["train"])


@pytest.mark.parametrize(
    ("error", "code"),
    [(CaskError("broken"), 1), (KeyboardInterrupt(), 130), (typer.Exit(3), 3), (None, 0)],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException | None, code: int) -> None:
    def work() -> None:
        if error is not None:
            raise error

    with_command(monkeypatch, work)
    assert run("train") == code


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        raise RuntimeError("a bug")

    with_command(monkeypatch, work)
    with pytest.raises(RuntimeError):
        main(["train"])


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run("cask", *arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


def test_cask_commands_print_json(cask_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (listed,) = output_of(capsys, "ls", str(cask_path.parent))
    assert (listed["name"], listed["documents"], listed["shards"]) == ("cask", 8, 2)
    assert sum(entry["documents"] for entry in output_of(capsys, "ls", str(cask_path))) == 8
    stats = output_of(capsys, "stats", str(cask_path))
    assert stats["bytes"] == sum(file.stat().st_size for file in (cask_path / "shards").glob("*.arrow"))
    assert sum(stats["column_bytes_per_token"].values()) == pytest.approx(stats["bytes_per_token"])
    assert output_of(capsys, "verify", str(cask_path))["problems"] == []
    assert output_of(capsys, "verify", str(cask_path), "--max-duration", "0")["verified"] == 0


@pytest.mark.parametrize("tokenizer", [None, "", '{"version": "1.0", "model": {"type": "Newer", "vocab": {}}}'])
def test_a_tokenizer_that_is_none_is_told_in_one_line(
    cask_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: str | None
) -> None:
    pytest.importorskip("transformers")
    if tokenizer is not None:
        (tmp_path / "nope").mkdir()
    if tokenizer:  # one that the Rust backend refuses with a bare Exception
        (tmp_path / "nope" / "tokenizer.json").write_text(tokenizer)
        (tmp_path / "nope" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert run("cask", "show", str(cask_path), "0", "--tokenizer", str(tmp_path / "nope")) == 1
    assert f"--tokenizer {tmp_path / 'nope'}" in capsys.readouterr().err.replace("\n", "")


def test_cask_show(cask_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = make_documents([2, 3, 40], seed=1)[2]
    shown = output_of(capsys, "show", str(cask_path), document.id.hex()[:12], "--start", "30", "--count", "50")
    assert shown["id"] == document.id.hex()
    assert [position["position"] for position in shown["positions"]] == list(range(30, 39))
    assert shown["positions"][-1]["next"] == str(document.token_ids_L[-1])
    assert run("cask", "show", str(cask_path), "99") == 1
    assert run("cask", "show", str(cask_path), "abc") == 1
    assert run("cask", "show", str(cask_path), document.id.hex(), "--start", "39") == 1
    assert run("cask", "show", str(cask_path), document.id.hex()) == 0
    assert "entropy" in capsys.readouterr().out
    assert run("cask", "show", str(cask_path), document.id.hex(), "--color", "mood") == 2


def test_the_strip_is_coloured_by_doubt() -> None:
    """The surest token is green and the least sure one red, by either measure."""
    positions = [
        {"token": "7", "next": "8", "entropy": 0.0, "probability": 1.0},
        {"token": "8", "next": "9", "entropy": 9.0, "probability": 0.0},
    ]
    for measure in ("entropy", "probability"):
        strip = token_strip(positions, measure, texts=False)
        assert strip.plain == "7 8 9 "
        assert [str(span.style) for span in strip.spans] == ["black on rgb(46,160,67)", "black on rgb(215,58,73)"]
    texts = [{"token": '"a b"', "next": '"\\n"', "entropy": 0.0, "probability": 1.0}]
    assert token_strip(texts, "entropy", texts=True).plain == "a b\n"


def test_verify_part_of_a_cask(cask_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of(capsys, "verify", str(cask_path), "--sample", "0.01")["verified"] == 1
    assert output_of(capsys, "verify", str(cask_path), "--sample", "0")["verified"] == 0
    assert run("cask", "verify", str(cask_path), "--sample", "1.5") == 2


def test_repair_lists_what_to_capture_again(cask_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of(capsys, "repair", str(cask_path))["quarantine"] is None
    document = make_documents([2, 3, 40], seed=1)[2]
    for shard in (cask_path / "shards").glob("*.arrow"):
        content = bytearray(shard.read_bytes())
        if (at := content.find(document.records.head_ids_H.tobytes())) >= 0:
            content[at] ^= 1
            shard.write_bytes(bytes(content))
    assert output_of(capsys, "verify", str(cask_path), code=3)["lost_documents"] == [document.id.hex()]
    repaired = output_of(capsys, "repair", str(cask_path), code=3)
    assert repaired["requeue"] == [document.id.hex()]
    line = json.loads(Path(repaired["requeue_file"]).read_text())
    assert line == {"custom_id": document.id.hex(), "input_ids": document.token_ids_L.tolist()}
    assert output_of(capsys, "verify", str(cask_path))["problems"] == []
    assert run("cask", "repair", str(cask_path)) == 0
    assert "nothing to repair" in capsys.readouterr().out


def test_merge_and_split(cask_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into = str(tmp_path / "a"), str(tmp_path / "b")
    split = output_of(capsys, "split", str(cask_path), "--fraction", "0.5", "--into", *into)
    assert sum(counts["added"] for counts in split["casks"].values()) == 8
    merged = output_of(capsys, "merge", str(tmp_path / "back"), *into)
    assert (merged["documents"], merged["duplicates"]) == (8, 0)
    assert run("cask", "split", str(cask_path), "--fraction", "2", "--into", *into) == 1
    assert run("cask", "merge", str(cask_path), str(cask_path)) == 1
    assert run("cask", "split", str(cask_path)) == 2


def test_verify_exits_3_on_damage(cask_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next((cask_path / "shards").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.unlink()
    shard.write_bytes(bytes(content))
    result = output_of(capsys, "verify", str(cask_path), code=3)
    assert result["damaged_shards"] == [shard.stem]
    assert run("cask", "verify", str(cask_path)) == 3


@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_the_terminal(cask_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in (
        ["show", str(cask_path), "4", "--count", "30"],
        ["ls", str(cask_path)],
        ["stats", str(cask_path)],
    ):
        assert run("cask", *arguments) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "\x1b" not in line]
        assert max(map(len, lines)) <= width
    monkeypatch.delenv("COLUMNS")
    assert run("cask", "show", str(cask_path), "4", "--alternatives", "99") == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if "  +" in line], "nothing is cut in a pipe"


def test_a_document_does_not_steer_the_terminal() -> None:
    positions = [{"token": '"\\u001b[2J"', "next": '"a\\nb"', "entropy": 0.0, "probability": 1.0}]
    assert token_strip(positions, "entropy", texts=True).plain == "\\x1b[2Ja\nb"


def test_cask_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cask", "--help") == 0
    shown = capsys.readouterr().out
    for name in ("ls", "show", "stats", "verify", "repair", "export", "import", "merge", "split"):
        assert f" {name} " in shown
        assert name in COMMANDS["cask"].help


@pytest.fixture
def convert(tmp_path: Path) -> list[str]:
    """A conversion that would work, without its cache."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "src").mkdir()
    options = ["--from", "distillkit", "--tokenizer", str(tmp_path / "tokenizer"), "--model", "big"]
    return ["cask", "convert", str(tmp_path / "src"), str(tmp_path / "cask"), *options]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 1, "holds no *.parquet of DistillKit"),
        (["--vocab-size", "99999999999999999999"], 2, "16777216"),
        (["--vocab-size", "4294967296"], 2, "16777216"),
        (["--model", ""], 2, "--model: expected a name on one line"),
        (["--model", "big\n\x1b[31mred"], 2, "--model: expected a name on one line"),
    ],
)
def test_options_of_convert_are_looked_at_before_the_cache(
    convert: list[str], capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert run(*convert, *options) == code
    assert message in capsys.readouterr().err


def test_convert_reads_local_folders_and_says_what_a_tokenizer_is(
    convert: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*convert[:2], "s3://x/y", *convert[3:]) == 2
    assert "expected a local folder of distillkit's files, got s3://x/y; download it first" in capsys.readouterr().err
    assert run(*convert, "--tokenizer", str(tmp_path / "src")) == 1
    error = capsys.readouterr().err
    assert "src holds no files of a tokenizer" in error
    assert error.count("\n") == 1
