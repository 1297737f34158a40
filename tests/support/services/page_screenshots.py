"""Makes docs/images/page-*.png: `python -m tests.support.services.page_screenshots TEACHER IMAGES [--casks FOLDER]`.

With `--report FILE` it makes demo-report.png instead, of a report.html (that of `make demo`: demo-output/report).

TEACHER is the folder of SmolLM2-135M-Instruct (`python -m demo.fetch_teacher smollm2-135m --to TEACHER`). The casks are
real; the service around them runs a teacher that knows nothing, slowly enough to be seen at work.
"""

import argparse
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from logitcask_schemas.cli.tokenizers import load_tokenizer
from logitcask_services.http.pages.viewer.application import create_viewer
from logitcask_services.http.pages.viewer.shelf import FolderShelf
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.services.browser import chromium
from tests.support.services.fake_teacher import fake_teacher
from tests.support.services.page_casks import SPECS, capture
from tests.support.services.service_harness import RunningServer, jsonl, wait_for

WIDE, PHONE, REPORT = (1280, 860), (360, 740), (1100, 1000)
TOKEN = 33
"""That is pointed at."""


@contextmanager
def viewer(casks: Path, teacher: Path) -> Iterator[str]:
    """The viewer's address."""
    shelf = FolderShelf([str(casks)], load_tokenizer(teacher, command="screenshots"))
    server = uvicorn.Server(
        uvicorn.Config(create_viewer(shelf), log_config=None, access_log=False, ws="none", lifespan="off")
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@contextmanager
def service(folder: Path) -> Iterator[RunningServer]:
    """A service in the middle of its work."""
    settings = ServiceSettings(
        teacher=folder / "teacher", cask_root=folder / "casks", data_dir=folder / "state", disk_floor_bytes=0,
        chunk_positions=900,
    )  # fmt: skip
    load = lambda role: fake_teacher(seconds_per_document=0.03, max_model_len=512)  # noqa: E731
    server = RunningServer(Service(settings, load), None)
    server.start()
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    texts = [{"text": f"document {number}: " + "some words. " * (number % 9 + 1)} for number in range(400)]
    corpora = {
        "stories": [*texts[:120], {"no": "text"}],
        "questions-and-answers": texts,
        "held-out": texts[:50],
        "archive": texts[50:120],
    }
    for name, lines in corpora.items():
        answer = server.client.post("/v1/corpora", params={"name": f"{name}.jsonl"}, content=jsonl(lines))
        job = server.submit(answer.json(), name)
        if name == "stories":
            server.finish(job["id"])
        if name == "archive":
            server.client.post(f"/v1/extractions/{job['id']}/pause").raise_for_status()
    time.sleep(5)
    yield server
    server.stop()


def shoot(
    browser: Any, url: str, path: Path, size: tuple[int, int], scheme: str = "light", token: int | None = None
) -> None:
    """One picture."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=1.5
    )
    tab = context.new_page()
    tab.goto(url)
    if token is not None:
        tab.locator(".tok").nth(token).focus()
        tab.locator(".inspector table.head").first.wait_for()
        tab.wait_for_timeout(300)
    else:
        tab.wait_for_timeout(800)
    tab.screenshot(path=path)
    context.close()


def main() -> None:
    """All pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--casks", type=Path, help="where the casks are kept, and made if they are not there")
    parser.add_argument("--report", type=Path, help="report.html, of which alone a picture is made")
    arguments = parser.parse_args()
    if arguments.report is not None:
        with chromium() as browser:
            shoot(browser, arguments.report.resolve().as_uri(), arguments.images / "demo-report.png", REPORT)
        return
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        casks = arguments.casks or Path(scratch) / "pictures"
        if not casks.exists():
            capture(arguments.teacher, casks)
        first, second = SPECS
        images: Path = arguments.images
        with viewer(casks, arguments.teacher) as url:
            document = f"{url}/ui/casks/{first}/documents/1"
            shoot(browser, document, images / "page-document.png", WIDE, token=TOKEN)
            shoot(browser, f"{document}?measure=probability", images / "page-dark.png", WIDE, "dark", token=TOKEN)
            shoot(browser, document, images / "page-phone.png", PHONE, token=TOKEN)
            shoot(browser, f"{url}/ui/casks/{first}", images / "page-cask.png", (1280, 2300))
            identity = FolderShelf([str(casks)]).open(first).read(1).id.hex()
            side_by_side = f"{url}/ui/compare?left={first}&right={second}&id={identity}"
            shoot(browser, side_by_side, images / "page-compare.png", (1280, 1500), token=TOKEN)
        with service(Path(scratch)) as server:
            shoot(browser, server.url, images / "page-overview.png", WIDE)
            (job,) = server.client.get("/v1/extractions?status=in_progress").json()["data"]
            shoot(browser, f"{server.url}/ui/jobs/{job['id']}", images / "page-job.png", (1280, 1250))


if __name__ == "__main__":
    main()
