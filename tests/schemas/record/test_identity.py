"""Which teachers may share a cask: what is compared, what is for people, what is unknown, how a refusal words it."""

import json

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.identity import TeacherIdentity
from tests.support.schemas.cask_samples import SPEC, make_documents

OLD = {
    "model": "teacher",
    "weights_digest": "a" * 64,
    "dtype": "float32",
    "vocab_size": 49_152,
    "tokenizer_fingerprint": "b" * 64,
    "engine": "vllm",
    "engine_version": "0.32.0",
}
NEW = OLD | {"tensors_digest": "c" * 64, "config": {"model_type": "llama"}, "tokenizer_size": 49_152}
YARN = {"model_type": "llama", "rope_parameters.rope_type": "yarn", "rope_parameters.factor": 4.0}


def identity(base=NEW, **changes):
    return TeacherIdentity(**{**base, **changes})


def digest(teacher):
    return CaskManifest(teacher=teacher, capture=SPEC, created_by="test", created_at="").identity_digest()


def test_an_identity_without_the_new_members_writes_the_bytes_it_always_wrote():
    assert set(json.loads(identity(OLD).model_dump_json())) == set(OLD) | {"revision", "quantization", "template_hash"}


def test_an_identity_survives_json():
    mine = identity(engine_options={"kv_cache_dtype": "fp8"})
    assert TeacherIdentity.model_validate_json(mine.model_dump_json()) == mine


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "teacher2"},
        {"revision": "main"},
        {"weights_digest": "d" * 64},  # sharded otherwise, other headers: the tensors are equal
        {"tokenizer_size": 49_000},
    ],
)
def test_what_changes_no_number_is_not_compared(changes):
    assert identity().differences(identity(**changes)) == {}
    identity().require_same(identity(**changes), where="cask")


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"tensors_digest": "d" * 64}, "tensors_digest", "cccc"),
        ({"config": YARN}, "config.rope_parameters.factor", "'default' here, 4.0 offered"),
        (
            {"engine_options": {"kv_cache_dtype": "fp8"}},
            "engine_options.kv_cache_dtype",
            "here, 'fp8' offered",
        ),
        ({"dtype": "bfloat16"}, "dtype", "'float32' here, 'bfloat16' offered"),
        ({"quantization": "gptq"}, "quantization", "None here, 'gptq' offered"),
        ({"engine": "transformers"}, "engine", "'vllm' here"),
        ({"vocab_size": 49_280}, "vocab_size", "49152 here, 49280 offered"),
    ],
)
def test_what_changes_numbers_is_named_with_both_values(changes, name, words):
    mine, theirs = identity(), identity(**changes)
    assert name in mine.numbers_differ(theirs)
    assert not mine.tokens_differ(theirs)
    with pytest.raises(IdentityMismatchError, match="cask holds records of another teacher") as caught:
        mine.require_same(theirs, where="cask", accept=("engine_version", "unrecorded"))
    assert f"{name}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer_fingerprint", "template_hash"])
def test_what_changes_token_ids(name):
    mine, theirs = identity(), identity(**{name: "e" * 64})
    assert set(mine.tokens_differ(theirs)) == {name} == set(mine.differences(theirs))


def test_another_engine_version_is_refused_with_the_way_on_and_accepted_on_request():
    mine, theirs = identity(), identity(engine_version="0.33.0")
    with pytest.raises(
        IdentityMismatchError, match=r"'0.32.0' here, '0.33.0' offered.*--accept-teacher engine_version"
    ):
        mine.require_same(theirs, where="cask")
    mine.require_same(theirs, where="cask", accept=("engine_version",))
    with pytest.raises(IdentityMismatchError, match="dtype"):
        mine.require_same(identity(engine_version="0.33.0", dtype="float16"), where="cask", accept=("engine_version",))


@pytest.mark.parametrize("turned", [False, True])
def test_an_identity_without_a_config_says_what_is_unknown(turned):
    old, new = identity(OLD), identity()
    mine, theirs = (new, old) if turned else (old, new)
    assert mine.differences(theirs) == {}  # the weight files are equal
    assert mine.unrecorded(theirs) == ["config"]
    with pytest.raises(IdentityMismatchError, match=r"config: recorded by the one .* only.*-teacher unrecorded"):
        mine.require_same(theirs, where="cask")
    mine.require_same(theirs, where="cask", accept=("unrecorded",))
    with pytest.raises(IdentityMismatchError, match="weights_digest"):
        mine.require_same(identity(theirs.model_dump(), weights_digest="d" * 64), where="cask", accept=("unrecorded",))


def test_two_old_identities_compare_as_they_did():
    identity(OLD).require_same(identity(OLD), where="cask")


def test_a_cask_goes_on_with_its_teacher_under_another_name(tmp_path):
    first, second = make_documents([5, 6], 1), make_documents([7], 2)
    for teacher, documents in ((identity(), first), (identity(model="teacher2", weights_digest="d" * 64), second)):
        with CaskWriter.create(tmp_path / "cask", teacher=teacher, capture=SPEC) as writer:
            writer.publish(documents)
    assert len(Cask.open(tmp_path / "cask")) == 3
    with pytest.raises(IdentityMismatchError, match=r"rope_parameters\.factor: 'default' here, 4.0 offered"):
        CaskWriter.create(tmp_path / "cask", teacher=identity(config=YARN), capture=SPEC)


def test_casks_of_one_teacher_under_two_names_merge(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        with CaskWriter.create(tmp_path / name, teacher=identity(model=name), capture=SPEC) as writer:
            writer.publish(make_documents([5, 6], seed))
    assert digest(identity(model="a")) != digest(identity(model="b"))
    merge_casks(tmp_path / "both", [tmp_path / "a", tmp_path / "b"])
    merged = Cask.open(tmp_path / "both")
    assert len(merged) == 4
    assert merged.manifest.teacher.model == "a"
