"""A server of completions that knows nothing, and fails as it is told to: vLLM's and SGLang's ways of speaking.

Distributions are a function of the tokens read so far. Faults come one by one from `faults`, for whatever scores or
writes, or always for prompts that hold a token of `poison`.
"""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn

VOCAB = 300
STOP_ID = 1


def logprobs_after(ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities [V], float64, of what follows some tokens."""
    logits = np.random.default_rng([len(ids), *ids]).normal(0.0, 2.5, VOCAB)
    return logits - np.log(np.exp(logits).sum())


def greedy(ids: Sequence[int], tokens: int) -> list[int]:
    """What the most probable text is."""
    written = list(ids)
    while len(written) - len(ids) < tokens and (not written[len(ids) :] or written[-1] != STOP_ID):
        written.append(int(logprobs_after(written).argmax()))
    return written[len(ids) :]


@dataclass
class FakeRemote:
    """See the module's docstring. `url` is known once it runs."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    window: int = 64
    most_k: int = 20
    key: str | None = None
    models: tuple[str, ...] = ("teacher",)
    tokenises: bool = True
    gives_ids: bool = True
    shift_texts: int = 0
    """By how much the texts of ids are those of others."""
    pause: float = 0.0
    faults: deque[tuple[str, Any]] = field(default_factory=deque)
    poison: dict[int, tuple[str, Any]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        content, more = b"", True
        while more:
            message = await receive()
            content, more = content + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.authorizations.add(headers.get("authorization"))
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            await _answer(send, 401, {"error": {"message": "no such key"}})
            return
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self._route(scope["path"], json.loads(content) if content else {}, send)
        finally:
            self.in_flight -= 1

    async def _route(self, path: str, body: dict[str, Any], send: Any) -> None:
        if path == "/v1/models":
            data = [{"id": name, "max_model_len": self.window} for name in self.models]
            await _answer(send, 200, {"object": "list", "data": data})
        elif path in ("/version", "/get_server_info"):
            await _answer(send, 200, {"version": "9.9"})
        elif path == "/tokenize" and self.tokenises:
            await _answer(send, 200, {"count": 0, "max_model_len": self.window, "tokens": self.encode(body["prompt"])})
        elif path in ("/v1/completions", "/generate"):
            await self._work(path, body, send)
        else:
            await _answer(send, 404, {"detail": "Not Found"})

    async def _work(self, path: str, body: dict[str, Any], send: Any) -> None:
        self.requests.append(body)
        self.moments.append(time.monotonic())
        ids = body["prompt"] if path == "/v1/completions" else body["input_ids"]
        poison = next((self.poison[token] for token in ids if token in self.poison), None)
        kind: str
        value: Any
        kind, value = poison or (self.faults.popleft() if self.faults else ("none", None))
        if self.pause:
            await asyncio.sleep(self.pause)
        if body.get("prompt_logprobs", 0) > self.most_k:
            kind, value = "status", (400, {})
        if kind == "status":
            status, extra = value
            await _answer(send, status, {"error": {"message": f"scripted {status}"}}, extra)
            return
        if kind == "slow":
            await asyncio.sleep(value)
        answer = self._vllm(body, ids) if path == "/v1/completions" else self._sglang(body, ids)
        if kind == "edit":
            value(answer)
        text = json.dumps(answer).encode()
        if kind == "text":
            text = value
        await _answer(send, 200, text, cut=kind == "cut")

    def _scores(self, ids: list[int], k: int) -> list[list[int]]:
        return [np.argsort(-logprobs_after(ids[:at]))[:k].tolist() for at in range(1, len(ids))]

    def _text_of(self, token: int) -> str:
        return self.decode([(token + self.shift_texts) % VOCAB])

    def _vllm(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length", "stop_reason": None}
        if body.get("return_token_ids") and self.gives_ids:
            choice["prompt_token_ids"] = ids
        if (k := body.get("prompt_logprobs")) is not None:
            rows: list[Any] = [None]
            for at, top in enumerate(self._scores(ids, k), 1):
                values = logprobs_after(ids[:at])
                rows.append(
                    {
                        str(token): {"logprob": float(values[token]), "rank": 1, "decoded_token": self._text_of(token)}
                        for token in dict.fromkeys([ids[at], *top])
                    }
                )
            choice["prompt_logprobs"] = rows
        else:
            self._write(choice, ids, body)
        return {"object": "text_completion", "model": "teacher", "choices": [choice]}

    def _write(self, choice: dict[str, Any], ids: list[int], body: dict[str, Any]) -> None:
        written = greedy(ids, body["max_tokens"])
        text = self.decode([token for token in written if token != STOP_ID])
        if written[-1] == STOP_ID:
            choice["finish_reason"] = "stop"
        for stop in body["stop"]:
            if stop in text:
                count = next(n for n in range(len(written) + 1) if stop in self.decode(written[:n]))
                written, text = written[:count], text.partition(stop)[0]
                choice |= {"finish_reason": "stop", "stop_reason": stop}
        values = [float(logprobs_after([*ids, *written[:at]])[token]) for at, token in enumerate(written)]
        choice |= {"text": text, "logprobs": {"token_logprobs": values, "tokens": [self._text_of(t) for t in written]}}
        if self.gives_ids:
            choice["token_ids"] = written

    def _sglang(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        texts = body.get("return_text_in_logprobs", False)

        def triple(value: float | None, token: int) -> list[Any]:
            return [value, token, self._text_of(token) if texts else None]

        before = [logprobs_after(ids[:at]) for at in range(1, len(ids))]
        written = greedy(ids, body["sampling_params"]["max_new_tokens"])
        values = [float(logprobs_after([*ids, *written[:at]])[token]) for at, token in enumerate(written)]
        meta: dict[str, Any] = {
            "finish_reason": {"type": "length", "length": len(written)},
            "output_token_logprobs": [triple(value, token) for value, token in zip(values, written, strict=True)],
        }
        if written[-1] == STOP_ID:
            meta["finish_reason"] = {"type": "stop", "matched": STOP_ID}
        if body["logprob_start_len"] == 0:
            following = zip(before, ids[1:], strict=True)
            scores = self._scores(ids, body["top_logprobs_num"])
            meta["input_token_logprobs"] = [triple(None, ids[0])]
            meta["input_token_logprobs"] += [triple(float(values[token]), token) for values, token in following]
            meta["input_top_logprobs"] = [None] + [
                [triple(float(values[token]), token) for token in top]
                for values, top in zip(before, scores, strict=True)
            ]
            if pinned := body.get("token_ids_logprob"):
                meta["input_token_ids_logprobs"] = [None] + [
                    [triple(float(values[token]), token) for token in pinned] for values in before
                ]
        return {"text": self.decode(written), "output_ids": written, "meta_info": meta}


async def _answer(
    send: Any, status: int, body: Any, headers: dict[str, str] | None = None, *, cut: bool = False
) -> None:
    """A whole answer, or one that ends in the middle of what its header announces."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    listing = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    pairs = [(name.lower().encode(), value.encode()) for name, value in listing.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content[: len(content) // 2] if cut else content})


class Running:
    """A fake server in a thread of its own; a context."""

    def __init__(self, fake: FakeRemote) -> None:
        self.fake = fake
        config = uvicorn.Config(fake, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> FakeRemote:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.fake.url = f"http://127.0.0.1:{port}"
        return self.fake

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()
