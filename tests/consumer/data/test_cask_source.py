"""Casks as they are written on the command line, and which of them are trained as one."""

import shutil
from pathlib import Path

import pytest

from logitcask_consumer.data import CaskSource, CaskSourceError, open_groups
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import build_cask, random_documents, tiny_model


@pytest.mark.parametrize(
    ("written", "place", "weight", "loss"),
    [
        ("casks/a", Path("casks/a"), None, None),
        ("casks/a:0.7", Path("casks/a"), 0.7, None),
        ("casks/a:.5", Path("casks/a"), 0.5, None),
        ("casks/a:1e-2:js:beta=0.5", Path("casks/a"), 0.01, "js:beta=0.5"),
        ("casks/a:2:0.9*forward_kl + 0.1*js:beta=0.5", Path("casks/a"), 2.0, "0.9*forward_kl + 0.1*js:beta=0.5"),
        ("s3://bucket/a", "s3://bucket/a", None, None),
        ("s3://bucket/a:0.7:js", "s3://bucket/a", 0.7, "js"),
        ("s3://host:9000/bucket/a:3", "s3://host:9000/bucket/a", 3.0, None),
        ("casks/2026-11-28T10:00:0.5", Path("casks/2026-11-28T10:00"), 0.5, None),
        ("casks/2026-11-28T10:00:0.5:js", Path("casks/2026-11-28T10:00"), 0.5, "js"),
        ("a:0.5:" + " + ".join(["0.1*forward_kl"] * 40), Path("a"), 0.5, " + ".join(["0.1*forward_kl"] * 40)),
    ],
)
def test_places_weights_and_losses(written, place, weight, loss):
    source = CaskSource.parse(written)
    assert (source.place, source.weight, source.loss) == (place, weight, loss)
    assert CaskSource.parse(str(source)) == source


@pytest.mark.parametrize(
    "written", ["casks/a:js", "casks/a:", "casks/a:-1", "casks/a:0.5:", "casks/a:nan", "casks/a:x:js"]
)
def test_what_cannot_be_read_says_what_was_expected(written):
    with pytest.raises(CaskSourceError, match="expected a place, place:weight or place:weight:loss"):
        CaskSource.parse(written)


@pytest.mark.parametrize("written", ["casks/a:0", "casks/a:0.0:js", "casks/a:1e999"])
def test_a_weight_of_nothing_is_refused(written):
    with pytest.raises(CaskSourceError, match="must be above 0 and finite"):
        CaskSource.parse(written)


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a:0.5").mkdir()
    assert CaskSource.parse("a:0.5") == CaskSource(place=Path("a:0.5"))
    assert CaskSource.parse("a:0.5:2") == CaskSource(place=Path("a:0.5"), weight=2.0)
    assert CaskSource.parse("a:0.5:js") == CaskSource(place=Path("a"), weight=0.5, loss="js")


@pytest.fixture(scope="module")
def casks(tmp_path_factory):
    folder, documents = tmp_path_factory.mktemp("casks"), random_documents(4)
    for name, seed, spec in (("a", 0, {}), ("a2", 0, {}), ("b", 1, {}), ("a-tau", 0, {"tau": 0.1})):
        build_cask(
            folder / name,
            tiny_model(seed=seed),
            documents if name != "a2" else random_documents(3, seed=7),
            spec=CaptureSpec(**spec),
            weights_digest=str(seed) * 64,
        )
    shutil.copytree(folder / "b", folder / "other" / "b")
    return folder


def groups_of(casks, *written):
    groups = open_groups([CaskSource.parse(str(casks / text)) for text in written], loss="forward_kl")
    return [(group.label, [cask.path.name for cask in group.casks], group.weight, group.loss) for group in groups]


def test_casks_that_go_together_are_one_group(casks):
    assert groups_of(casks, "a", "a2") == [("a", ["a", "a2"], 1.0, "forward_kl")]
    assert groups_of(casks, "a:0.5", "b:2:js", "a2:0.5") == [
        ("a", ["a", "a2"], 0.5, "forward_kl"),
        ("b", ["b"], 2.0, "js"),
    ]
    assert groups_of(casks, "a", "a2:1:forward_kl") == [("a", ["a", "a2"], 1.0, "forward_kl")]
    assert groups_of(casks, "a", "a2:2") == [("a", ["a"], 1.0, "forward_kl"), ("a2", ["a2"], 2.0, "forward_kl")]
    assert groups_of(casks, "b:1", "other/b:2") == [("b", ["b"], 1.0, "forward_kl"), ("b-2", ["b"], 2.0, "forward_kl")]
    assert [group[1] for group in groups_of(casks, "a:1", "a-tau:1")] == [["a"], ["a-tau"]]


def test_a_cask_named_twice_is_refused(casks):
    (casks / "link").symlink_to(casks / "a") if not (casks / "link").exists() else None
    for written in (("a", "a"), ("a:0.5", "a:0.2"), ("a:1", "link:2:js")):
        with pytest.raises(CaskSourceError, match="is named twice"):
            groups_of(casks, *written)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused_in_python_too(weight):
    with pytest.raises(CaskSourceError, match="must be above 0 and finite"):
        CaskSource(place="a", weight=weight)


def test_labels_are_names_of_folders(casks, monkeypatch):
    """They name folders of reports: nothing may be written beside these."""
    monkeypatch.chdir(casks / "a" / "shards")
    groups = open_groups(
        [CaskSource(place="..", weight=1.0), CaskSource(place="../../b", weight=2.0)], loss="forward_kl"
    )
    assert [group.label for group in groups] == ["a", "b"]
    monkeypatch.chdir(casks / "a")
    assert open_groups([CaskSource(place=".")], loss="forward_kl")[0].label == "a"
    shutil.copytree(casks / "a", casks / "other" / "report.md", dirs_exist_ok=True)
    assert open_groups([CaskSource(place=casks / "other" / "report.md")], loss="forward_kl")[0].label == "cask"


@pytest.mark.parametrize("written", [("a", "b"), ("a:0.7", "b"), ("a", "a-tau")])
def test_several_teachers_need_the_weight_of_each(casks, written):
    with pytest.raises(IdentityMismatchError, match=r"say of every cask what its positions count: \S+/a:0.5 and"):
        groups_of(casks, *written)
