"""Whether a server's tokenizer is the one whose folder was given: ids mean nothing otherwise.

Texts of many kinds, and one in which tokens from all over the vocabulary occur, must become the same ids (`/tokenize`).
A server that does not tokenise must give the same texts for ids from all over the vocabulary.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from logitcask_schemas.errors import ModelError
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.openai.dialect import Dialect, Tokens, parsed
from logitcask_services.engines.openai.faults import RefusedError
from logitcask_services.engines.openai.remote_client import RemoteClient

_TEXTS: Final = (
    "The quick brown fox jumps over 13 lazy dogs; it's 3.14159, isn't it?",
    "def f(x):\n\treturn {'a': [x ** 2 for _ in range(10)]}  # \\n\r\n    \n\n",
    "Übergrößenträger, façade, Ελληνικά, Русский язык, עברית, العربية, हिन्दी, 日本語の文章, 한국어, ไทย",
    "\U0001f600\U0001f468‍\U0001f469‍\U0001f467 \U0001d54f  ​ 　… — “quotes” ½ ™ ﬁ",
)
_SPREAD: Final = 512
"""Tokens of the vocabulary that are tried."""
_REPLACEMENT: Final = "�"
_TOKENS = TypeAdapter(Tokens)


async def require_same_tokenizer(
    client: RemoteClient, dialect: Dialect, model: str, tokenizer: DocumentTokenizer, size: int, window: int
) -> None:
    """Compare a server's tokenizer with ours.

    Args:
        client: to the server.
        dialect: how it speaks.
        model: as the server names it.
        tokenizer: ours.
        size: one more than its largest id.
        window: most tokens of a prompt.

    Raises:
        ModelError: they differ; names the text and the first ids that do.
        AnswerError, RefusedError, EngineError: see `RemoteClient.ask`.
    """
    ids = np.unique(np.linspace(0, size - 1, min(_SPREAD, size, window)).astype(np.int64))
    spread = " ".join(tokenizer.decode([token]) for token in ids.tolist()).replace(_REPLACEMENT, "")
    for text in (*_TEXTS, spread):
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        ours = tokenizer.encode([text], special_tokens=False)[0]
        if not ours:
            continue
        try:
            content = await client.ask("/tokenize", body, lambda content: content, missing_is_refused=True)
        except RefusedError as error:
            if error.status not in (404, 405, 501):
                raise
            await _require_same_texts(client, dialect, model, tokenizer, ids)
            return
        _require_same_ids(text, ours, parsed(_TOKENS, content).tokens)


def _require_same_ids(text: str, ours: Sequence[int], theirs: Sequence[int]) -> None:
    if list(ours) == list(theirs):
        return
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (mine, other) in enumerate(pairs) if mine != other), min(len(ours), len(theirs)))
    raise ModelError(
        f"the server has another tokenizer than the folder that --teacher names: of {text[:60]!a} token {at} is "
        f"{_at(theirs, at)} there and {_at(ours, at)} here ({len(theirs)} and {len(ours)} tokens). Name the folder or "
        "repository of the model that is served"
    )


async def _require_same_texts(
    client: RemoteClient, dialect: Dialect, model: str, tokenizer: DocumentTokenizer, ids: NDArray[np.int64]
) -> None:
    request = dialect.texts(model, ids)
    texts = await client.ask(
        request.path,
        request.body,
        lambda content: dialect.read_texts(content, ids),
        most_bytes=request.most_bytes,
    )
    compared = 0
    for token, theirs in zip(ids.tolist(), texts, strict=True):
        ours = tokenizer.decode([token])
        # Parts of characters have no text of their own, and spaces at the edges are a matter of taste.
        if theirs is None or not ours.strip() or _REPLACEMENT in ours + theirs:
            continue
        compared += 1
        if ours.strip() != theirs.strip():
            raise ModelError(
                f"the server has another tokenizer than the folder that --teacher names: token {token} is "
                f"{theirs!a} there and {ours!a} here. Name the folder or repository of the model that is served"
            )
    if not compared:
        raise ModelError(
            "the server neither tokenises (/tokenize) nor says the text of tokens, so that it cannot be proved that "
            "its tokenizer is the one that --teacher names"
        )


def _at(ids: Sequence[int], at: int) -> str:
    return f"id {ids[at]}" if at < len(ids) else "missing"
