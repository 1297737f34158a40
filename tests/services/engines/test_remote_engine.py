"""A served teacher that captures: what is right is kept to the last digit, what is wrong has an owner."""

import math
import re
import threading
from collections import deque

import numpy as np
import pytest

from logitcask_schemas.errors import CaptureSpecError, ModelError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from logitcask_services.engines.engine import CaptureTask, EngineError
from logitcask_services.engines.factory import load_engine
from tests.support.services.fake_remote import VOCAB, FakeRemote, Running, logprobs_after

SPEC = CaptureSpec(mode="topk", k=5, entropy="at_least", logprob_codec="f32")
DOCUMENT = np.array([7, 20, 3, 150, 299, 42], dtype=np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_saver):
    """A tokenizer without a model."""
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer_saver(path, VOCAB)
    return path


@pytest.fixture
def fake(folder):
    tokenizer = HuggingFaceTokenizer.load(folder)
    with Running(FakeRemote(lambda text: tokenizer.encode([text], special_tokens=False)[0], tokenizer.decode)) as fake:
        yield fake


@pytest.fixture
def load(fake, folder):
    engines = []

    def loaded(**options):
        quick = {"url": fake.url, "first_pause_seconds": 0.01, "patience_seconds": 20.0, "concurrency": 4}
        max_model_len = options.pop("max_model_len", None)
        engines.append(load_engine("openai", folder, max_model_len=max_model_len, options=quick | options))
        return engines[-1]

    yield loaded
    for engine in engines:
        engine.close()
        engine.close()  # idempotent


def one(engine, task=None, spec=SPEC):
    (result,) = engine.capture([task or CaptureTask(key="d", token_ids_L=DOCUMENT)], spec)
    return result


def expected_heads(read, positions, pinned=()):
    heads = []
    for position in positions:
        values = logprobs_after(read[: position + 1])
        head = np.argsort(-values)[: SPEC.k].tolist()
        head += [token for token in dict.fromkeys([read[position + 1], *pinned]) if token not in head]
        heads.append({token: values[token] for token in head})
    return heads


def heads_of(records):
    ends = np.cumsum(records.head_counts_P, dtype=np.int64)
    return [
        dict(
            zip(records.head_ids_H[end - count : end].tolist(), records.head_logprobs_H[end - count : end], strict=True)
        )
        for end, count in zip(ends, records.head_counts_P, strict=True)
    ]


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_records_are_those_of_the_distribution(load, dialect):
    pinned = (0, 250) if dialect == "sglang" else ()
    records = one(load(dialect=dialect), spec=SPEC.model_copy(update={"pinned_ids": pinned})).document.records
    expected = expected_heads(DOCUMENT.tolist(), range(len(DOCUMENT) - 1), pinned)
    for at, (found, right) in enumerate(zip(heads_of(records), expected, strict=True)):
        assert list(found) == list(right)
        np.testing.assert_allclose(list(found.values()), list(right.values()), rtol=1e-6)
        rest = 1 - math.fsum(map(math.exp, right.values()))
        assert math.exp(records.log_tail_mass_P[at]) == pytest.approx(rest, abs=1e-6)
        bucket = -math.fsum(p * math.exp(p) for p in right.values()) - rest * math.log(rest)
        assert records.entropy_P[at] == pytest.approx(bucket, abs=1e-5)
        values = logprobs_after(DOCUMENT[: at + 1].tolist())
        assert records.entropy_P[at] <= -(np.exp(values) * values).sum()
    assert not records.tail_counts_P.any()


def test_recorded_ranges_under_a_context(load, fake):
    context = ContextTokens(token_ids_C=np.array([9, 8, 7], dtype=np.uint16), replaced=1)
    task = CaptureTask(key="d", token_ids_L=DOCUMENT, recorded_R2=np.array([[1, 3]], dtype=np.uint32), context=context)
    result = one(load(), task)
    read = [9, 8, 7, 20, 3, 150, 299, 42]
    expected = expected_heads(read, [3, 4])
    assert [list(head) for head in heads_of(result.document.records)] == [list(head) for head in expected]
    assert fake.requests[-1]["prompt"] == read[:6]  # nothing behind the last token that is scored


