"""The tokenizer: the fast path gives what the tokenizer itself gives; templates that fail say so."""

import json

import pytest

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

from logitcask_schemas.errors import ModelError  # noqa: E402
from logitcask_services.corpora.lines import ChatLine  # noqa: E402
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer  # noqa: E402

TEMPLATE = "{% for m in messages %}<s> {{ m['content'] + ' ' }}{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    words = {"<s>": 0, "<unk>": 1, "a": 2, "b": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_ids_are_the_tokenizers_own_without_truncation_or_padding(folder):
    tokenizer = HuggingFaceTokenizer.load(folder)
    plain = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["a b a", "b zzz", ""]
    for special_tokens in (True, False):
        expected = plain(texts, add_special_tokens=special_tokens, padding=False, truncation=False)["input_ids"]
        assert tokenizer.encode(texts, special_tokens=special_tokens) == expected
    assert tokenizer.encode(["a b a"], special_tokens=True) == [[0, 2, 3, 2]]


def test_templates(folder):
    def chat(*messages):
        return HuggingFaceTokenizer.load(folder).chat([ChatLine(messages=list(messages))])[0]

    assert chat({"role": "user", "content": "a"}).code == "no_chat_template"
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert chat({"role": "user", "content": "a"}, {"role": "x", "content": "b"}).token_ids == [0, 2, 0, 3]
    (folder / "chat_template.jinja").write_text("{{ messages[0].content.nothing.at_all }}")
    assert chat({"role": "user", "content": "a"}).code == "template_failed"


def test_texts_that_the_tokenizer_has_no_token_for(folder):
    """Its unk token is not in its vocabulary, so its Rust code raises bare Exception."""
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["model"]["unk_token"] = "<missing>"
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = HuggingFaceTokenizer.load(folder)
    assert tokenizer.encode(["a b"], special_tokens=False) == [[2, 3]]
    for encode in (
        lambda: tokenizer.encode(["a zzz"], special_tokens=True),
        lambda: tokenizer.encode_with_offsets(["a zzz"], special_tokens=True),
        lambda: tokenizer.chat([ChatLine(messages=[{"role": "user", "content": "zzz"}])]),
        lambda: tokenizer.chat([ChatLine(messages=[{"role": "user", "content": "zzz <s> a"}])]),  # guarded
        lambda: tokenizer.chat_prompt([{"role": "user", "content": "zzz <s> a"}]),
    ):
        with pytest.raises(ModelError, match="cannot encode a text: WordLevel error: Missing"):
            encode()


def test_no_tokenizer(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer that loads"):
        HuggingFaceTokenizer.load(tmp_path)
