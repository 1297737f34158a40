"""What `cask repair` lists goes back to the service by the command it prints, and the cask is what it was."""

import json
import shlex
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.integrity.repair import submit_command
from logitcask_schemas.cli.main import main
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.record_arrays import record_arrays
from tests.support.services.fake_teacher import identity
from tests.support.services.service_harness import jsonl

SPECS = {
    "default": [],
    "all but default": ["--tau", "0.02", "--seed", "5", "--codec", "u8", "--pin", "7", "--pin", "9"],
    "zarr": ["--carrier", "zarr"],
    "answers": ["--loss-on", "assistant"],
}


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command; (exit code, stdout)."""

    def command(server, *arguments):
        monkeypatch.setenv("LOGITCASK_SERVER", server.url)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code or 0, capsys.readouterr().out

    return command


def stored(path: Path) -> dict[bytes, dict[str, bytes]]:
    """The bytes of every column of every document, by id."""
    cask, columns_of = Cask.open(path), {}
    for number in range(len(cask)):
        document = cask.read(number)
        columns_of[document.id] = {name: array.tobytes() for name, array in record_arrays(document.records).items()}
        columns_of[document.id]["token_ids_L"] = document.token_ids_L.tobytes()
    return columns_of


def overwrite(path: Path, at: int) -> None:
    """One bit in a new file, as a cask's files never change in place."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.unlink()
    path.write_bytes(content)


