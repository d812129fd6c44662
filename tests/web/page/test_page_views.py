"""Every view in a real browser: it renders, says its numbers, fits its window, and shows hostile tokens as text."""

from __future__ import annotations

import pytest
from page_payloads import BIDI, HOSTILE
from page_server import SCREENS
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

VIEWS = {
    "overview": ("/", "Fraction of variance unexplained"),
    "feature": ("/latent/137", "What it fires on"),
    "dead": ("/latent/9", "fired on none of the 1,000,000 tokens"),
    "try": ("/try?latent=137", "Coloured by latent 137"),
    "feature-try": ("/latent/137?tab=try", "Your own text"),
    "steer": ("/steer?latent=137", "Random direction"),
    "feature-steer": ("/latent/137?tab=steer", "control, same length"),
    "search": ("/search?q=self", "occurs 18,234 times"),
    "search-text": ("/search?q=self&by=text", "the search stopped at its limit"),
}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_renders_and_fits_its_window(visits, view, width):
    path, text = VIEWS[view]
    page = visits.open(path, width=width)
    page.get_by_text(text).first.wait_for()
    assert page.get_by_role("alert").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter((element) => {
            const box = element.getBoundingClientRect();
            const scrolls = element.closest(".code pre, .lt-body, .plot, .chip, .logits li, .example-source");
            return box.width > 0 && !scrolls && (box.right > innerWidth + 1 || box.left < -1);
        }).map((element) => element.className + " " + element.textContent.slice(0, 40))"""
    )
    assert outside == []
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENS / f"{view}-{width}.png", full_page=True)


@pytest.mark.parametrize("view", ["overview", "feature", "steer"])
def test_dark_is_dark_and_readable(visits, view):
    page = visits.open(VIEWS[view][0], scheme="dark")
    page.get_by_text(VIEWS[view][1]).first.wait_for()
    page.screenshot(path=SCREENS / f"{view}-1280-dark.png", full_page=True)
    lightness = """(name) => {
        const [r, g, b] = getComputedStyle(document.body)[name].match(/\\d+/g).map(Number);
        return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
    }"""
    assert page.evaluate(lightness, "backgroundColor") < 0.15
    assert page.evaluate(lightness, "color") > 0.8


def test_the_overview_shows_each_score_beside_its_controls(visits):
    page = visits.open("/")
    fvu = page.get_by_test_id("score-fvu").inner_text()
    for part in ("0.182", "0.179 – 0.185", "lower is better", "0.710", "0.340", "1.00", "65,536"):
        assert part in fvu
    undefined = page.get_by_test_id("score-kl_score").inner_text()
    assert "—" in undefined and "without the KL pass" in undefined and "0.0" not in undefined
    beaten = page.get_by_test_id("score-dead_share").locator(".beaten")
    assert beaten.inner_text() == "0 %" and page.get_by_test_id("score-fvu").locator(".beaten").count() == 0
    assert "586 dead (14.3 %)" in page.get_by_test_id("density").inner_text()
    page.get_by_test_id("density").locator("rect").nth(19).wait_for(state="attached")
    for fact in ("hooke/stdlib", "resid_post.2", "BatchTopK", "4,096", "1,000,000 tokens"):
        assert fact in page.get_by_test_id("facts").inner_text()


def test_the_latent_page_shows_numbers_logits_groups_and_relatives(visits):
    page = visits.open("/latent/137")
    facts = page.get_by_test_id("facts").inner_text()
    for part in ("0.21 %", "1 in 469 tokens", "11.7", "2.37", "2,130"):
        assert part in facts
    logits = page.get_by_test_id("logits")
    assert logits.locator(".raised li").count() == 10 and logits.locator(".lowered li").count() == 10
    assert "−1.62" in logits.inner_text()
    assert page.locator(".group").count() == 5
    assert page.get_by_test_id("similar").get_by_role("link").count() == 8
    page.get_by_role("button", name="Show 15 more").click()
    expect(page.get_by_test_id("group-top").get_by_test_id("example")).to_have_count(20)
    expect(page).to_have_title("Latent 137 · demo · hooke")


@pytest.mark.parametrize("path", ["/", "/latent/137", "/steer?latent=137", "/search?q=self&by=text", "/try"])
def test_hostile_tokens_are_text(visits, path):
    page = visits.open(path if path != "/try" else "/try?text=" + HOSTILE.replace("=", "%3D"))
    page.get_by_text(HOSTILE).first.wait_for(state="attached")
    assert page.evaluate("window.pwned") is None
    assert page.locator("#app script, #app iframe, #app img").count() == 0
    assert BIDI[0] not in page.locator("#app").inner_text()


def test_invisible_characters_get_signs(visits):
    page = visits.open("/latent/137?group=top")
    strip = page.locator('[data-strip="0.6"]')
    page.get_by_role("button", name="Strongest").click()
    visits.settle(page)
    text = strip.inner_text()
    assert "⟨202E⟩evil" in text and "→" in text and "↵" in text and "····" in text


def test_errors_of_the_server_are_shown_with_their_reason(visits):
    visits.allowed = ("404", "409")
    page = visits.open("/latent/99999")
    assert "the dictionary has latents 0 to 4095" in page.get_by_role("alert").inner_text()
    page = visits.open("/steer?latent=137&seed=13")
    assert "The model is busy" in page.get_by_role("alert").inner_text()
    page.get_by_label("Seed").fill("0")
    page.get_by_test_id("continuation-steered").wait_for()
    expect(page.get_by_role("alert")).to_have_count(0)
    page = visits.open("/nowhere")
    assert "There is no view at /nowhere" in page.get_by_role("alert").inner_text()


def test_a_saved_page_works_without_a_server(visits, stub, tmp_path):
    page = visits.open("/latent/137")
    with page.expect_download() as download:
        page.get_by_role("link", name="Save as HTML").click()
    assert download.value.suggested_filename == "latent-137.html"
    file = tmp_path / "latent-137.html"
    download.value.save_as(file)
    before = len(stub.seen)
    saved = visits.open(str(file), address="file://")
    saved.get_by_text("What it fires on").wait_for()
    assert "Saved page" in saved.locator("header.shell").inner_text()
    assert saved.get_by_role("button", name="Steer").count() == 0
    assert saved.get_by_test_id("similar").get_by_role("link").count() == 0
    saved.locator('[data-strip="0.0"] .tok').nth(3).click()
    assert "token id" in saved.get_by_role("tooltip").inner_text()
    saved.get_by_role("button", name="Strongest").click()
    expect(saved.locator(".group")).to_have_count(1)
    assert saved.evaluate("window.pwned") is None and len(stub.seen) == before
