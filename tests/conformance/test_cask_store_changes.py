"""`logitcask cask` that changes casks in object stores: merge, split, leftovers of dead writers, hints dropped."""

from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.cask.transfer.export import export_cask, target_of
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.schemas.cask_commands import export, output_of, run
from tests.support.schemas.cask_samples import SPEC, make_document, make_documents, make_teacher
from tests.support.schemas.hint_samples import with_hints

pytest.importorskip("fsspec", reason="object stores need the extra `remote`")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
    pytest.mark.usefixtures("user_cache"),
]


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


def test_all_unfinished_uploads_are_listed_however_many(bucket: str, local: Path, monkeypatch) -> None:
    """The simulator gives any number at once; a real store gives 1,000, and says how to go on."""
    url = f"{bucket}/cask"
    export(local, url)
    store = SharedStore(url)
    system, root = store._system()
    keys = [f"cask/shards/{number:032x}.arrow" for number in range(7)]
    for key in keys:
        system.call_s3("create_multipart_upload", Bucket=root.partition("/")[0], Key=key)
    asked_s3, asked = system.call_s3, []

    def three_at_once(method: str, *arguments: object, **fields: str) -> dict[str, object]:
        if method != "list_multipart_uploads":
            return asked_s3(method, *arguments, **fields)
        asked.append(fields)
        last = fields.pop("KeyMarker", ""), fields.pop("UploadIdMarker", "")
        answer = asked_s3(method, *arguments, **fields)
        uploads = sorted(answer["Uploads"], key=lambda upload: (upload["Key"], upload["UploadId"]))
        left = [upload for upload in uploads if (upload["Key"], upload["UploadId"]) > last]
        page = answer | {"Uploads": left[:3], "IsTruncated": len(left) > 3}
        if len(left) <= 3:
            return page
        return page | {"NextKeyMarker": left[2]["Key"], "NextUploadIdMarker": left[2]["UploadId"]}

    monkeypatch.setattr(system, "call_s3", three_at_once)
    monkeypatch.setattr(store, "_system", lambda: (system, root))
    assert sorted(each.name for each in store.unfinished_uploads("shards")) == [key.split("/")[-1] for key in keys]
    assert len(asked) == 3


def test_a_store_that_tells_the_same_uploads_again_and_again_is_not_asked_for_ever(monkeypatch) -> None:
    store = SharedStore("s3://bucket/cask")
    upload = {"Key": "cask/shards/one.arrow", "UploadId": "1"}
    answer = {"Uploads": [upload], "IsTruncated": True, "NextKeyMarker": upload["Key"], "NextUploadIdMarker": "1"}
    asked = list[str]()

    class Repeats:
        def split_path(self, path: str) -> tuple[str, str, None]:
            bucket, _, key = path.partition("/")
            return bucket, key, None

        def call_s3(self, method: str, **fields: str) -> dict[str, object]:
            asked.append(method)
            assert len(asked) < 10
            return answer

    monkeypatch.setattr(store, "_system", lambda: (Repeats(), "bucket/cask"))
    assert {each.name for each in store.unfinished_uploads("shards")} == {"one.arrow"}


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
