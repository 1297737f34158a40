"""Specs that capture could not honour are refused where they are asked for; what was stored earlier stays readable."""

import json
import math

import pytest
from pydantic import TypeAdapter, ValidationError

from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.capture_spec import CaptureSpec, capture_spec, stored_spec

TEACHER = {
    "model": "teacher",
    "weights_digest": "a" * 64,
    "dtype": "float32",
    "vocab_size": 300,
    "tokenizer_fingerprint": "b" * 64,
    "engine": "vllm",
    "engine_version": "1",
}


@pytest.mark.parametrize(
    "text",
    [
        '{"temperatures": [2, 2, 3]}',
        '{"temperatures": [3, 2, 2]}',
        '{"temperatures": [2, 2.0000000001]}',  # one number in float32
        '{"temperatures": [1.0000001]}',
        '{"temperatures": [1]}',
        '{"temperatures": [Infinity]}',
        '{"temperatures": [1e999]}',
        '{"temperatures": [NaN]}',
        '{"temperatures": [0]}',
        '{"temperatures": [-2]}',
        '{"temperatures": [1e-4]}',
        '{"temperatures": [1e6]}',
        json.dumps({"temperatures": [2 + i / 10 for i in range(17)]}),
        '{"tau": 1e-300}',
        '{"tau": 1.36e-20}',
        '{"tau": NaN}',
        '{"tau": Infinity}',
        '{"tau": -0.1}',
        '{"pinned_ids": [18446744073709551616]}',
        '{"seed": 9223372036854775808}',
        json.dumps({"pinned_ids": list(range(300))}),
    ],
)
def test_a_spec_that_cannot_be_honoured(text):
    with pytest.raises(ValidationError):
        CaptureSpec.model_validate_json(text)
    with pytest.raises(ValidationError):
        CaptureSpec.model_validate(json.loads(text))


@pytest.mark.parametrize("temperatures", [(2, 3), (3, 2), (0.1, 100), (0.5, 2.0, 4.0), (0.98, 1.02)])
def test_temperatures_within_the_range(temperatures):
    assert CaptureSpec(temperatures=temperatures, tau=1e-6).temperatures == tuple(map(float, temperatures))


def test_the_schema_tells_the_limits():
    fields = TypeAdapter(CaptureSpec).json_schema()["properties"]
    assert (fields["tau"]["minimum"], fields["tau"]["maximum"]) == (1e-6, 1)
    temperature = fields["temperatures"]["items"]
    assert (temperature["minimum"], temperature["maximum"]) == (0.1, 100)
    assert fields["temperatures"]["maxItems"] == 16


@pytest.mark.parametrize("stored", [{"tau": 1e-9}, {"temperatures": [2.0, 2.0, 3.0]}, {"temperatures": [500.0]}])
def test_a_cask_of_wider_limits_stays_readable(stored):
    fields = CaptureSpec().model_dump(mode="json") | stored
    text = json.dumps({"teacher": TEACHER, "capture": fields, "created_by": "", "created_at": ""})
    manifest = CaskManifest.model_validate_json(text)
    assert type(manifest.capture) is CaptureSpec
    assert manifest.capture.model_dump(mode="json") == fields
    assert json.loads(manifest.model_dump_json())["capture"] == fields
    assert manifest.identity_digest() == CaskManifest.model_validate(manifest.model_dump()).identity_digest()
    assert stored_spec(fields) == manifest.capture


def test_what_no_version_wrote_is_no_stored_spec():
    for fields in ({"tau": 0}, {"temperatures": [1.0]}, {"mode": "none"}, {"what": 1}):
        with pytest.raises(ValidationError):
            stored_spec(fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": "topk", "tau": 0.1}, "mode topk does not use tau"),
        ({"mode": "sampled", "k": 3, "tau": 0.1}, "mode sampled does not use k and tau"),
        ({"draws": 50}, "mode threshold does not use draws"),
        ({"tau": 0, "k": 0}, "tau: .*; k: "),
        ({"tua": 0.1}, "tua: "),
    ],
)
def test_a_spec_by_hand_names_what_it_cannot_do(fields, said):
    with pytest.raises(CaptureSpecError, match=said):
        capture_spec(**fields)


def test_a_spec_by_hand_is_a_spec():
    assert capture_spec(mode="topk", k=8, tail_logprobs=True) == CaptureSpec(mode="topk", k=8, tail_logprobs=True)
    assert capture_spec(mode="topk", seed=3, logprob_codec="u8").seed == 3


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 255),
        ({"tau": 1 / 20}, 32),
        ({"tau": 1 / 32}, 32),
        ({"tau": 1 / 33}, 255),
        ({"tau": 1 / 100}, 255),
        ({"tau": 1e-6}, 255),
        ({"tau": 1 / 100, "tail_max": 32}, 32),
        ({"mode": "topk"}, 32),
        ({"mode": "sampled"}, 32),
    ],
)
def test_the_limit_of_draws_follows_tau(fields, limit):
    spec = capture_spec(**fields)
    assert spec.tail_max == limit
    assert CaptureSpec.model_validate_json(spec.model_dump_json()) == spec
    if spec.mode == "threshold" and "tail_max" not in fields:
        assert spec.tail_max >= min(math.ceil(1 / spec.tau - 1e-9), 255), "it does not bind"


@pytest.mark.parametrize("mode", ["topk", "sampled"])
def test_other_modes_are_written_as_they_always_were(mode):
    fields = capture_spec(mode=mode).model_dump(mode="json")
    assert (fields["tau"], fields["tail_max"]) == (0.05, 32)


@pytest.mark.parametrize("tau", ["x", None, [], "nan", 2, 0])
def test_a_wrong_tau_is_told_once(tau):
    with pytest.raises(CaptureSpecError) as told:
        capture_spec(tau=tau)
    assert str(told.value).startswith("tau: ")
    assert "tail_max" not in str(told.value)


def test_specs_of_the_old_limit_keep_their_identity():
    """Casks that say 32 draws are those of a spec that leaves it out, where 32 is enough."""
    assert CaptureSpec(tau=1 / 20, tail_max=32).digest() == CaptureSpec(tau=1 / 20).digest()
    assert CaptureSpec(tau=1 / 50, tail_max=32).digest() != CaptureSpec(tau=1 / 50).digest()


def test_another_tau_takes_its_own_limit_unless_one_was_given():
    spec = CaptureSpec(mode="topk", k=5, logprob_codec="u8", seed=3)
    at_100 = spec.at_tau(1 / 100)
    assert (at_100.mode, at_100.tau, at_100.tail_max) == ("threshold", 1 / 100, 255)
    assert (at_100.logprob_codec, at_100.seed, at_100.at_tau(1 / 20).tail_max) == ("u8", 3, 32)
    assert CaptureSpec(tail_max=7).at_tau(1 / 100).tail_max == 7
