"""A process that leaves torch out tokenises, renders and tells answers exactly as one that has it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

from logitcask_services.corpora.lines import ChatLine  # noqa: E402
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer, Tokenised  # noqa: E402
from logitcask_services.engines.model_config import numeric_fields  # noqa: E402
from tests.support.services.chat_templates import template_files, tokenizer_for  # noqa: E402
from tests.support.services.service_harness import server_environment  # noqa: E402

KINDS = {
    "llama": "PreTrainedTokenizerFast",
    "qwen2": "Qwen2Tokenizer",
    "gpt2": "GPT2Tokenizer",
    "gemma3": "TokenizersBackend",
}
"""Type of a model -> class that its tokenizer_config.json names: some build their tokenizer in a way of their own."""
TEXTS = ["the quick brown fox", "  über\n\n答え 42", "<s>the</s> user", ""]
CHAT = [
    {"role": "user", "content": "the question of a user"},
    {"role": "assistant", "content": "the answer"},
    {"role": "user", "content": "over </s> the lazy dog"},
    {"role": "assistant", "content": "jumps"},
]


def facts(folder: Path) -> dict[str, Any]:
    """All that the service asks a tokenizer and a configuration."""
    tokenizer = HuggingFaceTokenizer.load(folder)
    (line,) = tokenizer.chat([ChatLine(messages=CHAT)])
    chat = [line.token_ids, line.answers, line.notes] if isinstance(line, Tokenised) else str(line)
    prompt = tokenizer.chat_prompt(CHAT[:3], prefix="the")
    return {
        "ids": tokenizer.encode(TEXTS, special_tokens=True),
        "offsets": tokenizer.encode_with_offsets(TEXTS, special_tokens=False),
        "chat": chat,
        "prompt": prompt if isinstance(prompt, list) else str(prompt),
        "text": tokenizer.decode(tokenizer.encode(TEXTS[1:2], special_tokens=False)[0]),
        "control": sorted(tokenizer.control_ids),
        "end": tokenizer.end_id,
        "config": numeric_fields(folder, json.loads((folder / "config.json").read_text())),
    }


SCRIPT = f"""
import json, sys
from pathlib import Path
from logitcask_schemas.cli.tokenizers import leave_torch_out
leave_torch_out()
from {__name__} import facts
answers = {{folder: facts(Path(folder)) for folder in sys.argv[1:]}}
assert not any(name.partition(".")[0] == "torch" for name in sys.modules), "torch was imported"
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tokenizer of each kind, and one of each chat template of TRL."""
    root = tmp_path_factory.mktemp("tokenizers")
    templates = dict([entry for entry in template_files().items() if entry[0].startswith("trl/")][::3])
    assert len(templates) > 10
    made = []
    for number, (name, file) in enumerate(templates.items()):
        folder = root / name.replace("/", "-")
        template = file.read_text()
        tokenizer_for(template).save_pretrained(folder)
        kind, named = list(KINDS.items())[number % len(KINDS)]
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": named}))
        fields = {"model_type": kind, "architectures": ["Any"], "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5}
        if kind == "gemma3":
            fields |= {"text_config": {"model_type": "gemma3_text", "dtype": "float16", "rope_theta": 7.0}}
        (folder / "config.json").write_text(json.dumps(fields))
        made.append(folder)
    return made


def test_nothing_is_different(folders):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, folders)],
        capture_output=True,
        text=True,
        env=server_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "PyTorch" not in done.stderr
    without = json.loads(done.stdout)
    with_torch = json.loads(json.dumps({str(folder): facts(folder) for folder in folders}))
    assert without == with_torch
    rendered = [answer["chat"] for answer in without.values() if isinstance(answer["chat"], list)]
    assert len(rendered) > 10
    assert any(answers for _, answers, _ in rendered)
