"""The page on the real server and the tiny model: what the two agreed on holds."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from hooke.web.app import create_app

pytestmark = pytest.mark.browser

SHORT = "text=def+f&prompt=def&tokens=4"  # the tiny model takes 64 tokens


@pytest.fixture(scope="module")
def real(built_page, session):
    """The real application on a free loopback port."""
    uvicorn = pytest.importorskip("uvicorn")
    config = uvicorn.Config(create_app(session), host="127.0.0.1", port=0, log_level="error", ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = contextlib.nullcontext
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_all_views_on_the_real_server(visits, real, session):
    latent = int(session.index.n_firing.argmax())
    page = visits.open("/", address=real)
    page.get_by_test_id("score-fvu").wait_for()
    page.get_by_label(f"Latent {latent}", exact=True).click()
    page.get_by_role("heading", name=f"Latent {latent}", exact=True).wait_for()
    page.get_by_test_id("group-top").wait_for()
    page = visits.open(f"/latent/{latent}?{SHORT}", address=real)
    page.get_by_role("button", name="Your text").click()
    page.locator('[data-strip="try"] .tok').first.wait_for()
    page.get_by_role("button", name="Steer").click()
    page.get_by_test_id("continuation-random").wait_for()
    assert page.get_by_role("alert").count() == 0
    for path in (f"/try?{SHORT}", f"/steer?{SHORT}", "/search"):
        other = visits.open(path, address=real)
        other.get_by_role("heading", level=1).wait_for()
        assert other.get_by_role("alert").count() == 0


def test_a_page_saved_by_the_real_server_opens_from_disk(visits, real, session, tmp_path):
    latent = int(session.index.n_firing.argmax())
    page = visits.open(f"/latent/{latent}", address=real)
    with page.expect_download() as download:
        page.get_by_role("link", name="Save as HTML").click()
    file = tmp_path / "saved.html"
    download.value.save_as(file)
    saved = visits.open(str(file), address="file://")
    saved.get_by_role("heading", name=f"Latent {latent}", exact=True).wait_for()
    assert saved.get_by_test_id("example").count() > 0
