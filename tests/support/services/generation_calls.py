"""Generations over HTTP for tests: a corpus, a plan of two steps, and calls that start one and wait for it."""

import json
from typing import Any

import httpx2

from tests.support.services.service_harness import FINAL, RunningServer, wait_for
from tests.support.services.simple_steps import EMIT, STEPS

PLAN: dict[str, Any] = {"steps": STEPS, "emit": EMIT}
LINES = [{"question": f"what is {number}?", "custom_id": f"q{number}"} for number in range(20)]


def create(server: RunningServer, corpus: dict[str, Any], **fields: Any) -> httpx2.Response:
    """Start a generation of this corpus."""
    return server.client.post("/v1/generations", json={"corpus_id": corpus["id"], **PLAN, **fields})


def finish(server: RunningServer, generation_id: str) -> dict[str, Any]:
    """The generation, once it has ended."""

    def get() -> dict[str, Any]:
        generation: dict[str, Any] = server.client.get(f"/v1/generations/{generation_id}").raise_for_status().json()
        return generation

    wait_for(lambda: get()["status"] in FINAL)
    return get()


def preview(server: RunningServer, lines: bytes, plan: dict[str, Any] = PLAN, **params: int | bool) -> httpx2.Response:
    """A dry run of these lines."""
    headers = {"Content-Type": "application/jsonl"}
    return server.client.post(
        "/v1/generations/preview", params={"plan": json.dumps(plan), **params}, content=lines, headers=headers
    )
