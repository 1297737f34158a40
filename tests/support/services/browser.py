"""A headless Chromium of the system for the page's tests; they are skipped, with the reason, where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path() -> str:
    """The program; skips the test where it, or playwright, is not installed."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: run `make install`")
    for name in CANDIDATES:
        if (path := shutil.which(name)) is not None:
            return path
    pytest.skip("there is no Chromium: apt-get install --no-install-recommends chromium")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright."""
    from playwright.sync_api import sync_playwright

    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """A tab whose console errors, page errors, failed requests and calls to other hosts fail the test."""
    wrong: list[str] = []
    opened = browser.new_context(base_url=url, **context)
    tab = opened.new_page()
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    tab.on("request", lambda request: None if request.url.startswith((url, "data:")) else wrong.append(request.url))
    yield tab
    opened.close()
    assert wrong == []
