"""Casks to a Hub and back: the same bytes, nothing sent twice, half a push is no cask, faults say what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.exchange.hub import HubPlace
from logitcask_schemas.cask.exchange.hub_card import CARD_MARK, hub_card
from logitcask_schemas.cask.exchange.hub_transfer import PushOptions, pull_cask, push_cask
from logitcask_schemas.cask.storage.object_store import dataset_url
from logitcask_schemas.errors import (
    CaskCorruptionError,
    CaskError,
    CaskNotFoundError,
    IdentityMismatchError,
    OptionError,
)
from tests.support.schemas.cask_samples import SPEC, assert_same, make_documents, make_teacher
from tests.support.schemas.fake_hub import TOKEN, running_hub

pytest.importorskip("huggingface_hub")
# Its upload of plain files still hands its HTTP client what that would like to have by another name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PLACE = HubPlace(repository="lab/teacher")
SHARDS = [make_documents([5, 30], 0), make_documents([9, 8], 1), make_documents([12], 2)]


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # The trainer's tests keep the client from the network; this Hub is none.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running_hub() as running:
        yield running


def make_cask(path, shards=SHARDS, carrier="arrow", **teacher):
    with CaskWriter.create(path, teacher=make_teacher(**teacher), capture=SPEC, carrier=carrier) as writer:
        for documents in shards:
            writer.publish(documents)
    return Cask.open(path)


def push(cask, hub, place=PLACE, **options):
    return push_cask(cask, place, PushOptions(endpoint=hub.endpoint, **options))


def pull(hub, folder, place=PLACE):
    return list(pull_cask(place, folder, endpoint=hub.endpoint))


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "cask.lock"
    }


@pytest.mark.parametrize("carrier", ["arrow", "zarr", "parquet"])
def test_there_and_back(tmp_path, hub, carrier):
    cask = make_cask(tmp_path / "cask", carrier=carrier)
    report = push(cask, hub)
    assert (report.sent, report.skipped) == (3, 0)
    assert hub.dataset("lab/teacher").private
    assert [step.skipped for step in pull(hub, tmp_path / "back")] == [False] * 3
    assert files_of(tmp_path / "back") == files_of(tmp_path / "cask")


def test_nothing_is_sent_twice_and_growth_is_added(tmp_path, hub):
    push(make_cask(tmp_path / "cask", SHARDS[:2]), hub, public=True)
    assert not hub.dataset("lab/teacher").private
    sent = len(hub.uploads)
    assert push(Cask.open(tmp_path / "cask"), hub, public=True).skipped == 2
    assert len(hub.uploads) == sent
    report = push(make_cask(tmp_path / "grown"), hub, public=True)
    assert (report.sent, report.skipped) == (1, 2)
    assert len(pull(hub, tmp_path / "back")) == 3


def test_a_push_that_dies_is_no_cask_and_goes_on(tmp_path, hub):
    cask = make_cask(tmp_path / "cask")
    hub.refuse_from = 1  # that of the empty repository
    with pytest.raises(CaskError, match=r"hf://datasets/lab/teacher: writing it: the Hub answered 500.*run it again"):
        push(cask, hub, commit_shards=1)
    assert len([name for name in hub.dataset("lab/teacher").tree if name.endswith(".arrow")]) == 1
    with pytest.raises(CaskNotFoundError, match="not a cask"):
        pull(hub, tmp_path / "half")
    hub.refuse_from, sent = None, len(hub.uploads)
    report = push(cask, hub, commit_shards=1)
    assert (report.sent, report.skipped) == (2, 1)
    assert len(set(hub.uploads)) == len(hub.uploads), "a file was sent twice"
    assert len(hub.uploads) > sent
    assert len(pull(hub, tmp_path / "whole")) == 3


def test_every_commit_before_the_last_leaves_no_cask(tmp_path, hub):
    push(make_cask(tmp_path / "cask"), hub, commit_shards=1)
    trees = [tree for _, tree in hub.dataset("lab/teacher").commits]
    assert ["cask.json" in tree for tree in trees] == [False] * (len(trees) - 1) + [True]
    for tree in trees:
        assert {name for name in tree if name.endswith(".json") and "/" in name} == {
            name.replace(".arrow", ".json") for name in tree if name.endswith(".arrow")
        }


def test_the_page_tells_and_somebody_s_own_stays(tmp_path, hub):
    cask = make_cask(tmp_path / "cask", model="org/big <b>")
    push(cask, hub, licence="apache-2.0")
    repository = hub.dataset("lab/teacher")
    page = repository.tree["README.md"].decode()
    yaml = pytest.importorskip("yaml")
    metadata = yaml.safe_load(page.split("---\n")[1])
    assert metadata["license"] == "apache-2.0"
    assert "logitcask" in metadata["tags"]
    assert metadata["size_categories"] == ["n<1K"]
    for fact in (f"{cask.num_tokens:,}", cask.manifest.identity_digest(), '"tau"', "logitcask cask pull", "per token"):
        assert fact in page
    assert (
        "In a clone of logitcask's repository, as no package index has it:\n\n```sh\npip install \".[trainer," in page
    )
    assert "pypi.org" not in page
    repository.commit({**repository.tree, "README.md": page.replace(CARD_MARK, "mine").encode()})
    assert push(cask, hub).card_kept
    assert b"mine" in repository.tree["README.md"]


def test_what_is_there_must_be_the_same_cask(tmp_path, hub):
    cask = make_cask(tmp_path / "cask")
    push(cask, hub)
    with pytest.raises(IdentityMismatchError):
        push(make_cask(tmp_path / "other", weights_digest="c" * 64), hub)
    with pytest.raises(CaskError, match=r"holds 2 shards that .* does not"):
        push(make_cask(tmp_path / "less", SHARDS[:1]), hub)
    hub.add("lab/text", {"train.jsonl": b"{}"})
    with pytest.raises(CaskError, match=r"holds 'train.jsonl' and no cask.json"):
        push(cask, hub, HubPlace(repository="lab/text"))
    assert set(hub.dataset("lab/text").tree) == {"train.jsonl"}


def test_another_push_in_between_is_refused(tmp_path, hub, monkeypatch):
    cask = make_cask(tmp_path / "cask")
    push(make_cask(tmp_path / "less", SHARDS[:1]), hub)
    repository = hub.dataset("lab/teacher")

    def meanwhile(_):
        repository.commit({**repository.tree, "other": b""})

    with pytest.raises(CaskError, match="412"):
        push_cask(cask, PLACE, PushOptions(endpoint=hub.endpoint), meanwhile)


def test_a_damaged_shard_is_not_sent(tmp_path, hub):
    cask = make_cask(tmp_path / "cask")
    path = next((tmp_path / "cask" / "shards").glob("*.arrow"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(CaskCorruptionError, match="nothing of this shard was sent"):
        push(cask, hub)
    assert "cask.json" not in hub.dataset("lab/teacher").tree


def test_what_cannot_be_sent_makes_no_repository(tmp_path, hub):
    for name, damage, words in (
        ("missing", Path.unlink, "is missing"),
        ("cut", lambda path: os.truncate(path, 100), "should have .* bytes, it has 100"),
    ):
        cask = make_cask(tmp_path / name)
        damage(next((tmp_path / name / "shards").glob("*.arrow")))
        with pytest.raises(CaskError, match=words):
            push(cask, hub)
        assert not hub.repositories


def test_a_damaged_shard_is_not_pulled(tmp_path, hub):
    push(make_cask(tmp_path / "cask"), hub)
    repository = hub.dataset("lab/teacher")
    name = max(name for name in repository.tree if name.endswith(".arrow"))
    content = bytearray(repository.tree[name])
    content[len(content) // 2] ^= 1
    sound = dict(repository.tree)
    repository.commit({**sound, name: bytes(content)})
    with pytest.raises(CaskCorruptionError, match=Path(name).stem):
        pull(hub, tmp_path / "back")
    assert not (tmp_path / "back" / "cask.json").exists()
    repository.commit(sound)
    assert [step.skipped for step in pull(hub, tmp_path / "back")] == [True, True, False]
    assert len(Cask.open(tmp_path / "back")) == 5


def test_a_revision_is_what_it_was(tmp_path, hub):
    commit = push(make_cask(tmp_path / "less", SHARDS[:1]), hub).commit
    push(make_cask(tmp_path / "cask"), hub)
    assert len(pull(hub, tmp_path / "old", HubPlace(repository="lab/teacher", revision=commit))) == 1
    with pytest.raises(CaskNotFoundError, match="no revision 'v9'"):
        pull(hub, tmp_path / "none", HubPlace(repository="lab/teacher", revision="v9"))
    with pytest.raises(CaskError, match="main branch"):
        push(Cask.open(tmp_path / "cask"), hub, HubPlace(repository="lab/teacher", revision="v9"))


def test_refusals(tmp_path, hub, monkeypatch):
    cask = make_cask(tmp_path / "cask")
    with pytest.raises(CaskNotFoundError, match="there is no data set of this name that this token may see"):
        pull(hub, tmp_path / "none")
    hub.add("lab/model", {}, kind="model")
    with pytest.raises(CaskError, match="lab/model is a model of the Hub; a cask is a data set"):
        pull(hub, tmp_path / "none", HubPlace(repository="lab/model"))
    hub.read_only = True
    with pytest.raises(CaskError, match=r"refuses this token \(403\).*right to write lab/new.*HF_TOKEN"):
        push(cask, hub, HubPlace(repository="lab/new"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CaskError, match=r"HF_TOKEN|hf auth login"):
        push(cask, hub, HubPlace(repository="lab/new"))
    hub.add("lab/closed", {}, private=True)
    with pytest.raises(CaskNotFoundError, match="if it is private, set HF_TOKEN"):
        pull(hub, tmp_path / "none", HubPlace(repository="lab/closed"))
    assert not (tmp_path / "none").exists()


def test_nobody_answers(tmp_path):
    with pytest.raises(CaskError, match=r"reading it: .*Check network and address \(HF_ENDPOINT\)"):
        list(pull_cask(PLACE, tmp_path / "none", endpoint="http://127.0.0.1:9"))


def test_open_reads_through_the_hub(tmp_path, hub):
    cask = make_cask(tmp_path / "cask")
    push(cask, hub)
    options = {"endpoint": hub.endpoint}
    opened = Cask.open("hf://lab/teacher", cache=tmp_path / "cache", store_options=options)
    assert opened.place == "hf://datasets/lab/teacher"
    for number in range(len(cask)):
        assert_same(opened.read(number), cask.read(number))
    assert opened.document_lengths().tolist() == cask.document_lengths().tolist()
    with pytest.raises(CaskNotFoundError):
        Cask.open("hf://lab/nothing", cache=tmp_path / "cache", store_options=options)


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("hf://a/b", "a/b", None),
        ("hf://datasets/a/b@v1.0", "a/b", "v1.0"),
        ("hf://a/b-c.d@refs/pr/1", "a/b-c.d", "refs/pr/1"),
        ("hf://a/b/", "a/b", None),
    ],
)
def test_places(text, repository, revision):
    assert HubPlace.parse(text) == HubPlace(repository=repository, revision=revision)


@pytest.mark.parametrize(
    "text", ["a/b", "hf://a", "hf://models/a/b", "hf://spaces/a/b", "hf://a/b/c", "s3://a/b", "hf://a/b@"]
)
def test_places_that_are_none(text):
    with pytest.raises(OptionError, match="expected hf://OWNER/NAME"):
        HubPlace.parse(text)


@pytest.mark.parametrize(
    ("text", "is_told"), [("s3://a/b", True), ("hf://a", False), ("https://huggingface.co/datasets/a/b", False)]
)
def test_object_stores_are_told_their_commands_and_pages_of_the_hub_are_not(text, is_told):
    with pytest.raises(OptionError) as raised:
        HubPlace.parse(text)
    assert ("`logitcask cask import`" in str(raised.value)) == is_told


def test_urls_of_data_sets():
    assert dataset_url("hf://a/b@main") == "hf://datasets/a/b@main"
    for url in ("hf://datasets/a/b", "hf://models/a/b", "s3://a/b"):
        assert dataset_url(url) == url


def test_commands(tmp_path, hub):
    """With the token and the address from the environment, as users have them."""
    make_cask(tmp_path / "cask")
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    variables["HF_HUB_OFFLINE"] = "0"
    environment = {**os.environ, **variables}

    def run(*words):
        code = "from logitcask_schemas.cli.cask import app; app()"
        command = [sys.executable, "-c", code, *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    pushed = run("push", str(tmp_path / "cask"), "hf://lab/teacher", "--license", "mit")
    assert (pushed["sent"], pushed["skipped"], pushed["card_kept"]) == (3, 0, False)
    pulled = run("pull", "hf://lab/teacher", str(tmp_path / "back"))
    assert (pulled["shards"], pulled["documents"]) == (3, 5)
    assert files_of(tmp_path / "back") == files_of(tmp_path / "cask")


@pytest.mark.parametrize(
    "name", ["lab/a--b", "lab/x.git", "lab/t\u00fccher", "lab/a..b", "lab/a-", "lab./a", "lab/" + "a" * 97]
)
def test_names_that_the_client_refuses_are_refused_before_it_is_asked(name):
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    with pytest.raises(OptionError):
        HubPlace.parse(f"hf://{name}")
    if name.isascii():  # the client takes letters of any script, the Hub does not
        with pytest.raises(HFValidationError):
            validate_repo_id(name)


@pytest.mark.parametrize("name", ["lab/a--b", "lab/x.git"])
def test_a_cask_under_such_a_name_cannot_be_opened_either(hub, tmp_path, name):
    with pytest.raises(CaskError, match=f"hf://datasets/{name}.*HF URI|hf://datasets/{name}.*repo_id"):
        Cask.open(f"hf://{name}", cache=tmp_path / "cache", store_options={"endpoint": hub.endpoint})


@given(st.from_regex(r"[a-z0-9._-]{1,8}/[a-zA-Z0-9._-]{1,100}", fullmatch=True))
def test_what_is_a_place_is_a_name_for_the_client(name):
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        place = HubPlace.parse(f"hf://{name}")
    except OptionError:
        return
    validate_repo_id(place.repository)  # raises where it is none
    assert place.repository == name


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("/home/somebody/models/big", "big"),
        ("../models/big/", "big"),
        ("~/big", "big"),
        ("C:\\models\\big", "big"),
        ("s3://bucket/big", "big"),
        ("lab/big-7B", "lab/big-7B"),
        ("big", "big"),
    ],
)
def test_the_page_does_not_tell_where_a_model_lay(tmp_path, model, shown):
    page = hub_card(make_cask(tmp_path / "cask", model=model), PLACE, None)
    assert f"# What {shown} said" in page
    assert f'"model": "{shown}"' in page
    if model != shown:
        assert json.dumps(model)[1:-1] not in page


def test_a_slash_at_the_end_is_no_part_of_the_revision():
    assert HubPlace.parse("hf://lab/teacher@v1/") == HubPlace(repository="lab/teacher", revision="v1")
    assert HubPlace.parse("hf://lab/teacher@feature/x/").revision == "feature/x"


def test_the_page_counts_beyond_a_billion(tmp_path, monkeypatch):
    cask = make_cask(tmp_path / "cask")
    for count, category in [(10**9, "1B<n<10B"), (10**12 - 1, "100B<n<1T"), (10**12, "n>1T")]:
        monkeypatch.setattr(Cask, "__len__", lambda _, count=count: count)
        assert f'size_categories: ["{category}"]' in hub_card(cask, PLACE, None)


def test_a_private_push_does_not_meet_a_public_repository(tmp_path, hub):
    cask = make_cask(tmp_path / "cask")
    hub.add("lab/teacher", {}, private=False)
    with pytest.raises(CaskError, match=r"is public.*--public"):
        push(cask, hub)
    assert hub.uploads == []
    assert not push(cask, hub, public=True).private


def test_public_does_not_open_a_private_repository_and_says_so(tmp_path, hub):
    hub.add("lab/teacher", {}, private=True)
    assert push(make_cask(tmp_path / "cask"), hub, public=True).private


def test_a_damaged_entry_is_mended_by_another_push(tmp_path, hub):
    cask = make_cask(tmp_path / "cask")
    push(cask, hub)
    repository = hub.dataset("lab/teacher")
    name = next(name for name in repository.tree if name.startswith("shards/") and name.endswith(".json"))
    whole = repository.tree[name]
    repository.commit({**repository.tree, name: b"{}"})
    assert (push(cask, hub).sent, repository.tree[name]) == (1, whole)


def test_a_licence_alone_is_no_other_data(tmp_path, hub):
    hub.add("lab/teacher", {"LICENSE": b"free"}, private=True)
    assert push(make_cask(tmp_path / "cask"), hub).sent == 3
    assert hub.dataset("lab/teacher").tree["LICENSE"] == b"free"
