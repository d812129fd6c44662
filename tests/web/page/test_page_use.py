"""What a reader does: keys, pointer, search, typing, steering; and the address that keeps all of it."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import page_payloads
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def query(page) -> dict[str, str]:
    """The address as the page has it now; Playwright's page.url follows a moment later."""
    search = page.evaluate("location.search.slice(1)")
    return {key: values[0] for key, values in parse_qs(search).items()}


def path(page) -> str:
    return page.evaluate("location.pathname")


def test_arrow_keys_step_through_latents_but_not_while_typing(visits):
    page = visits.open("/latent/0")
    page.get_by_role("heading", name="Latent 0").wait_for()
    page.keyboard.press("ArrowLeft")  # the first one has no neighbour on the left
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Latent 1", exact=True).wait_for()
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Latent 2", exact=True).wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name="Latent 1", exact=True).wait_for()
    page.get_by_label("Go to latent").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.type("42")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Latent 42", exact=True).wait_for()
    assert path(page) == "/latent/42"
    page.go_back()
    page.get_by_role("heading", name="Latent 1", exact=True).wait_for()


def test_hover_shows_values_click_locks_and_esc_unlocks(visits):
    page = visits.open("/latent/137?breaks=0")
    strip = page.locator('[data-strip="0.1"]')
    focus = strip.locator(".focus")
    focus.hover()
    tip = page.get_by_role("tooltip")
    expect(tip).to_contain_text("11.683")
    text = tip.inner_text()
    assert '" self"' in text and "11.683" in text and "99.6 % of max" in text and re.search(r"token id\s+\d+", text)
    assert re.search(r"position\s+\d+", text) and "Locked" not in text
    page.mouse.move(5, 300)
    tip.wait_for(state="detached")
    focus.click()
    page.mouse.move(5, 300)
    expect(tip).to_contain_text("Locked")
    expect(tip).to_contain_text("11.683")
    lock = query(page)["lock"]
    assert lock.startswith("0.1.")
    strip.locator(".tok").first.hover()  # hovering previews another token; the lock stays
    expect(tip).not_to_contain_text("11.683")
    page.mouse.move(5, 300)
    expect(tip).to_contain_text("11.683")
    page.reload()
    expect(tip).to_contain_text("11.683")
    assert query(page)["lock"] == lock
    page.keyboard.press("Escape")
    tip.wait_for(state="detached")
    expect(page.locator(".tok.locked")).to_have_count(0)
    assert "lock" not in query(page)


