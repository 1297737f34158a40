"""Whether a student fits its prompts and its teacher is known before it writes."""

import pytest

from logitcask_consumer.rounds.samples import read_chunks
from logitcask_schemas.errors import IdentityMismatchError, ModelError
from tests.support.consumer.cask_builder import VOCAB, tiny_model, tiny_tokenizer
from tests.support.consumer.rounds_runs import run


@pytest.fixture
def student(tmp_path):
    """A function: the folder of a student with the teacher's tokenizer."""

    def saved(kind="llama", **options):
        tiny_model(kind, layers=2, seed=1, **options).save_pretrained(tmp_path / "student")
        tiny_tokenizer().save_pretrained(tmp_path / "student")
        return str(tmp_path / "student")

    return saved


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"kind": "gpt2", "max_position_embeddings": 24}, ModelError, "context is 24 tokens .* a training sequence"),
        ({"vocab_size": 30}, IdentityMismatchError, "vocabulary has 30 ids, the teacher's logits had 97"),
    ],
)
def test_one_that_does_not_fit_is_refused_before_it_writes(settings, service, student, options, error, what):
    """Its tables have no row for a position, or for a token of a prompt."""
    with pytest.raises(error, match=what):
        run(settings, student=student(**options), max_new_tokens=40)
    assert not list(settings["output"].glob("rounds/*/samples.jsonl"))
    assert not service.extractions


def test_one_with_more_ids_than_the_teacher_writes_none_of_these(settings, student):
    """Vocabularies of one tokenizer are padded differently; the teacher cannot read what it has no id for."""
    result, _ = run(settings, student=student(vocab_size=VOCAB + 31), rounds=1)
    assert result.state.rounds[0].documents == 20
    for chunk in read_chunks(settings["output"] / "rounds/0001/samples.jsonl"):
        assert max(max(text.input_ids) for text in chunk) < VOCAB
