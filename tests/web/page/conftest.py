"""Chromium, the built page and a stub server; every visit fails on a console error or a request off loopback."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[3]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
HEIGHTS = {1280: 900, 390: 844}
LONGEST_MS = 60_000  # a limit for what hangs, not a wait: every wait is for a condition
# Resolves once the page has drawn twice and its own short timers (40 ms, for rows that scroll by) have run. That is
# counted in the page, not here, so it holds however late the machine lets the page have its turn.
TURNS = """() => new Promise((done) => {
    const frame = (next) => requestAnimationFrame(() => setTimeout(next));
    frame(() => frame(() => setTimeout(() => setTimeout(done), 60)));
})"""

sys.path.insert(0, str(Path(__file__).parent))


def load_hatch_build():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hatch_build():
    return load_hatch_build()


@pytest.fixture(scope="session")
def built_page(hatch_build) -> Path:
    """The folder of the page, built from the sources that are there now."""
    hatch_build.build_page(ROOT)
    return ROOT / hatch_build.OUTPUT


@pytest.fixture(scope="session")
def stub(built_page):
    from page_server import PageServer

    with PageServer() as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    """A browser per file: Playwright keeps an event loop while it lives, and other tests want their own."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=LONGEST_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visits:
    """Opens pages and remembers what went wrong in them."""

    browser: object
    address: str
    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    contexts: list = field(default_factory=list)
    allowed: tuple[str, ...] = ()
    pending: int = 0
    asked: int = 0

    def open(self, path: str, *, width: int = 1280, scheme: str = "light", address: str | None = None):
        context = self.browser.new_context(
            viewport={"width": width, "height": HEIGHTS[width]}, color_scheme=scheme, accept_downloads=True
        )
        context.set_default_timeout(LONGEST_MS)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: self.note(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.note(f"exception: {error}"))
        page.on("request", self.started)
        page.on("requestfinished", self.ended)
        page.on("requestfailed", self.ended)
        page.goto((self.address if address is None else address) + path)
        self.settle(page)
        return page

    def settle(self, page) -> None:
        """Wait for the view's heading or its refusal, then until the page had its turns and asked for nothing."""
        page.locator("main h1, main [role=alert]").first.wait_for()
        calm = 0
        while calm < 2:
            asked = self.asked
            page.evaluate(TURNS)
            calm = calm + 1 if self.pending <= 0 and self.asked == asked else 0

    def until(self, page, condition, wanted) -> None:
        """Wait until `condition(page)` is `wanted`; say what it was where that does not come."""
        deadline = time.monotonic() + LONGEST_MS / 1000
        while (found := condition(page)) != wanted and time.monotonic() < deadline:
            page.wait_for_timeout(20)
        assert found == wanted

    def started(self, request) -> None:
        url = urlsplit(request.url)
        self.hosts.add(url.hostname or url.scheme)
        self.pending += 1
        self.asked += 1

    def ended(self, _request) -> None:
        self.pending -= 1

    def note(self, text: str) -> None:
        if not any(part in text for part in self.allowed):
            self.problems.append(text)


@pytest.fixture
def visits(chromium, stub):
    visits = Visits(chromium, stub.address)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.problems == []
    assert visits.hosts <= {"127.0.0.1", "file", "data", "blob"}
