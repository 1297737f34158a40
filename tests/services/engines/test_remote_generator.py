"""A served teacher that writes: exact tokens, the model's own log-probabilities, and no text without tokens."""

import numpy as np
import pytest

from logitcask_schemas.api.generation_steps import Sampling
from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import find_model
from logitcask_services.cli.serve import load_teacher
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from logitcask_services.engines.engine import RoleError
from logitcask_services.engines.generator import GenerationTask, ScoreTask
from logitcask_services.engines.openai.generator import RemoteGenerator
from logitcask_services.engines.openai.options import RemoteOptions
from logitcask_services.settings import ServiceSettings
from tests.support.services.fake_remote import VOCAB, FakeRemote, Running, greedy, logprobs_after

PROMPT = [7, 20, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_saver):
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
    generators = []

    def loaded(**options):
        quick = RemoteOptions(url=fake.url, first_pause_seconds=0.01, patience_seconds=20.0, **options)
        generators.append(RemoteGenerator(find_model(folder), quick))
        return generators[-1]

    yield loaded
    for generator in generators:
        generator.close()


def text(prompt=PROMPT, seed=0, **sampling):
    return GenerationTask(
        key="t", prompt_ids_C=np.array(prompt, dtype=np.uint16), sampling=Sampling(**sampling), seed=seed
    )


def total(written):
    return sum(logprobs_after([*PROMPT, *written[:at]])[token] for at, token in enumerate(written))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_tokens_and_their_logprobs(load, fake, dialect, temperature):
    (result,) = load(dialect=dialect).generate([text(max_tokens=6, temperature=temperature, seed=2**63 + 5)])
    written = greedy(PROMPT, 6)
    assert (result.error, result.finish, result.token_ids_N.tolist()) == (None, "length", written)
    assert result.text == " ".join(f"w{token}" for token in written)
    assert result.logprob == pytest.approx(total(written), abs=1e-9)
    scored_again = "prompt_logprobs" in fake.requests[-1] or fake.requests[-1].get("logprob_start_len") == 0
    assert scored_again == (dialect == "sglang" and temperature > 0)


def test_what_is_asked_for_arrives(load, fake):
    generator = load()
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "min_tokens": 2, "max_tokens": 5}
    list(generator.generate([text(seed=11, stop=("END",), **sampling)]))
    sent = fake.requests[-1]
    assert {name: sent[name] for name in sampling} == sampling
    assert (sent["seed"], sent["stop"], sent["prompt"], sent["model"]) == (11, ["END"], PROMPT, "teacher")
    assert (sent["repetition_penalty"], sent["presence_penalty"], sent["frequency_penalty"]) == (1.0, 0.0, 0.0)
    list(load(dialect="sglang").generate([text(seed=11, **sampling)]))
    parameters = next(body for body in reversed(fake.requests) if body.get("logprob_start_len") == -1)[
        "sampling_params"
    ]
    assert (parameters["max_new_tokens"], parameters["min_new_tokens"], parameters["sampling_seed"]) == (5, 2, 11)
    list(generator.generate([text(seed=11)]))
    assert "seed" not in fake.requests[-1]  # unused at temperature 0, where some servers cannot bear one


def test_a_stop_text_takes_its_tokens_along(load):
    written = greedy(PROMPT, 8)
    (result,) = load().generate([text(max_tokens=8, stop=(f"w{written[3]} w{written[4]}",))])
    # The space before the stop text belongs to none of the tokens that are kept.
    assert (result.error, result.finish, result.token_ids_N.tolist()) == (None, "stop", written[:3])
    assert result.logprob == pytest.approx(total(written[:3]), abs=1e-9)


def test_servers_before_token_ids(load, fake):
    fake.gives_ids = False
    with pytest.raises(ModelError, match=r"text without token ids.*vLLM 0\.10\.2 or later"):
        load()
    fake.decode = lambda ids: " ".join(f"token_id:{token}" for token in ids)  # return_tokens_as_token_ids
    fake.tokenises = True
    (result,) = load().generate([text(max_tokens=4)])
    assert result.token_ids_N.tolist() == greedy(PROMPT, 4)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_scores(load, dialect):
    ids = [7, 20, 3, 150, 299]
    task = ScoreTask(key="s", token_ids_L=np.array(ids, dtype=np.uint16), first=2)
    (result,) = load(dialect=dialect).generate([task])
    expected = [logprobs_after(ids[:at])[ids[at]] for at in range(2, 5)]
    np.testing.assert_allclose(result.logprobs_N, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda choice: choice.update(token_ids=[5] * 9), "wrote 9 tokens and gave the log-probabilities of 4"),
        (lambda choice: choice.update(token_ids=[5, 5, 5, 300]), "wrote token id 300"),
        (lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, float("nan")), "should be a finite number"),
        (lambda choice: choice.update(finish_reason="abort"), "ended the text with 'abort'"),
        (lambda choice: choice.update(finish_reason=None), "ended the text with 'nothing'"),
        (lambda choice: choice.pop("text"), "text: Field required"),
    ],
)
def test_garbage_is_that_texts_error(load, fake, edit, words):
    generator = load()
    fake.poison[299] = ("edit", lambda answer: edit(answer["choices"][0]))
    (bad,) = generator.generate([text([7, 299], max_tokens=4)])
    assert words in bad.error
    (good,) = generator.generate([text(max_tokens=4)])
    assert good.error is None


def test_tasks_that_do_not_fit(load):
    generator = load()
    score = ScoreTask(key="s", token_ids_L=np.full(64, 3, dtype=np.uint16), first=1)
    for task, words in (
        (text([], max_tokens=4), "the prompt has no tokens"),
        (text([3] * 64, max_tokens=4), "window 64"),
        (text([3] * 61, max_tokens=4), "exceed the teacher's window of 64"),
        (score, "the text has 64 tokens, the teacher's window 63"),
    ):
        (result,) = generator.generate([task])
        assert words in result.error


def test_a_server_that_gives_no_tokens_still_scores(fake, folder, tmp_path, caplog):
    """The teacher has the part that it can have, and says so; asked for the other one it refuses."""
    fake.gives_ids = False
    settings = ServiceSettings(teacher=folder, cask_root=tmp_path, engine="openai", remote_url=fake.url)
    teacher = load_teacher(settings, find_model(folder), "capture")
    assert list(teacher.parts) == ["capture"]
    assert "the teacher is served without this: the server at" in caplog.text
    teacher.close()
    with pytest.raises(RoleError, match="cannot write for a corpus"):
        load_teacher(settings, find_model(folder), "generate")
