"""`logitcask cask` on casks in object stores: what each command asks the store for, finds, says and leaves behind."""

import importlib
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cask.transfer.export import export_cask, target_of
from logitcask_schemas.cli.main import main
from logitcask_schemas.errors import CaskError
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.schemas.cask_samples import SPEC, make_document, make_documents, make_teacher
from tests.support.schemas.hint_samples import with_hints
from tests.support.schemas.stored_damage import DAMAGES, flip, remove

pytest.importorskip("fsspec", reason="object stores need the extra `remote`")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "logitcask" / "casks"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands make their temporary folders; empty again when they are done."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def export(source: Path, url: str, carrier: str = "arrow") -> None:
    list(export_cask(Cask.open(source), target_of(url), carrier))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["cask", *arguments])
    return stopped.value.code  # type: ignore[return-value]


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert run(*arguments, "--json") == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Every request to S3, as its client sends it: operation, then what it is about."""
    client = pytest.importorskip("aiobotocore.client").AioBaseClient
    original, requests = client._make_api_call, Counter[str]()

    async def counted(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        about = parameters.get("Key") or parameters.get("Prefix") or ""
        requests[f"{operation} {about}"] += 1
        return await original(self, operation, parameters)

    monkeypatch.setattr(client, "_make_api_call", counted)
    return requests


def test_figures_cost_three_requests(bucket: str, local: Path, user_cache: Path, capsys, asked: Counter[str]) -> None:
    export(local, f"{bucket}/cask")
    for command in ("stats", "ls"):
        asked.clear()
        remote = output_of(capsys, command, f"{bucket}/cask")
        assert asked == {
            "GetObject cask/cask.json": 1,
            "ListObjectsV2 cask/shards/": 1,
            "GetObject cask/index.json": 1,
        }
        assert remote == output_of(capsys, command, str(local))
    assert not user_cache.exists()


def test_a_loose_entry_costs_one_more(bucket: str, local: Path, capsys, asked: Counter[str]) -> None:
    export(local, f"{bucket}/cask")
    RemoteStore(f"{bucket}/cask").write("index.json", index_without_the_last(local))
    asked.clear()
    assert len(output_of(capsys, "ls", f"{bucket}/cask")) == 3
    entries = [request for request in asked if "shards/" in request and request.startswith("GetObject")]
    assert entries == [f"GetObject cask/shards/{Cask.open(local).entries[-1].name}.json"]


def index_without_the_last(cask: Path) -> bytes:
    from logitcask_schemas.cask.format.manifest import index_bytes

    return index_bytes(Cask.open(cask).entries[:-1])


def test_a_folder_of_casks(bucket: str, local: Path, capsys, asked: Counter[str]) -> None:
    for name in ("one", "two"):
        export(local, f"{bucket}/casks/{name}")
    store = RemoteStore(f"{bucket}/casks")
    store.write("notes/readme.txt", b"not a cask")
    asked.clear()
    listed = output_of(capsys, "ls", f"{bucket}/casks")
    assert [(row["name"], row["documents"], row["shards"]) for row in listed] == [("one", 9, 3), ("two", 9, 3)]
    assert not [request for request in asked if "documents.bin" in request or ".arrow" in request]
    store.write("two/cask.json", b"{}")
    one, two = output_of(capsys, "ls", f"{bucket}/casks", code=3)
    assert one["documents"] == 9
    assert "no checksum" in two["error"]
    assert run("ls", f"{bucket}/casks") == 3
    shown = capsys.readouterr()
    assert "one" in shown.out
    assert "two: " in shown.err
    assert run("ls", f"{bucket}/nothing") == 1
    assert "there is nothing in the store" in capsys.readouterr().err


def test_show_fetches_one_shard_once(bucket: str, local: Path, tmp_path: Path, user_cache: Path, capsys, asked) -> None:
    export(local, f"{bucket}/cask")
    here, url = Cask.open(local), f"{bucket}/cask"
    expected = output_of(capsys, "show", str(local), "4")
    asked.clear()
    assert output_of(capsys, "show", url, "4") == expected
    shard = f"GetObject cask/shards/{here.entries[1].name}.arrow"
    assert [one for one in asked if "shards/" in one and "List" not in one] == [shard]
    assert "GetObject cask/documents.bin" not in asked
    asked.clear()
    assert output_of(capsys, "show", url, here.read(4).id.hex()[:12]) == expected
    assert asked["GetObject cask/documents.bin"] == 1
    assert not asked[shard]
    assert {file.suffix for file in user_cache.rglob("*") if file.is_file()} == {".arrow", ".bin", ".lock"}
    asked.clear()
    assert output_of(capsys, "show", url, "4", "--cache", str(tmp_path / "other")) == expected
    assert asked[shard] == 1
    assert run("show", url, "4", "--cache", str(tmp_path / "third"), "--cache-bytes", "10") == 1
    assert "the cache may hold 10; allow more" in capsys.readouterr().err


def test_show_fetches_a_damaged_copy_again(memory: str, local: Path, user_cache: Path, capsys) -> None:
    export(local, memory)
    expected = output_of(capsys, "show", memory, "0")
    (copy,) = user_cache.rglob("*.arrow")
    content = bytearray(copy.read_bytes())
    at = content.find(Cask.open(local).read(0).records.head_ids_H.tobytes())
    content[at] ^= 1
    copy.write_bytes(bytes(content))
    assert output_of(capsys, "show", memory, "0") == expected


@pytest.mark.parametrize("kind", DAMAGES)
def test_verify_finds_in_the_store_what_it_finds_in_a_folder(
    memory: str, local: Path, tmp_path: Path, temporary: Path, user_cache: Path, capsys, kind: str
) -> None:
    export(local, memory)
    assert output_of(capsys, "verify", memory)["problems"] == []
    damage, lost = DAMAGES[kind]
    damage(RemoteStore(memory), Cask.open(local))
    copy = tmp_path / "copy"
    assert output_of(capsys, "import", "--as-is", memory, str(copy))["skipped"] == 0
    code = 0 if lost < 0 else 3
    there, here = output_of(capsys, "verify", memory, code=code), output_of(capsys, "verify", str(copy), code=code)
    for name in ("verified", "damaged_shards", "lost_documents", "unnamed_documents", "strangers", "bytes"):
        assert there[name] == here[name], name
    assert len(there["problems"]) == len(here["problems"])
    assert len(there["lost_documents"]) == max(lost, 0)
    assert all(memory in problem or "shard " in problem for problem in there["problems"])
    assert not any(str(tmp_path) in problem for problem in there["problems"])
    assert not list(temporary.iterdir())
    assert not user_cache.exists()


def test_a_stranger_and_part_of_a_cask(memory: str, local: Path, capsys) -> None:
    export(local, memory)
    RemoteStore(memory).write("shards/lost.arrow", b"x")
    assert output_of(capsys, "verify", memory)["strangers"] == ["lost.arrow"]
    assert output_of(capsys, "verify", memory, "--sample", "0.01")["verified"] == 1
    assert output_of(capsys, "verify", memory, "--max-duration", "0")["verified"] == 0


def test_verify_keeps_two_shards_at_most(memory: str, local: Path, temporary: Path, capsys, monkeypatch) -> None:
    export(local, memory)
    original, most = RemoteStore.download, []

    def watched(self: RemoteStore, name: str, target: Path, *rest: Any) -> None:
        original(self, name, target, *rest)
        most.append(len(list(temporary.rglob("*.arrow"))))

    monkeypatch.setattr(RemoteStore, "download", watched)
    assert run("verify", memory) == 0
    assert max(most) <= 2


def test_the_next_shard_is_fetched_while_one_is_verified(
    memory: str, local: Path, temporary: Path, monkeypatch
) -> None:
    remote_verify: Any = importlib.import_module("logitcask_schemas.cask.integrity.remote_verify")
    export(local, memory)
    fetched, original, download = threading.Semaphore(0), remote_verify.verify_shard, RemoteStore.download
    ahead: list[bool] = []
    first = iter([True])

    def counted(self: RemoteStore, name: str, *rest: Any) -> None:
        download(self, name, *rest)
        if name.endswith(".arrow"):
            fetched.release()

    def waiting(cask: Cask, entry: Any, table: Any = None) -> Any:
        if next(first, False):
            fetched.acquire()  # its own
            ahead.append(fetched.acquire(timeout=60))
        return original(cask, entry, table)

    monkeypatch.setattr(RemoteStore, "download", counted)
    monkeypatch.setattr(remote_verify, "verify_shard", waiting)
    assert run("verify", memory) == 0
    assert ahead[0]


def test_a_store_that_dies_is_not_damage(memory: str, local: Path, temporary: Path, capsys, monkeypatch) -> None:
    export(local, memory)
    original, third = RemoteStore.download, f"{Cask.open(local).entries[2].name}.arrow"

    def dying(self: RemoteStore, name: str, *rest: Any) -> None:
        # By name, not by number: two threads fetch ahead, in whatever order.
        if name.endswith(third):
            raise CaskError(f"{self.url}/{name}: the object store failed: timeout")
        original(self, name, *rest)

    monkeypatch.setattr(RemoteStore, "download", dying)
    flip(RemoteStore(memory), Cask.open(local))
    found = output_of(capsys, "verify", memory, code=1)
    assert found["verified"] == 2
    assert "timeout" in found["stopped"]
    assert found["damaged_shards"] == [Cask.open(local).entries[0].name]
    assert not list(temporary.iterdir())
    assert run("verify", memory) == 1
    output = capsys.readouterr()
    assert "2 of 3 shards verified" in output.out
    assert output.err.startswith("error: ")


def test_no_permission_is_not_damage(memory: str, local: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    export(local, memory)
    system, _ = RemoteStore(memory)._system()

    def refuse(path: str, *_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(system), "get_file", lambda self, path, *_, **__: refuse(path))
    assert run("verify", memory) == 1
    assert "Access Denied" in capsys.readouterr().err
    assert run("show", memory, "0") == 1
    assert "Check address, credentials and network" in capsys.readouterr().err
    monkeypatch.setattr(type(system), "cat_file", lambda self, path, *_, **__: refuse(path))
    for command in ("ls", "stats", "verify", "show"):
        assert run(command, memory) == 1
        assert "Access Denied" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["store", "folder"])
def test_a_shard_taken_out_meanwhile_is_not_damage(memory: str, local: Path, capsys, monkeypatch, place: str) -> None:
    """As a repair of a local cask does, or whoever replaces a copy in a store."""
    from logitcask_schemas.cask.format.manifest import index_bytes
    from logitcask_schemas.cask.integrity import verify

    export(local, memory)
    cask, original = Cask.open(local), verify.verify_shard
    gone, rest = cask.entries[2].name, index_bytes(cask.entries[:2])

    def take_out(opened: Cask, entry: Any, table: Any = None) -> Any:
        report = original(opened, entry, table)
        if entry == cask.entries[0]:
            for suffix in (".json", ".arrow"):
                (local / "shards" / (gone + suffix)).unlink()
                remove(f"shards/{gone}{suffix}")(RemoteStore(memory), cask)
            (local / "index.json").write_bytes(rest)
            RemoteStore(memory).write("index.json", rest)
        return report

    monkeypatch.setattr("logitcask_schemas.cask.integrity.verify.verify_shard", take_out)
    monkeypatch.setattr("logitcask_schemas.cask.integrity.remote_verify.verify_shard", take_out)
    found = output_of(capsys, "verify", memory if place == "store" else str(local))
    assert found["removed"] == [gone]
    assert found["verified"] == 2
    assert found["problems"] == []


def test_what_is_damaged_in_a_store_is_mended_on_a_copy(memory: str, local: Path, tmp_path: Path, capsys) -> None:
    export(local, f"{memory}/old")
    flip(RemoteStore(f"{memory}/old"), Cask.open(local))
    damaged = Cask.open(local).read(1).id.hex()
    assert run("repair", f"{memory}/old") == 0
    message = capsys.readouterr().out
    for step in (f"cask import --as-is {memory}/old DIR", "cask repair DIR", "cask export DIR URL"):
        assert step in message
    assert run("import", f"{memory}/old", str(tmp_path / "proved")) == 1
    assert "--as-is" in capsys.readouterr().err
    copy = str(tmp_path / "copy")
    assert output_of(capsys, "import", "--as-is", f"{memory}/old", copy)["files"] == 3 * 2 + 3
    assert run("import", "--as-is", f"{memory}/old", copy) == 1
    assert "is a cask already" in capsys.readouterr().err
    assert output_of(capsys, "repair", copy, code=3)["requeue"] == [damaged]
    assert run("export", copy, f"{memory}/new", "--carrier", "arrow") == 0
    assert output_of(capsys, "verify", f"{memory}/new")["problems"] == []
    assert sum(entry["documents"] for entry in output_of(capsys, "ls", f"{memory}/new")) == 8
    assert run("import", "--as-is", str(local), copy) == 2
    assert run("import", "--as-is", memory, memory) == 2


def test_a_copy_as_it_is_goes_on_where_it_stopped(
    memory: str, local: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    export(local, memory)
    original, calls = RemoteStore.download, []

    def dying(self: RemoteStore, name: str, *rest: Any) -> None:
        calls.append(name)
        if len(calls) == 5:
            raise CaskError("gone")
        original(self, name, *rest)

    monkeypatch.setattr(RemoteStore, "download", dying)
    copy = tmp_path / "copy"
    assert run("import", "--as-is", memory, str(copy)) == 1
    assert run("verify", str(copy)) == 1, "an unfinished copy is no cask"
    assert output_of(capsys, "import", "--as-is", memory, str(copy))["skipped"] == 4
    assert output_of(capsys, "verify", str(copy))["problems"] == []
    assert not [file for file in copy.rglob("*") if file.name.startswith(".")]


@pytest.mark.parametrize("carrier", ["arrow", "zarr"])
def test_merge_and_split_from_a_store(
    memory: str, local: Path, tmp_path: Path, temporary: Path, capsys, carrier: str
) -> None:
    export(local, memory, carrier)
    with CaskWriter.create(tmp_path / "more", teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish([make_document(30, 77), Cask.open(local).read(0)])
    merged = output_of(capsys, "merge", str(tmp_path / "all"), str(tmp_path / "more"), memory)
    assert (merged["documents"], merged["duplicates"], merged["rewritten"]) == (10, 1, 1)
    assert output_of(capsys, "verify", str(tmp_path / "all"))["problems"] == []
    halves = {}
    for name, source in (("there", memory), ("here", str(local))):
        into = [str(tmp_path / f"{name}-{side}") for side in "ab"]
        output_of(capsys, "split", source, "--fraction", "0.5", "--into", *into)
        halves[name] = [sorted(entry.name for entry in Cask.open(Path(path)).entries) for path in into]
    assert halves["there"] == halves["here"]
    assert not list(temporary.iterdir())
    for arguments in (["merge", memory, str(local)], ["split", str(local), "--into", memory, str(tmp_path / "b")]):
        assert run(*arguments) == 1
        assert "--single-writer" in capsys.readouterr().err


@pytest.mark.parametrize("carrier", ["arrow", "zarr"])
def test_merge_and_split_into_a_store(
    bucket: str, memory: str, local: Path, tmp_path: Path, temporary: Path, capsys, carrier: str
) -> None:
    list(export_cask(Cask.open(local), target_of(str(tmp_path / "source")), carrier))
    local = tmp_path / "source"
    with CaskWriter.create(tmp_path / "more", teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish([make_document(30, 77), Cask.open(local).read(0)])
    sources = [str(tmp_path / "more"), str(local)]
    for target, options in ((f"{bucket}/all", []), (f"{memory}/all", ["--single-writer"])):
        merged = output_of(capsys, "merge", target, *sources, *options)
        assert (merged["documents"], merged["duplicates"], merged["copied"]) == (10, 1, 3)
        again = output_of(capsys, "merge", target, *sources, *options)
        assert (again["documents"], again["skipped"]) == (0, 4)
        assert output_of(capsys, "verify", target)["problems"] == []
        assert run("merge", f"{target}/", str(local), target, *options) == 1
        assert "is a source of the merge as well" in capsys.readouterr().err
    halves = {}
    for place in (bucket, str(tmp_path)):
        into = [f"{place}/{side}" for side in "ab"]
        counts = output_of(capsys, "split", str(local), "--fraction", "0.5", "--into", *into)["casks"]
        assert sum(count["added"] for count in counts.values()) == 9
        halves[place] = [sorted(entry["name"] for entry in output_of(capsys, "ls", path)) for path in into]
    assert halves[bucket] == halves[str(tmp_path)]
    assert run("split", f"{bucket}/all", "--into", f"{bucket}/all/", f"{bucket}/b") == 1
    assert "three different folders are needed" in capsys.readouterr().err
    assert not list(temporary.iterdir())


def test_what_dead_writers_left_is_listed_by_age(bucket: str, local: Path, tmp_path: Path, capsys) -> None:
    url = f"{bucket}/cask"
    export(local, url)
    entry, store = Cask.open(local).entries[0], RemoteStore(url)
    sound = {"leftovers": [], "leftover_bytes": 0, "recent": [], "unfinished_uploads": [], "incomplete": []}
    assert output_of(capsys, "repair", url, "--older-than", "0") == sound
    names = [f"shards/{'a' * 32}.arrow", f"shards/{'a' * 32}.hints.arrow", f"shards/{entry.name}.parquet"]
    for name in names:
        store.write(name, b"left")
    system, root = store._system()
    key = f"cask/shards/{'b' * 32}.arrow"
    system.call_s3("create_multipart_upload", Bucket=root.partition("/")[0], Key=key)
    uploads = {"unfinished_uploads": [f"shards/{'b' * 32}.arrow"]}  # of the year 2010, says the simulator
    assert output_of(capsys, "repair", url) == sound | uploads | {"recent": sorted(names)}
    left = {"leftovers": sorted(names), "leftover_bytes": 12}
    assert output_of(capsys, "repair", url, "--older-than", "0") == sound | uploads | left
    store.delete(f"shards/{entry.name}.arrow")
    found = output_of(capsys, "repair", url, code=3)
    assert found["incomplete"] == [f"{url}/shards/{entry.name}.arrow: its entry is there, the object is missing"]
    assert run("repair", url, "--older-than", "0") == 3
    text = capsys.readouterr().out
    assert "4 leftovers; 0 objects may be a writer's" in text
    assert "while no writer is at work" in text


def test_hints_are_dropped_beside_a_writer(bucket: str, tmp_path: Path, capsys) -> None:
    spec = HintSpec(layers=(1,), codec="i8")
    documents = [[with_hints(document, spec, 24) for document in make_documents([5, 6], seed)] for seed in range(3)]

    def writer_of(url: str) -> CaskWriter:
        return CaskWriter.create(url, teacher=make_teacher(), capture=SPEC.model_copy(update={"hints": spec}))

    url = f"{bucket}/cask"
    early, late = writer_of(url), writer_of(url)
    early.publish(documents[0])
    early.close()
    early.publish(documents[1])
    # A shard whose hints are there and whose entry is about to be put.
    elsewhere = writer_of(f"{bucket}/elsewhere").publish(documents[2])
    assert elsewhere is not None
    coming = f"shards/{elsewhere.hints_name}"
    RemoteStore(url).write(coming, RemoteStore(f"{bucket}/elsewhere").read(coming))
    dropped = output_of(capsys, "drop-hints", url)
    assert dropped["shards"] == 2
    assert dropped["bytes"] > 0
    assert late.publish(documents[2]) == elsewhere
    late.close()
    found = output_of(capsys, "verify", url)
    assert (found["problems"], found["strangers"], found["verified"]) == ([], [], 3)
    assert ["hints" not in entry for entry in output_of(capsys, "ls", url)].count(True) == 2
    assert output_of(capsys, "drop-hints", url)["shards"] == 1
    assert output_of(capsys, "drop-hints", url) == {"shards": 0, "bytes": 0}
    export_target = f"{bucket}/plain"
    CaskWriter.create(export_target, teacher=make_teacher(), capture=SPEC)
    assert run("drop-hints", export_target) == 1
    assert "captured without hints" in capsys.readouterr().err


def test_wrong_addresses(memory: str, bucket: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for url, message in (
        (f"{memory}/none", "not a cask"),
        ("nosuchprotocol://bucket/cask", "not an address of an object store"),
        ("s3:/bucket/cask", "not a cask"),
    ):
        for command in ("stats", "verify", "show"):
            assert run(command, url) == 1
            output = capsys.readouterr()
            assert message in output.err
            assert output.out == ""
            assert "Traceback" not in output.err
    assert run("stats", "s3://bucket/cask") == 1
    assert "the object store failed" in capsys.readouterr().err