def test_identity_says_what_is_not_known(load, fake):
    identity = load().identity
    assert (identity.model, identity.engine, identity.engine_version) == ("teacher", "openai", "vllm 9.9")
    assert (identity.dtype, identity.quantization) == ("unknown", "unknown")
    assert (identity.tensors_digest, identity.config) == (None, None)
    assert (identity.vocab_size, identity.tokenizer_size) == (VOCAB, VOCAB)
    fake.models = ("/models/of/someone",)
    other = load().identity
    assert other.model == "someone"  # never a path of a machine
    assert set(identity.numbers_differ(other)) == {"weights_digest"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "threshold"}, "mode threshold draws from the tail.*--mode topk --k 20 --entropy at_least"),
        ({"mode": "sampled"}, "mode sampled draws from the tail"),
        ({"mode": "topk", "k": 5}, "lower bound: submit with --mode topk --k 5 --entropy at_least"),
        (
            {"mode": "topk", "k": 21, "entropy": "at_least"},
            "does not give the 21 largest.*scripted|does not give the 21",
        ),
        ({"mode": "topk", "k": 5, "entropy": "at_least", "pinned_ids": (3,)}, r"pinned ids \[3\] cannot be scored"),
    ],
)
def test_specs_that_such_a_teacher_cannot_follow(load, changes, words):
    with pytest.raises(CaptureSpecError, match=words):
        one(load(), spec=CaptureSpec(**changes))


def test_other_engines_refuse_a_bound_and_others_than_topk_have_none():
    with pytest.raises(CaptureSpecError, match="sees its whole distribution"):
        SPEC.require_vocabulary(VOCAB)
    for fields in ({"mode": "threshold"}, {"mode": "topk", "temperatures": (2.0,)}, {"mode": "topk", "imported": True}):
        with pytest.raises(ValueError, match="entropy at_least is for mode topk without temperatures"):
            CaptureSpec(**fields, entropy="at_least")
    assert "entropy" not in CaptureSpec(mode="topk").canonical()  # older casks keep their bytes


def row(answer, at=2):
    return answer["choices"][0]["prompt_logprobs"][at]


def entry(answer, at=2):
    return next(iter(row(answer, at).values()))


def set_all(value):
    return lambda answer: [item.update(logprob=value) for item in row(answer).values()]


