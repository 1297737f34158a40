"""`logitcask cask` on casks in object stores: what each command asks the store for, finds, says and leaves behind."""

import importlib
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import CaskError
from tests.support.schemas.cask_commands import export, output_of, run
from tests.support.schemas.stored_damage import DAMAGES, flip, remove

pytest.importorskip("fsspec", reason="object stores need the extra `remote`")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
    pytest.mark.usefixtures("user_cache"),
]


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


@pytest.mark.parametrize(
    "command",
    [
        ("stats",),
        ("ls",),
        ("show",),
        ("verify",),
        ("repair",),
        ("drop-hints",),
        ("import", "{local}"),
        ("export", "{local}"),
    ],
)
def test_a_bucket_that_is_not_there_is_told_as_that(
    command: tuple[str, ...], bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as a folder without a cask: nobody would look for a typing error in the bucket's name."""
    name, *others = command
    code = run(name, f"{bucket}-not/cask", *(other.format(local=tmp_path / "new") for other in others))
    said = " ".join(capsys.readouterr().err.split())
    assert (code, f"{bucket}-not/cask: there is no such bucket. Make it, or name another" in said) == (1, True), said


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
