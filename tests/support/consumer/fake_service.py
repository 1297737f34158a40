"""A service for tests of the trainer's side: HTTP on this machine, a tiny teacher, casks by the reference sampler.

It answers what rounds ask, and keeps corpora and extractions in memory; casks lie in its folder. What goes wrong is set
as attributes.
"""

import hashlib
import json
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from logitcask_consumer.rounds.sampler import Sampling, write_chunk
from logitcask_consumer.student.generation import ends_of
from logitcask_consumer.student.loading import load_model
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import build_cask, identity, tiny_tokenizer

COUNTS = {"total": 0, "bad": 0, "skipped": 0, "truncated": 0, "split": 0}

REUSED = {"error": {"code": "idempotency_key_reused", "message": "the key is another request's"}}


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
        self.fail_writing: str | None = None
        """The next generation fails for this reason."""
        self.drop_all = False
        """The teacher can read no document."""
        self.seconds_per_capture = 0.0
        self.corpora: dict[str, bytes] = {}
        self.corpus_ids = ""
        """What ids of corpora begin with."""
        self.extractions: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.generations: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.students: Path | None = None
        """Whose sub-folders generations may name."""
        self.stale_student: Any = None
        """A model that writes, and says its log q, in place of the student that was asked for."""
        self.writer: dict[str, Any] = {}
        """Who the service says has written, where it is another than the teacher."""
        self.row_changes: dict[str, Any] = {}
        """What the service says otherwise of each text."""
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
                try:
                    with service._lock:
                        status, media, answer = service.answer(self.command, self.path, dict(self.headers), body)
                except Exception:  # noqa: BLE001 - whatever a test's teacher raises is shown to its client, which else waits on
                    status, media, answer = service._json(
                        500, {"error": {"code": "fake_fault", "message": traceback.format_exc()}}
                    )
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
                begun = self._start(json.loads(body), headers["Idempotency-Key"])
                return self._json(422, REUSED) if begun is None else self._json(202, begun)
            case ("POST", "generations"):
                made = self._generate(json.loads(body), headers["Idempotency-Key"])
                return self._json(422, REUSED) if made is None else self._json(202, made)
            case ("GET", "generations", number, "events"):
                event = {"object": "extraction.event", "id": 1, "created_at": 0, "level": "info", "type": "status"}
                text = json.dumps({**event, "message": "", "data": {"status": self.generations[number]["status"]}})
                return 200, "text/event-stream", f"id: 1\nevent: status\ndata: {text}\n\n".encode()
            case ("POST", "generations", number, "resume"):
                return self._json(202, self._write(self.generations[number]))
            case ("GET", "generations", number, "rows"):
                query = parse_qs(url.query)
                after, limit = int(query["after"][0]), int(query["limit"][0])
                rows = self.rows[number]
                page = {"data": rows[after : after + limit], "has_more": after + limit < len(rows)}
                return self._json(200, {"object": "list", "step": 0, "is_open": False, **page})
            case ("GET", "generations", number) if number in self.generations:
                return self._json(200, self.generations[number])
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
            "object": "corpus", "id": f"corpus-{self.corpus_ids}{sha256[:8]}", "name": None, "bytes": len(content),
            "sha256": sha256, "lines": content.count(b"\n"), "created_at": 0,
        }  # fmt: skip

    def _start(self, request: dict[str, Any], key: str) -> dict[str, Any] | None:
        """None where the key was another request's."""
        if key in self.keys:
            there = self.extractions[self.keys[key]]
            return there if there["corpus_id"] == request["corpus_id"] else None
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
            text
            for sha256, text in self.corpora.items()
            if f"corpus-{self.corpus_ids}{sha256[:8]}" == extraction["corpus_id"]
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

    def _generate(self, request: dict[str, Any], key: str) -> dict[str, Any] | None:
        """None where the key was another request's."""
        if key in self.keys:
            there = self.generations[self.keys[key]]
            return there if all(there[name] == value for name, value in request.items() if name != "teacher") else None
        number = f"generation-{len(self.generations)}"
        generation = {
            **request, "object": "generation", "id": number, "status": "queued", "created_at": 0, "lines": 0,
            "bad_lines": 0, "stages": [], "rows": {}, "corpora": [], "generated_tokens": 0, "throughput_tps": None,
            "eta_seconds": None, "teacher": None, "teacher_name": request["teacher"], "templates": {}, "waiting": None,
            "error": None,
        }  # fmt: skip
        self.generations[number], self.keys[key] = generation, number
        self._write(generation)
        return {**generation, "status": "queued", "error": None}

    def _write(self, generation: dict[str, Any]) -> dict[str, Any]:
        """Write all texts at once."""
        if self.fail_writing is not None:
            generation |= {"status": "failed", "error": {"code": "fault", "message": self.fail_writing}}
            self.fail_writing = None
            return generation
        (step,) = generation["steps"]
        assert (step["kind"], step["template"]) == ("generate", "input-ids")
        model = self.teacher
        if generation["teacher_name"] is not None:
            assert self.students is not None
            folder = self.students / generation["teacher_name"].removeprefix("students/")
            model = self.stale_student or load_model(folder)
        (content,) = [
            text
            for sha256, text in self.corpora.items()
            if f"corpus-{self.corpus_ids}{sha256[:8]}" == generation["corpus_id"]
        ]
        lines = [json.loads(line) for line in content.splitlines()]
        wanted = step["sampling"]
        sampling = Sampling(
            max_new_tokens=wanted["max_tokens"], temperature=wanted["temperature"], top_p=wanted["top_p"],
            top_k=wanted["top_k"],
        )  # fmt: skip
        tokenizer = tiny_tokenizer()
        texts = write_chunk(
            model, [(at, line["input_ids"]) for at, line in enumerate(lines)], sampling,
            seed=generation["seed"] % 2**32, ends=ends_of(model, tokenizer), pad=0,
        )  # fmt: skip
        self.rows[generation["id"]] = [
            {
                "id": str(at), "line": at + 1, "custom_id": line["custom_id"], "fields": {}, "checks": {},
                "dropped": None,
                "written": {
                    "output": {
                        "token_ids": text.input_ids[len(line["input_ids"]) :], "finish": text.finish,
                        "mean_logprob": float(np.mean(text.logprobs)), **self.row_changes,
                    }
                },
            }
            for at, (line, text) in enumerate(zip(lines, texts, strict=True))
        ]  # fmt: skip
        who = identity(**self.identity_fields).model_dump(mode="json")
        generation |= {"status": "completed", "error": None, "teacher": self.writer or who}
        return generation

    @staticmethod
    def _json(status: int, document: dict[str, Any]) -> tuple[int, str, bytes]:
        return status, "application/json", json.dumps(document).encode()