def test_the_tooltip_stays_inside_of_the_window(visits):
    page = visits.open("/latent/137", width=390)
    last = page.locator(".strip").last.locator(".tok").last
    last.scroll_into_view_if_needed()
    last.click()
    visits.settle(page)  # it is placed when it has been drawn
    box = page.get_by_role("tooltip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] >= 0 and box["y"] + box["height"] <= 844


def test_a_table_of_100_000_latents_holds_few_rows(visits, stub):
    page = visits.open("/")
    expect(page.get_by_test_id("total")).to_have_text("100,000 latents")
    page.get_by_label("Latent 3", exact=True).wait_for()
    rows = page.locator("a.lt-row")
    assert 10 < rows.count() < 60
    before = len(stub.seen)
    body = page.get_by_test_id("latent-rows")
    for share in (0.1, 0.35, 0.6, 0.8, 1.0):
        body.evaluate("(element, share) => { element.scrollTop = share * element.scrollHeight; }", share)
    page.get_by_label("Latent 99999").wait_for()
    visits.settle(page)
    assert rows.count() < 60 and page.locator(".lt-line").count() < 60
    asked = [seen for seen in stub.seen[before:] if seen.startswith("/api/latents?")]
    assert len(asked) <= 12  # two pages for each place, not the 500 pages between them
    assert any("offset=99800" in seen for seen in asked)
    visits.allowed = ("404",)  # this dictionary of 100,000 is the table's only
    page.get_by_label("Latent 99999").click()
    page.get_by_role("alert").wait_for()
    assert path(page) == "/latent/99999"


def test_sorting_and_searching_are_in_the_address_and_survive_a_reload(visits, stub):
    page = visits.open("/")
    page.get_by_role("button", name="Density", exact=True).first.click()
    page.get_by_role("columnheader", name="Density").get_by_role("button").click()
    visits.until(page, query, {"sort": "density", "order": "asc"})
    expect(page.locator('[aria-sort="ascending"]')).to_contain_text("Density")
    page.keyboard.press("/")
    page.keyboard.type(" self")
    page.get_by_label("Alive only").uncheck()
    wanted = {"sort": "density", "order": "asc", "query": " self", "alive": "0"}
    visits.until(page, query, wanted)  # the table shows a first answer while one types
    visits.settle(page)
    expect(page.get_by_test_id("total")).to_have_text("1 latents")
    last = [seen for seen in stub.seen if seen.startswith("/api/latents?")][-1]
    assert parse_qs(urlsplit(last).query, keep_blank_values=True) == {
        **{key: [value] for key, value in wanted.items()},
        "offset": ["0"],
        "limit": ["200"],
    }
    page.reload()
    expect(page.get_by_test_id("total")).to_have_text("1 latents")
    assert query(page) == wanted and page.get_by_label("Search latents").input_value() == " self"
    assert not page.get_by_label("Alive only").is_checked()


TYPE_ON = """(box, wait) => new Promise((done) => {
    const put = (text) => { box.value = text; box.dispatchEvent(new Event("input", { bubbles: true })); };
    put("se");
    setTimeout(() => { put("self"); setTimeout(() => done(box.value), 100); }, wait);  // "se" has just been searched
})"""


@pytest.mark.parametrize(
    ("view", "label", "key", "wait"), [("/", "latents", "query", 200), ("/search", "the index", "q", 250)]
)
def test_letters_typed_while_the_search_begins_are_kept(visits, view, label, key, wait):
    page = visits.open(view)
    assert page.get_by_label(f"Search {label}").evaluate(TYPE_ON, wait) == "self"
    visits.until(page, query, {key: "self"})


def test_own_text_is_coloured_live_and_shows_latents_per_token(visits):
    page = visits.open("/try")
    page.get_by_label("Your text").fill("return self.area")
    strip = page.locator('[data-strip="try"]')
    expect(strip.locator(".tok")).to_have_count(5)  # with <|bos|>
    assert query(page) == {"text": "return self.area"}
    page.get_by_role("button", name="#137").click()
    page.get_by_text("Coloured by latent 137").wait_for()
    expect(strip.locator(".on")).to_have_count(2)
    token = strip.locator(".tok", has_text="self")
    token.hover()
    page.get_by_text("Latents on this token").wait_for()
    expect(page.get_by_test_id("try-latents")).to_contain_text("7.90")
    expect(page.get_by_role("tooltip")).to_contain_text("7.900")
    token.click()
    page.mouse.move(5, 300)
    page.get_by_text("Latents on this token").wait_for()
    visits.until(page, query, {"text": "return self.area", "latent": "137", "lock": "try.2"})
    assert strip.locator(".special").inner_text() == "<|bos|>"
    page.get_by_label("Your text").fill("")
    page.get_by_text("Type some text").wait_for()


def test_steering_shows_three_continuations_and_where_they_part(visits, stub):
    page = visits.open("/latent/137?tab=steer")
    steered = page.get_by_test_id("continuation-steered")
    expect(steered).to_contain_text("differs from the first token")
    expect(page.get_by_test_id("continuation-random")).to_contain_text("differs after 5 tokens")
    assert "return self.width * self.height" in page.get_by_test_id("continuation-default").inner_text()
    assert re.search(r"23\.46.*0\.75×", page.get_by_test_id("strength").inner_text())
    slider = page.get_by_label("Strength")
    slider.focus()
    page.keyboard.press("ArrowRight")  # the slider's own key: the latent must not change
    page.get_by_text("2.25× max", exact=True).first.wait_for()
    visits.until(page, lambda page: (path(page), query(page)["scale"]), ("/latent/137", "2.25"))
    slider.fill("0")
    page.get_by_text("At 0 nothing is added").wait_for()
    expect(steered).to_contain_text("same as default")
    page.get_by_label("Tokens").fill("3")
    page.get_by_text("3 tokens").first.wait_for()
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Prompt").fill("def f():")
    wanted = {"tab": "steer", "scale": "0", "tokens": "3", "seed": "7", "prompt": "def f():"}
    visits.until(page, query, wanted)
    page.reload()
    expect(page.get_by_label("Prompt")).to_have_value("def f():")
    expect(page.get_by_label("Seed")).to_have_value("7")
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Latent 138").wait_for()
    assert query(page) == wanted  # the next latent is tried with the same settings


def test_each_panel_shows_its_code_and_copies_it(visits):
    page = visits.open("/latent/137")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panels = page.locator("section.card")
    assert panels.count() == page.get_by_role("button", name="Show code").count() == 4
    page.get_by_role("button", name="Show code: What it fires on").click()
    code = page.get_by_test_id("code")
    expect(code).to_contain_text("index.top(137, n=20)")
    code.get_by_role("button").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("index = hooke.LatentIndex.open(")
    page.get_by_role("button", name="Show code: What it fires on").click()
    expect(code).to_have_count(0)


def test_groups_and_line_breaks_are_in_the_address(visits):
    page = visits.open("/latent/137?group=quantile+3+of+4&breaks=0")
    assert page.locator(".group").count() == 1 and page.locator(".strip br").count() == 0
    assert "50–75 %" in page.locator(".group").inner_text()
    page.get_by_label("Line breaks").check()
    page.locator(".strip br").first.wait_for(state="attached")
    page.get_by_role("button", name="All", exact=True).click()
    expect(page.locator(".group")).to_have_count(5)
    assert query(page) == {}


def test_the_theme_can_be_chosen_and_is_remembered(visits):
    page = visits.open("/")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Colours: as the system").click()
    page.get_by_role("button", name="Colours: light").click()
    page.get_by_role("button", name="Colours: dark").wait_for()
    assert page.evaluate(background) != light
    page.reload()
    page.get_by_role("button", name="Colours: dark").wait_for()
    assert page.evaluate(background) != light


def test_a_histogram_answers_the_pointer(visits):
    page = visits.open("/latent/137")
    plot = page.get_by_test_id("activations").locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    tip = plot.locator("[aria-label=tip] text")
    tip.wait_for()
    assert re.search(r"[\d.]+ to [\d.]+", tip.text_content())


def test_many_scores_are_folded_behind_a_button(visits):
    page = visits.open("/")
    page.route("**/api/overview", many_scores)
    page.reload()
    rows = page.locator("table.scores tbody tr")
    expect(rows).to_have_count(6)
    page.get_by_role("button", name="Show all 16 scores").click()
    expect(rows).to_have_count(16)
    assert query(page) == {"scores": "all"}


def many_scores(route) -> None:
    body = page_payloads.overview()
    more = [page_payloads.score(f"more_{i}", f"Another score {i}", 0.1 * i, 0.01, None) for i in range(10)]
    route.fulfill(json=body.model_copy(update={"scores": [*body.scores, *more]}).model_dump())


def test_the_neighbours_are_there_before_the_key(visits, stub):
    begin = len(stub.seen)
    page = visits.open("/latent/50")
    page.get_by_role("heading", name="Latent 50", exact=True).wait_for()
    visits.until(page, lambda _: "/api/latents/51" in stub.seen[begin:], True)  # asked for by itself
    before = len(stub.seen)
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Latent 51", exact=True).wait_for()
    assert "/api/latents/51" not in stub.seen[before:]


def test_slash_goes_to_the_jump_box_where_a_view_has_no_search(visits):
    page = visits.open("/latent/137")
    page.keyboard.press("/")
    page.keyboard.type("99999")
    page.keyboard.press("Enter")
    box = page.get_by_label("Go to latent")
    visits.until(
        page,
        lambda _: "There is no latent 99999" in box.evaluate("element => element.validationMessage"),
        True,
    )
    box.fill("12")
    box.press("Enter")
    page.get_by_role("heading", name="Latent 12", exact=True).wait_for()


def test_nonsense_in_the_address_is_said_or_ignored(visits):
    page = visits.open("/?sort=fame&order=up")
    page.get_by_label("Latent 3", exact=True).wait_for()
    assert page.get_by_role("alert").count() == 0
    page = visits.open("/steer?latent=99999")
    assert "There is no latent 99999" in page.get_by_role("alert").inner_text()
    visits.allowed = ("404",)
    page = visits.open("/latent/99999")
    page.get_by_role("heading", name="Latent 99999").wait_for()
    page.get_by_role("link", name="All latents").click()
    visits.until(page, path, "/")
