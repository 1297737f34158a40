"""`logitcask fidelity` on a tiny model: what it prints and writes, and what it refuses before anything is loaded."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.errors import CaskNotFoundError, IdentityMismatchError, ModelError, OptionError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.cask_places import FolderError
from logitcask_services.cli.fidelity import app
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.factory import load_engine
from logitcask_services.fidelity import FidelityError

SPEC = CaptureSpec(tau=0.05, logprob_codec="u8")


@pytest.fixture(scope="module")
def engine(tiny_llama):
    engine = load_engine("transformers", tiny_llama)
    yield engine
    engine.close()


def write_cask(place, engine, tasks):
    with CaskWriter.create(place, teacher=engine.identity, capture=SPEC, version=2) as writer:
        found = [result.document for result in engine.capture(tasks, SPEC)]
        if found:
            writer.publish(found)
    return place


def tasks(count, length=30, context=None):
    return [
        CaptureTask(
            key=n,
            token_ids_L=np.random.default_rng(n).integers(0, 300, length).astype(np.uint32),
            context=context,
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def cask(tmp_path_factory, engine):
    return write_cask(tmp_path_factory.mktemp("casks") / "cask", engine, tasks(9))


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample.jsonl"
    lines = [{"text": " ".join(f"w{n % 290}" for n in range(start, start + 60))} for start in range(0, 300, 30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})  # so that no row is broken


@pytest.fixture
def nothing_loads(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("an engine was loaded")

    monkeypatch.setattr("logitcask_services.engines.factory.load_engine", load)


def test_a_cask_is_looked_at_by_the_engine_and_in_the_dtype_that_made_it(tiny_llama, cask, tmp_path):
    result = run("--teacher", tiny_llama, "--cask", cask, "--positions", 100, "--window", 16, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "codec: an exact record in u8" in result.stdout
    written = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert (written["format"], written["documents"], written["positions"]) == ("logitcask-fidelity", 4, 116)
    assert written["teacher"]["engine"] == "transformers"
    assert written["differences"] == {}
    names = ["control", "capture", "codec", "cask", "target", "noise", "truncation", "window-16"]
    assert [row["name"] for row in written["rows"]] == names
    assert all(row["nats"]["value"] >= 0 for row in written["rows"] if row["name"] != "target")
    page = (tmp_path / "out" / "fidelity.md").read_text()
    assert page.count("\n| ") == 9
    assert all(f"\n| `{name}`: " in page and f"{name}: " in result.stdout for name in names), "as docs call them"
    again = run("--teacher", tiny_llama, "--cask", cask, "--positions", 100, "--window", 16, "--json")
    assert json.loads(again.stdout) == written


def test_a_cask_in_an_object_store_is_fetched_through_the_users_cache(tiny_llama, cask, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec", reason="object stores need the extra `remote`")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(f"{cask}/", "memory://fidelity/cask/", recursive=True)
    try:
        how = ("--teacher", tiny_llama, "--positions", 100, "--json")
        there, here = (run(*how, "--cask", place) for place in ("memory://fidelity/cask", cask))
    finally:
        fsspec.filesystem("memory").rm("memory://fidelity", recursive=True)
    assert there.exit_code == 0, there.output
    assert json.loads(there.stdout)["rows"] == json.loads(here.stdout)["rows"]
    assert list((tmp_path / "cache" / "logitcask" / "casks").iterdir())


def test_a_corpus_is_captured_here(tiny_llama, sample):
    how = ("--engine", "transformers", "--tau", "0.1", "--codec", "f32", "--json")
    result = run("--teacher", tiny_llama, "--sample", sample, *how)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["capture"]["tau"] == 0.1
    assert document["documents"] == 10
    rows = {row["name"]: row for row in document["rows"]}
    assert rows["codec"]["nats"]["value"] < 1e-6
    assert "window-16" not in rows


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), OptionError, "expected one of --cask and --sample"),
        (("--cask", "a", "--sample", "b"), OptionError, "expected one of --cask and --sample"),
        (("--cask", "CASK", "--tau", "0.1"), OptionError, "--tau: of --sample; a cask says itself"),
        (("--sample", "missing.jsonl"), OptionError, "missing.jsonl: no such file"),
        (("--cask", "missing"), CaskNotFoundError, "missing"),
        (("--cask", "CASK", "--engine-option", "x=1"), OptionError, "x are options of vLLM, and the engine is transf"),
        (("--cask", "EMPTY"), FidelityError, "holds no document yet"),
        (("--cask", "UNDER_CONTEXT"), FidelityError, "under contexts"),
        (
            ("--cask", "CASK", "--max-model-len", "16"),
            FidelityError,
            "a document of 30 tokens exceeds the teacher's 16",
        ),
        (("--sample", "EMPTY_LINES"), FidelityError, "holds no document of two tokens or more"),
        (("--cask", "CASK", "--output", "IN_A_FILE"), FolderError, "name another with --output"),
        (("--cask", "CASK", "--output", "IN_THE_CASK"), OptionError, "which holds nothing else; name another"),
    ],
)
def test_what_cannot_be_looked_at_is_told_before_a_model_is_loaded(
    tiny_llama, engine, cask, tmp_path, nothing_loads, arguments, error, message
):
    context = ContextTokens(token_ids_C=np.arange(5, dtype=np.uint32))
    (tmp_path / "lines.jsonl").write_text("\n")
    places = {
        "CASK": cask,
        "EMPTY_LINES": tmp_path / "lines.jsonl",
        "IN_THE_CASK": cask / "out",
        "IN_A_FILE": tmp_path / "lines.jsonl" / "out",
    }
    if "EMPTY" in arguments:
        places["EMPTY"] = write_cask(tmp_path / "empty", engine, [])
    if "UNDER_CONTEXT" in arguments:
        places["UNDER_CONTEXT"] = write_cask(tmp_path / "under", engine, tasks(3, context=context))
    result = run("--teacher", tiny_llama, *(places.get(argument, argument) for argument in arguments))
    assert isinstance(result.exception, error), result.output
    assert message in str(result.exception)


def test_a_teacher_that_is_none_or_another_is_refused_before_it_is_loaded(
    tmp_path, cask, nothing_loads, tokenizer_saver, tiny_llama
):
    result = run("--teacher", tmp_path / "nowhere", "--cask", cask)
    assert isinstance(result.exception, ModelError)
    assert "no such folder" in str(result.exception)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for name in ("config.json", "model.safetensors"):
        (stranger / name).write_bytes((tiny_llama / name).read_bytes())
    tokenizer_saver(stranger, 299)
    result = run("--teacher", stranger, "--cask", cask)
    assert isinstance(result.exception, IdentityMismatchError)
    assert "name the teacher that the cask was made with" in str(result.exception)