GARBAGE = {
    "no JSON": (("text", b"<html>"), "not what was asked for: the body: Invalid JSON"),
    "half a JSON": (("text", b'{"choices": [{"prompt'), "Invalid JSON"),
    "no choices": (("text", b"{}"), "choices: Field required"),
    "two choices": (("edit", lambda a: a["choices"].append(a["choices"][0])), "choices: Tuple should have at most 1"),
    "no scores": (("edit", lambda a: a["choices"][0].pop("prompt_logprobs")), "prompt_logprobs: Field required"),
    "one position fewer": (("edit", lambda a: a["choices"][0]["prompt_logprobs"].pop()), "has 5 positions.*6 tokens"),
    "one position more": (
        ("edit", lambda a: a["choices"][0]["prompt_logprobs"].append(row(a))),
        "has 7 positions, the prompt has 6 tokens",
    ),
    "something of the first": (
        ("edit", lambda a: a["choices"][0]["prompt_logprobs"].__setitem__(0, row(a))),
        "something to say of the first token",
    ),
    "shifted": (
        ("edit", lambda a: a["choices"][0]["prompt_logprobs"].insert(1, a["choices"][0]["prompt_logprobs"].pop())),
        "lack the next token 20 of position 0",
    ),
    "other tokens": (("edit", lambda a: a["choices"][0].update(prompt_token_ids=[1] * 6)), "scored other tokens"),
    "a null position": (("edit", lambda a: a["choices"][0]["prompt_logprobs"].__setitem__(3, None)), "position 2"),
    "NaN": (("edit", lambda a: entry(a).update(logprob=math.nan)), "should be a finite number"),
    "infinity": (("edit", lambda a: entry(a).update(logprob=math.inf)), "should be a finite number"),
    "null": (("edit", lambda a: entry(a).update(logprob=None)), "should be a valid number"),
    "words": (("edit", lambda a: entry(a).update(logprob="likely")), "should be a valid number"),
    "above 0": (("edit", set_all(0.5)), "above 0 at position 1"),
    "too much": (("edit", set_all(-0.1)), "add up to more than 1 at position 1"),
    "ids beyond": (
        ("edit", lambda a: row(a).update({"300": row(a).pop(list(row(a))[-1])})),
        "speaks of token id 300, the teacher's vocabulary has 300",
    ),
    "too few": (("edit", lambda a: [row(a).pop(list(row(a))[-1]) for _ in range(2)]), "4 most .*, 5 were|has 3 most"),
    "no ids": (("edit", lambda a: row(a).update(words=entry(a))), "should be a valid integer"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_that_documents_error(load, fake, name):
    fault, words = GARBAGE[name]
    engine = load()
    fake.poison[299] = fault
    good = CaptureTask(key="good", token_ids_L=np.array([5, 6, 7], dtype=np.uint16))
    results = {r.key: r for r in engine.capture([CaptureTask(key="bad", token_ids_L=DOCUMENT), good], SPEC)}
    assert results["good"].error is None
    assert results["bad"].document is None
    assert re.search(words, results["bad"].error), results["bad"].error


@pytest.mark.parametrize(
    "fault",
    [
        ("status", (429, {"Retry-After": "0"})),
        ("status", (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})),
        ("status", (429, {"Retry-After": "soon"})),
        ("status", (500, {})),
        ("status", (502, {})),
        ("status", (503, {})),
        ("status", (504, {})),
        ("cut", None),
        ("text", b"{"),
    ],
)
def test_faults_that_pass_are_tried_again(load, fake, fault):
    engine = load()
    list(engine.capture([], SPEC))  # nothing to do is done
    before = len(fake.requests)
    fake.faults = deque([("none", None), fault])
    assert one(engine).error is None
    assert len(fake.requests) - before == 3  # what proves the spec, the fault, the second try


def test_retry_after_is_kept(load, fake):
    engine = load()
    fake.faults = deque([("none", None), ("status", (429, {"Retry-After": "1"}))])
    assert one(engine).error is None
    assert fake.moments[-1] - fake.moments[-2] >= 1.0


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_server_refuses_is_that_documents_error(load, fake, status):
    engine = load()
    fake.poison[299] = ("status", (status, {}))
    assert one(engine).error == f"the server refused it: HTTP {status}: scripted {status}"


@pytest.mark.parametrize("fault", [("status", (500, {})), ("cut", None)])
def test_a_document_that_the_server_fails_on_is_found_out(load, fake, fault):
    engine = load()
    fake.poison[299] = fault
    error = one(engine).error
    assert error.startswith("the server failed 4 times on this request, and answers others")


def test_slow_answers(load, fake):
    engine = load(timeout_seconds=0.3)
    fake.faults = deque([("none", None), ("slow", 1.0)])
    assert one(engine).error is None
    fake.poison[299] = ("slow", 1.0)
    assert "no answer within 0.3 s" in one(engine).error


def test_an_outage_ends_the_engine(load, fake):
    engine = load(patience_seconds=0.3)
    fake.poison = {token: ("status", (503, {})) for token in range(VOCAB)} | {0: ("none", None)}
    with pytest.raises(EngineError, match=r"no useful answer for 0.3 s; the last one: HTTP 503: scripted 503"):
        one(engine)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "HTTP 401: scripted 401; it wants another API key: give one with --remote-key-file"),
        (404, {}, "it has no such path or model: check --remote-url"),
        (307, {"Location": "http://elsewhere/"}, "sends its callers elsewhere .* http://elsewhere/"),
    ],
)
def test_a_door_that_is_closed_is_nobodys_document(load, fake, status, headers, words):
    engine = load()
    fake.poison[299] = ("status", (status, headers))
    with pytest.raises(EngineError, match=words):
        one(engine)


