"""Real chat templates, from packages that ship them, each with a tokenizer that knows its control tokens."""

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDERS = {"trl": "chat_templates", "axolotl": "utils/chat_templates/templates"}
_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|<\uff5c[^<>\uff5c\s]{1,40}\uff5c>|</?[a-z_]{2,24}>|\[/?[A-Z_]{3,20}\]")
_NOT_SPECIAL = re.compile(r"</?(think|tool_call|tool_response|tools)>")


def template_files() -> dict[str, Path]:
    """Name -> file of every template that is installed."""
    files: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        spec = importlib.util.find_spec(package)
        places = [] if spec is None else spec.submodule_search_locations
        assert places, f"{package} is not installed: run `make install`"
        place = Path(places[0]) / folder
        files |= {f"{package}/{file.stem}": file for file in sorted(place.glob("*.jinja"))}
    return files


@lru_cache
def _trained() -> str:
    """A byte-level tokenizer of a few merges, as JSON."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = "the quick brown fox jumps over the lazy dog and answers the question of a user " * 20
    core.train_from_iterator([text], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return str(core.to_str())


def tokenizer_for(template: str) -> Any:
    """A tokenizer in which everything that looks like a control token in the template is one."""
    core = Tokenizer.from_str(_trained())
    found = list(dict.fromkeys(_CONTROL.findall(template)))
    special = ["<s>", "</s>", *(text for text in found if not _NOT_SPECIAL.fullmatch(text))]
    core.add_special_tokens(list(dict.fromkeys(special)))
    core.add_tokens([text for text in found if _NOT_SPECIAL.fullmatch(text)])
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
