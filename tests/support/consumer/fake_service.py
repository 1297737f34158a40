"""A service for tests of the trainer's side: HTTP on this machine, a tiny teacher, casks by the reference sampler.

It answers what rounds ask, and keeps corpora and extractions in memory; casks lie in its folder. What goes wrong is set
as attributes.
"""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import build_cask, identity

COUNTS = {"total": 0, "bad": 0, "skipped": 0, "truncated": 0, "split": 0}


class FakeService:
    """Serves until it is closed; `teacher` is a tiny model, and `identity_fields` what is said of it."""

    def __init__(self, folder: Path, teacher: Any, **identity_fields: Any) -> None:
        self.casks = folder
        self.teacher = teacher
        self.identity_fields = identity_fields
        self.loading = 0
        """So many requests for the teacher find none."""
        self.busy = 0
        """So many requests are answered with 503."""
        self.fail: str | None = None
        """The next extraction fails for this reason."""
        self.drop_all = False
        """The teacher can read no document."""
        self.seconds_per_capture = 0.0
        self.corpora: dict[str, bytes] = {}
        self.extractions: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.requests: list[str] = []
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._handle()

            def do_POST(self) -> None:
                self._handle()

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with service._lock:
                    status, media, answer = service.answer(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                self.send_header("Content-Type", media)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                try:
                    self.wfile.write(answer)
                except OSError:
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        """Status, media type and content."""
        url = urlsplit(target)
        self.requests.append(f"{method} {url.path}")
        if self.busy:
            self.busy -= 1
            return self._json(503, {"error": {"code": "not_ready", "message": "the disk is full"}})
        parts = url.path.strip("/").split("/")[1:]
        match (method, *parts):
            case ("GET", "models"):
                return self._json(200, {"object": "list", "data": self._models()})
            case ("GET", "corpora"):
                (sha256,) = parse_qs(url.query)["sha256"]
                data = [self._corpus(sha256)] if sha256 in self.corpora else []
                return self._json(200, {"object": "list", "data": data, "has_more": False})
            case ("POST", "corpora"):
                sha256 = hashlib.sha256(body).hexdigest()
                self.corpora[sha256] = body
                return self._json(200, self._corpus(sha256))
            case ("POST", "extractions", "check"):
                plan = json.loads(body)
                known = (self.casks / plan["cask"]).exists()
                check = {"object": "extraction.check", "cask": plan["cask"], "cask_exists": known}
                return self._json(200, {**check, "teacher": "tiny", "max_length": 256})
            case ("POST", "extractions"):
                return self._json(202, self._start(json.loads(body), headers["Idempotency-Key"]))
            case ("GET", "extractions", number, "events"):
                status = self.extractions[number]["status"]
                event = {"object": "extraction.event", "id": 1, "created_at": 0, "level": "info", "type": "status"}
                text = json.dumps({**event, "message": "", "data": {"status": status}})
                return 200, "text/event-stream", f"id: 1\nevent: status\ndata: {text}\n\n".encode()
            case ("POST", "extractions", number, "resume"):
                return self._json(202, self._run(self.extractions[number]))
            case ("GET", "extractions", number) if number in self.extractions:
                return self._json(200, self.extractions[number])
            case _:
                return self._json(404, {"error": {"code": "not_found", "message": f"there is no {target}"}})

    def _models(self) -> list[dict[str, Any]]:
        if self.loading:
            self.loading -= 1
            return []
        own = identity(**self.identity_fields).model_dump(mode="json")
        return [{"object": "model", "id": "tiny", "max_model_len": 256, "status": "ready", "teacher": own}]

    def _corpus(self, sha256: str) -> dict[str, Any]:
        content = self.corpora[sha256]
        return {
            "object": "corpus", "id": f"corpus-{sha256[:8]}", "name": None, "bytes": len(content), "sha256": sha256,
            "lines": content.count(b"\n"), "created_at": 0,
        }  # fmt: skip

    def _start(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        if key in self.keys:
            return self.extractions[self.keys[key]]
        number = f"extraction-{len(self.extractions)}"
        extraction = {
            **request, "object": "extraction", "id": number, "status": "queued", "created_at": 0, "lines": COUNTS,
            "request_counts": {"total": 0, "completed": 0, "failed": 0, "skipped": 0}, "throughput_tps": None,
            "documents": {"total": 0, "captured": 0, "present": 0, "failed": 0}, "eta_seconds": None, "teacher": None,
            "usage": {"tokens_done": 0, "tokens_total": 0, "tokens_captured": 0, "bytes_written": 0}, "waiting": None,
            "error": None,
        }  # fmt: skip
        self.extractions[number], self.keys[key] = extraction, number
        return self._run(extraction)

    def _run(self, extraction: dict[str, Any]) -> dict[str, Any]:
        """Capture all at once."""
        if self.fail is not None:
            status = "cancelled" if self.fail == "cancelled" else "failed"
            extraction |= {"status": status, "error": {"code": "fault", "message": self.fail}}
            self.fail = None
            return extraction
        time.sleep(self.seconds_per_capture)
        (content,) = [
            text for sha256, text in self.corpora.items() if f"corpus-{sha256[:8]}" == extraction["corpus_id"]
        ]
        lines = [] if self.drop_all else [json.loads(line) for line in content.splitlines()]
        documents = [np.array(line["input_ids"], dtype=np.uint16) for line in lines]
        masks = [np.zeros(len(ids) - 1, dtype=np.bool_) for ids in documents]
        for mask, line in zip(masks, lines, strict=True):
            for start, stop in line["recorded"]:
                mask[start:stop] = True
        build_cask(
            self.casks / extraction["cask"],
            self.teacher,
            documents,
            spec=CaptureSpec.model_validate(extraction["capture"]),
            recorded=[None if mask.all() else mask for mask in masks],
            **self.identity_fields,
        )
        extraction |= {"status": "completed", "error": None}
        return extraction

    @staticmethod
    def _json(status: int, document: dict[str, Any]) -> tuple[int, str, bytes]:
        return status, "application/json", json.dumps(document).encode()
