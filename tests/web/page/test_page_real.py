"""The page on the real server: with the tiny model, and with what a small demo makes of the built-in model."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from page_server import SCREENS

import hooke
from hooke.cli.main import main
from hooke.features.index import LatentIndex
from hooke.web import Session, running

pytestmark = pytest.mark.browser

SHORT = "text=def+f&prompt=def&tokens=4"  # the tiny model takes 64 tokens


@pytest.fixture(scope="module")
def real(built_page, session):
    """The real application on a free loopback port."""
    with running(session) as address:
        yield address.rstrip("/")


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
    saved.get_by_test_id("example").first.wait_for()


@pytest.fixture(scope="module")
def demo(built_page, tmp_path_factory):
    """The address and the most interesting latent of a demo that takes some ten seconds."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    sizes = [
        "--n-tokens",
        "150000",
        "--n-latents",
        "1024",
        "--k",
        "24",
        "--score-tokens",
        "4096",
        "--index-tokens",
        "60000",
    ]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(["demo", "--no-serve", "--json", "--run", str(run), *sizes]) == 0
    model, dictionary = hooke.load("hooke/stdlib"), hooke.Dictionary.load(run / "dictionary")
    index = LatentIndex.open(run / "index", model)
    scores = json.loads((run / "scores.json").read_text())
    shown = Session(
        model, dictionary, index, evaluation=scores, run_path="runs/demo", dictionary_path=run / "dictionary"
    )
    with running(shown) as address:
        yield address.rstrip("/"), int(shown.interest.argmax())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pictures_of_a_demo(visits, demo, width, scheme):
    address, latent = demo
    views = {"overview": "/", "feature": f"/latent/{latent}"}
    if scheme == "light":
        views |= {"feature-try": f"/latent/{latent}?tab=try", "feature-steer": f"/latent/{latent}?tab=steer"}
    for view, path in views.items():
        page = visits.open(path, width=width, scheme=scheme, address=address)
        if "steer" in view:
            page.get_by_test_id("continuation-random").wait_for()
        if "try" in view:  # it begins with a text on which this latent fires
            page.locator('[data-strip="try"] .tok.hot').first.wait_for()
        assert page.get_by_role("alert").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SCREENS / f"demo-{view}-{width}{'-dark' * (scheme == 'dark')}.png", full_page=True)


def test_shares_are_percentages_and_rounding_noise_is_zero(visits, demo):
    page = visits.open("/?scores=all", address=demo[0])
    dead = page.get_by_test_id("score-dead_share").locator("td").all_inner_texts()
    assert dead[0].endswith(" %") and "100 %" in dead
    table = page.get_by_test_id("scores").inner_text()
    assert "e−" not in table and "e-" not in table


def test_a_search_without_a_token_offers_the_text(visits, demo):
    visits.allowed = ("422",)
    page = visits.open("/search?q=selfx", address=demo[0])
    page.get_by_text("No token reads 'selfx'; the tokenizer cuts it into").wait_for()
    assert page.get_by_role("alert").count() == 0
    page.get_by_role("button", name="Search the text instead").click()
    page.get_by_role("heading", name="Passages by text").wait_for()