def spoil(cask: Path, number: int) -> None:
    """A bit of some records of a shard; every document's tokens stay sound."""
    shard = Cask.open(cask).shard(number)
    if shard.entry.carrier == "zarr":
        with zipfile.ZipFile(shard.path) as archive:
            member = archive.getinfo("head_logprobs/c/0")
        overwrite(shard.path, member.header_offset + 30 + len(member.filename) + 4)
    else:
        column = np.asarray(shard.columns.arrays["head_logprobs"]).tobytes()
        overwrite(shard.path, shard.path.read_bytes().index(column) + len(column) // 2)


@pytest.mark.parametrize("options", SPECS.values(), ids=SPECS)
def test_damage_repair_submit_and_the_cask_is_whole(serve, run, tmp_path, documents, options):
    corpus, log, cask = tmp_path / "corpus.jsonl", tmp_path / "log", tmp_path / "casks" / "docs"
    if options[:1] == ["--loss-on"]:
        for document in documents:
            ids = document["input_ids"]
            document["labels"] = [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]
    corpus.write_bytes(jsonl(documents))
    server = serve(fake={"log": log})
    assert run(server, "submit", corpus, "--cask", "docs", "--wait", *options)[0] == 0
    before, shards = stored(cask), Cask.open(cask).entries
    assert len(before) == 40
    for number in (0, 2, len(shards) - 1):
        spoil(cask, number)
    assert run(server, "cask", "verify", cask)[0] == 3

    code, out = run(server, "cask", "repair", cask, "--json")
    report = json.loads(out)
    assert code == 3
    assert len(report["damaged_shards"]) == 3
    assert report["requeue"]
    assert not report["lost"]
    assert not report["unnamed"]
    kept = stored(cask)
    assert kept.keys() | {bytes.fromhex(digits) for digits in report["requeue"]} == before.keys()

    if options[:1] == ["--tau"]:
        # Negative control: without its options the command is another capture spec's, and is refused.
        assert run(server, "submit", report["requeue_file"], "--cask", "docs", "--wait")[0] == 1
        assert stored(cask) == kept
    log.write_text("")
    program, *words = shlex.split(report["submit"])
    assert program == "logitcask"
    assert run(server, *words)[0] == 0
    assert stored(cask) == before
    assert {entry.carrier for entry in Cask.open(cask).entries} == {entry.carrier for entry in shards}
    assert run(server, "cask", "verify", cask)[0] == 0
    captured = [line.split()[2] for line in log.read_text().splitlines()]
    assert sorted(captured) == sorted(report["requeue"]), "more than the list was captured again"

    code, out = run(server, *words, "--json")  # it may be sent twice
    assert code == 0
    assert json.loads(out)["documents"]["present"] == len(captured)
    assert stored(cask) == before


def test_what_is_lost_with_its_tokens_comes_from_the_corpus(serve, run, tmp_path, documents):
    """The first command again captures what the cask lacks, and nothing else."""
    corpus, cask = tmp_path / "corpus.jsonl", tmp_path / "casks" / "docs"
    corpus.write_bytes(jsonl(documents))
    server = serve()
    submit = ["submit", corpus, "--cask", "docs", "--wait"]
    assert run(server, *submit)[0] == 0
    before = stored(cask)
    gone = Cask.open(cask).shard(1)
    gone.path.unlink()
    code, out = run(server, "cask", "repair", cask, "--json")
    report = json.loads(out)
    assert code == 3
    assert sorted(report["lost"]) == sorted(identity.tobytes().hex() for identity in gone.document_ids)
    assert report["submit"] is None
    code, out = run(server, *submit, "--json")
    assert code == 0
    assert json.loads(out)["documents"]["present"] == 40 - len(report["lost"])
    assert stored(cask) == before
    assert run(server, "cask", "verify", cask)[0] == 0


def test_a_shorter_context_cuts_no_document_into_another(serve, run, tmp_path, documents):
    """What no longer fits the teacher stays on the list."""
    corpus, cask = tmp_path / "corpus.jsonl", tmp_path / "casks" / "docs"
    corpus.write_bytes(jsonl(documents))
    first = serve()
    assert run(first, "submit", corpus, "--cask", "docs", "--wait")[0] == 0
    before = stored(cask)
    for number in range(len(Cask.open(cask).entries)):
        spoil(cask, number)
    report = json.loads(run(first, "cask", "repair", cask, "--json")[1])
    second = serve(fake={"max_model_len": 20}, data_dir=tmp_path / "second")
    assert run(second, *shlex.split(report["submit"])[1:])[0] == 0
    after = stored(cask)
    assert after.items() < before.items()
    left = {line["custom_id"] for line in map(json.loads, Path(report["requeue_file"]).read_text().splitlines())}
    assert {identity.hex() for identity in before.keys() - after.keys()} < left
    assert run(first, *shlex.split(report["submit"])[1:])[0] == 0
    assert stored(cask) == before


def specs() -> st.SearchStrategy[CaptureSpec]:
    return st.builds(
        CaptureSpec,
        mode=st.sampled_from(["threshold", "topk", "sampled"]),
        tau=st.sampled_from([0.028, 0.05, 0.02, 1e-6]),
        head_max=st.sampled_from([64, 3]),
        tail_max=st.sampled_from([32, 4, 255]),
        k=st.sampled_from([64, 5]),
        draws=st.sampled_from([50, 6]),
        pinned_ids=st.sampled_from([(), (3,), (900, 2)]),
        seed=st.sampled_from([0, 2**62]),
        logprob_codec=st.sampled_from(["f16", "f32", "u8"]),
        tail_logprobs=st.booleans(),
        temperatures=st.sampled_from([(), (2.0,), (0.5, 4.0)]),
    )


@settings(max_examples=60, deadline=None)
@given(spec=specs())
def test_the_command_says_the_whole_capture_spec(tmp_path_factory, spec):
    """Another spec would be another cask: the service would refuse it."""
    folder = tmp_path_factory.mktemp("specs")
    cask, corpus, asked = folder / "a.cask-s_name", folder / "a cask's requeue.jsonl", []
    corpus.write_text("{}")
    CaskWriter.create(cask, teacher=identity(), capture=spec)

    class Client:
        def check(self, *_, **__):
            return {}

        def corpus_with(self, *_, **__):
            return None

        def upload(self, *_, **__):
            return SimpleNamespace(id="corpus-1")

        def submit(self, request, **_):
            asked.append(request)
            return SimpleNamespace(id="extraction-1")

    @contextmanager
    def connect(*_):
        yield Client()

    program, *words = shlex.split(submit_command(cask, corpus))
    assert program == "logitcask"
    words.remove("--wait")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logitcask_services.cli.submit.connect", connect)
        with pytest.raises(SystemExit) as ended:
            main(words)
    assert not ended.value.code
    assert asked[0]["cask"] == cask.name
    assert CaptureSpec.model_validate(asked[0]["capture"]).canonical() == spec.canonical()
