"""The page as served and as saved, with a page made here in the place of the compiled one."""

from __future__ import annotations

import json
import re

import pytest

from hooke.web import page

SCRIPT = "const evil = '</script><!-- </SCRIPT>'; fetch('/api')"


@pytest.fixture
def built(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text(
        '<!doctype html><html><head><meta name="hooke-token" content="" />'
        '<script type="module" crossorigin src="/static/app.js"></script>'
        '<link rel="stylesheet" crossorigin href="/static/app.css"></head><body><div id="app"></div></body></html>'
    )
    (tmp_path / "app.js").write_text(SCRIPT)
    (tmp_path / "app.css").write_text("p { content: '</style>' }")
    monkeypatch.setattr(page, "STATIC", tmp_path)
    return tmp_path


def test_the_page_carries_the_token(built, client, session):
    answer = client.get("/")
    assert answer.status_code == 200 and f'<meta name="hooke-token" content="{session.token}" />' in answer.text
    assert client.get("/latent/3?tab=try").text == answer.text
    assert client.get("/index.html").text == answer.text


def test_files_of_the_page_have_their_types(built, client):
    assert client.get("/static/app.js").text == SCRIPT
    assert client.get("/static/app.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/static/app.css").headers["content-type"].startswith("text/css")
    assert client.get("/static/none.js").status_code == 404


def test_nothing_outside_the_folder_is_served(built, client):
    (built.parent / "secret.txt").write_text("do not serve")
    for path in ("/static/../secret.txt", "/static/%2e%2e/secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt"):
        assert "do not serve" not in client.get(path).text
    assert page.static_file("static/../../secret.txt") is None
    assert page.static_file("static//" + str(built.parent / "secret.txt")) is None


def test_a_saved_page_is_whole_inert_and_without_the_token(built, client, session):
    latent = int(session.index.n_firing.argmax())
    answer = client.get(f"/api/latents/{latent}/export")
    assert answer.status_code == 200 and f"latent-{latent}.html" in answer.headers["content-disposition"]
    text = answer.text
    assert session.token not in text and "src=" not in text and "href=" not in text
    scripts = re.findall(r"<script\b[^>]*>(.*?)</script>", text, re.S)
    assert len(scripts) == 2
    payload = json.loads(scripts[1])
    assert payload["latent"] == client.get(f"/api/latents/{latent}").json()
    assert payload["overview"] == client.get("/api/overview").json()
    assert scripts[0].replace("<\\/", "</").replace("\\x3C!--", "<!--") == SCRIPT
    assert text.count("</style>") == 1 and "connect-src" not in text and "default-src 'none'" in text


def test_tokens_of_the_corpus_cannot_break_out(built, client, session):
    """The corpus has <script>alert('x')</script>; in the saved data no < is left."""
    index = session.index
    at = int((index.doc == 1).argmax()) + 3
    latent = int(index.active(at).at[0])
    text = client.get(f"/api/latents/{latent}/export").text
    data = re.search(r'id="hooke-payload">(.*?)</script>', text, re.S).group(1)
    assert "<" not in data and json.loads(data)["latent"]["index"] == latent
    raw = client.get("/api/search/text", params={"q": "<script>"})
    assert raw.headers["content-type"] == "application/json"


def test_without_a_compiled_page_a_note_says_how_to_build_it(tmp_path, monkeypatch, client):
    monkeypatch.setattr(page, "STATIC", tmp_path)
    answer = client.get("/")
    assert answer.status_code == 503 and "make install" in answer.text
    refused = client.get("/api/latents/0/export")
    assert refused.status_code == 409 and "not built" in refused.json()["error"]


def test_a_page_with_a_missing_part_is_not_saved(built, client):
    (built / "app.js").unlink()
    refused = client.get("/api/latents/0/export")
    assert refused.status_code == 409 and "app.js" in refused.json()["error"]


@pytest.mark.parametrize("path", ["/static/%00", "/static/" + "a" * 5000, "/static/.built-from", "/.built-from"])
def test_names_that_no_file_of_the_page_has(built, client, path):
    (built / ".built-from").write_text("a fingerprint")
    answer = client.get(path)
    assert answer.status_code in (200, 404) and "a fingerprint" not in answer.text
    assert path == "/.built-from" or answer.status_code == 404