def test_keys(load, fake, caplog):
    fake.key = "secret-key"
    with pytest.raises(EngineError, match="another API key"):
        load()
    with pytest.raises(EngineError, match="another API key") as refused:
        load(key="wrong-key")
    assert "wrong-key" not in str(refused.value) + caplog.text
    assert one(load(key="secret-key")).error is None
    assert "secret-key" not in caplog.text


def test_concurrency_is_bounded(load, fake):
    fake.pause = 0.05
    tasks = [CaptureTask(key=i, token_ids_L=np.array([2 + i, 3, 4], dtype=np.uint16)) for i in range(12)]
    engine = load(concurrency=3)
    fake.most_in_flight = 0
    assert sorted(result.key for result in engine.capture(tasks, SPEC)) == list(range(12))
    assert fake.most_in_flight == 3


def test_a_rate_is_kept(load, fake):
    engine = load(requests_per_minute=600)
    tasks = [CaptureTask(key=i, token_ids_L=np.array([2 + i, 3, 4], dtype=np.uint16)) for i in range(4)]
    before = len(fake.moments)
    assert len(list(engine.capture(tasks, SPEC))) == 4
    assert fake.moments[-1] - fake.moments[before] >= 0.3  # four turns after the first, less what the network adds


def test_closing_and_interrupting_let_go(load, fake):
    engine = load()
    tasks = [CaptureTask(key=i, token_ids_L=np.array([2 + i, 3], dtype=np.uint16)) for i in range(40)]
    results = engine.capture(iter(tasks), SPEC)
    next(results)
    with pytest.raises(EngineError, match="another capture"):
        one(engine)
    results.close()
    assert one(engine).error is None
    fake.poison[299] = ("slow", 3600)
    threading.Timer(0.3, engine.interrupt).start()
    with pytest.raises(EngineError, match="let go of"):
        one(engine)


def test_documents_that_do_not_fit(load):
    engine = load()
    assert engine.max_model_len == 63
    results = [
        one(engine, CaptureTask(key=0, token_ids_L=np.array(ids, dtype=np.uint32))) for ids in ([3], [3] * 64, [3, 999])
    ]
    for result, words in zip(results, ("at least 2 tokens", "exceeds the teacher's 63", "token id 999"), strict=True):
        assert words in result.error


def test_another_tokenizer(load, fake, folder):
    fake.encode = lambda text: [
        (token + 1) % VOCAB for token in HuggingFaceTokenizer.load(folder).encode([text], special_tokens=False)[0]
    ]
    with pytest.raises(ModelError, match=r"another tokenizer than the folder.*token 0 is id 1 there and id 0 here"):
        load()
    for dialect in ("vllm", "sglang"):
        fake.tokenises = False
        fake.shift_texts = 1
        with pytest.raises(ModelError, match=r"token (0 is 'w1' there and 'w0'|4 is 'w5' there and 'w4') here"):
            load(dialect=dialect)
        fake.shift_texts = 0
        assert one(load(dialect=dialect)).error is None


def test_models_that_are_not_served(load, fake):
    with pytest.raises(ModelError, match="does not serve 'other', it serves teacher"):
        load(model="other")
    fake.models = ("a", "b")
    with pytest.raises(ModelError, match=r"serves a, b; choose one with --remote-model"):
        load()
    assert load(model="b").identity.model == "b"
    with pytest.raises(ModelError, match="max_model_len 65 exceeds the 64 tokens"):
        load(model="b", max_model_len=65)
    fake.window = None
    with pytest.raises(ModelError, match="does not say its window; give it with --max-model-len"):
        load(model="b")
    assert load(model="b", max_model_len=32).max_model_len == 31
