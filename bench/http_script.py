"""The script that people write today instead of a service: texts and `prompt_logprobs` from a stock `vllm serve`.

It asks `/v1/completions` for n samples of each prompt, keeps the texts that pass a filter, sends each of them again
behind its prompt with `prompt_logprobs`, and writes the probable tokens of the text's positions as lines of JSON.
`generation_over_http.py` measures it.

What it leaves out, and the service does: going on after a crash, seeds, retries, the ids that were sampled (the text is
tokenised again), the token that ended a text, the mass of all that is not among the K, equal texts made one, checksums,
and where a text came from. Its lines are leaner than the server's answers: ids and log-probabilities alone.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx2

START_SECONDS: Final = 480
REQUEST_SECONDS: Final = 3600
STOCK_LOGPROBS: Final = 20
"""Most log-probabilities a position that a server gives, unless it is started with more."""


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A sample, as the server answers."""

    prompt: str
    prompt_tokens: int
    text: str
    finish: str


TextFilter = Callable[[WrittenText], bool]
"""Whether a text is kept."""


@contextmanager
def served(teacher: Path, *, max_model_len: int, k: int, log: Path) -> Iterator[str]:
    """Base URL of a stock server of a model folder, ended at the end; float32, and otherwise its own settings.

    Args:
        teacher: the model's folder.
        max_model_len: most tokens of a prompt with what is written.
        k: most log-probabilities that will be asked for at a position.
        log: file for what it says.

    Raises:
        RuntimeError: it ended, or did not answer within `START_SECONDS`; with the log's end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "teacher", "--dtype", "float32"]
    # No compilation, as in the service: on a CPU it is slow to start and gains nothing.
    arguments += ["--enforce-eager", "--max-model-len", str(max_model_len), "--generation-config", "vllm"]
    if k > STOCK_LOGPROBS:
        arguments += ["--max-logprobs", str(k)]
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "2"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            # What `vllm serve` runs; the command itself does not start where vLLM is installed under a name for CPUs.
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(teacher), *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vllm serve did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False


class HttpScript:
    """The script, with so many requests in flight."""

    def __init__(self, url: str, *, concurrency: int) -> None:
        limits = httpx2.Limits(max_connections=concurrency)
        self._client = httpx2.AsyncClient(base_url=url, timeout=REQUEST_SECONDS, limits=limits)
        self._places = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def write(self, prompts: Sequence[str], sampling: dict[str, Any]) -> tuple[list[WrittenText], int]:
        """Samples of each prompt, and the number of tokens written. Raises httpx2.HTTPError."""
        texts: list[WrittenText] = []
        tokens = 0
        answers = await asyncio.gather(*(self._ask({"prompt": prompt, **sampling}) for prompt in prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens += answer["usage"]["completion_tokens"]
            length = answer["usage"]["prompt_tokens"]
            texts += [WrittenText(prompt, length, c["text"], c["finish_reason"]) for c in answer["choices"]]
        return texts, tokens

    async def capture(self, texts: Sequence[WrittenText], k: int, path: Path) -> int:
        """Write what the server says of each text as JSON lines; the number of positions. Raises httpx2.HTTPError."""
        positions = 0
        with path.open("w", encoding="utf-8") as file:

            async def capture_text(text: WrittenText) -> None:
                nonlocal positions
                body = {"prompt": text.prompt + text.text, "max_tokens": 1, "prompt_logprobs": k}
                answer = await self._ask(body)
                rows = answer["choices"][0]["prompt_logprobs"][text.prompt_tokens :]
                positions += len(rows)
                kept = [{token: round(entry["logprob"], 6) for token, entry in row.items()} for row in rows]
                file.write(json.dumps({"prompt": text.prompt, "text": text.text, "logprobs": kept}) + "\n")

            await asyncio.gather(*map(capture_text, texts))
            file.flush()
            os.fsync(file.fileno())
        return positions

    async def _ask(self, body: dict[str, Any]) -> Any:
        async with self._places:
            response = await self._client.post("/v1/completions", json={"model": "teacher", **body})
        response.raise_for_status()
        return response.json()
