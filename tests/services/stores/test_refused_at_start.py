"""`serve --cask-root URL` and `capture --cask URL` where nothing can be put: one line, before a teacher is loaded."""

import json

import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.cli.main import main
from tests.support.services.stored_casks import captured

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


@pytest.fixture
def model(tmp_path):
    """Looks like a model from outside; loading it would fail, so a test that gets that far fails."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(params=["serve", "capture"])
def run(request, model, tmp_path, capsys, monkeypatch):
    """A function: the command with its casks at a URL; exit code and what it said."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)
    (tmp_path / "corpus.jsonl").write_text('{"text": "a"}\n')

    def command(url, *more, folder=True):
        if request.param == "serve":
            words = ["--cask-root", url, *(["--data-dir", str(tmp_path / "state")] if folder else [])]
        else:
            words = [
                str(tmp_path / "corpus.jsonl"),
                "--cask",
                url,
                *(["--work", str(tmp_path / "work")] if folder else []),
            ]
        with pytest.raises(SystemExit) as ended:
            main([request.param, *words, "--teacher", str(model), "--engine", "transformers", *more])
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1, err
        return ended.value.code, err

    return command


def test_no_bucket(run, bucket):
    code, err = run(f"{bucket}-not/casks")
    assert (code, f"{bucket}-not/casks: there is no such bucket. Make it, or name another" in err) == (1, True)


def test_read_only(run, root, faults):
    faults.fault = lambda call, number: "denied" if call[0] in ("PutObject", "CreateMultipartUpload") else None
    code, err = run(root)
    assert (code, "the object store failed" in err, "Check address, credentials and network" in err) == (1, True, True)


def test_nobody_answers(run, root, faults):
    faults.fault = lambda call, number: "gone"
    code, err = run(root)
    assert (code, f"{root}/.logitcask-probe: the object store failed" in err) == (1, True)


def test_no_credentials(run, root, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    code, err = run(root)
    assert (code, "credentials" in err) == (1, True)


def test_a_store_without_conditions(run):
    code, err = run("memory://somewhere/casks")
    assert (code, "add --single-writer and see to it" in err) == (1, True)


def test_where_all_else_goes_must_be_said(run):
    code, err = run("s3://bucket/casks", folder=False)
    assert code == 2
    assert "--data-dir: is needed" in err or "--work: is needed" in err
    assert "s3://bucket/casks" in err


def test_a_probe_leaves_nothing(serve_there, root):
    server = serve_there()
    server.service._storage_watch.ask_store()
    assert server.service._storage_watch.fault() is None
    assert SharedStore(root).children() == []
    assert SharedStore(root).unfinished_uploads("") == []


def test_with_a_single_writer_any_store_will_do(serve, documents, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    root = "memory://single-writer/casks"
    try:
        server = serve(cask_root=root, single_writer=True)
        assert captured(server, documents)["documents"]["captured"] == 40
        assert captured(server, documents)["documents"]["present"] == 40
        assert len(Cask.open(f"{root}/cask", cache=tmp_path / "cache")) == 40
        assert [each["name"] for each in server.client.get("/v1/casks").json()["data"]] == ["cask"]
    finally:
        fsspec.filesystem("memory").rm("memory://single-writer", recursive=True)
