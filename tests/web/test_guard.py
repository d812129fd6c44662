"""The laws of the server, each with the request that breaks it and the one that does not."""

from __future__ import annotations

import pytest

TRY = {"text": "x = 1", "top": 2}


@pytest.mark.parametrize("host", ["127.0.0.1:7333", "localhost:7333", "[::1]:7333", "LOCALHOST:7333"])
def test_this_machine_is_answered(client, host):
    assert client.get("/api/overview", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7333", "127.0.0.1", "127.0.0.1:80", "127.0.0.1.evil.example:7333", "", "[::1]"],
)
@pytest.mark.parametrize("path", ["/", "/api/overview", "/static/app.js", "/api/openapi.json"])
def test_other_hosts_are_refused(client, host, path):
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 403 and "Host" in answer.json()["error"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:7333", "http://127.0.0.1:7334"])
def test_foreign_origins_are_refused(post, origin):
    assert post("/api/try", TRY, Origin=origin).status_code == 403


@pytest.mark.parametrize("path", ["/api/try", "/api/steer", "/api/anything", "/"])
@pytest.mark.parametrize("token", [None, "", "wrong", "é"])
def test_a_post_needs_the_token(post, path, token):
    answer = post(path, TRY, **{"X-Hooke-Token": token.encode() if token else token})
    assert answer.status_code == 403 and "X-Hooke-Token" in answer.json()["error"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_every_other_method_needs_it_too(client, method):
    assert client.request(method, "/api/overview").status_code == 403


def test_with_all_of_it_the_model_runs(post):
    assert post("/api/try", TRY).status_code == 200
    assert post("/api/try", TRY, Origin=None).status_code == 200  # a program that is no browser sends no origin


def test_requests_started_by_another_site_are_refused_but_links_are_not(client):
    assert client.get("/api/overview", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code in (200, 503)


def test_large_bodies_are_refused_unread(client, session):
    headers = {"X-Hooke-Token": session.token, "Content-Length": "1000001"}
    assert client.post("/api/try", content=b"{}", headers=headers).status_code == 413


def test_every_answer_has_the_policy(client):
    for path in ("/", "/api/overview", "/api/nothing", "/static/nothing.js"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert "unsafe-eval" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    assert "content-security-policy" in client.get("/", headers={"Host": "evil.example"}).headers


def test_remote_hosts_only_when_asked(session):
    from starlette.testclient import TestClient

    from hooke.web.app import create_app

    with TestClient(create_app(session, allow_remote=True), base_url="http://lab.example:7333") as client:
        assert client.get("/api/overview").status_code == 200
        assert client.post("/api/try", json=TRY).status_code == 403  # the token is still needed


def test_websockets_are_closed(client):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/overview"):
        pass


def test_other_ports_of_this_machine_are_another_site(client):
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    other = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}
    assert client.get("/api/overview", headers=own).status_code == 200
    assert client.get("/api/overview", headers=other).status_code == 403
    assert client.get("/", headers={**other, "Sec-Fetch-Mode": "navigate"}).status_code in (200, 503)


def test_a_chunked_body_cannot_hide_its_length(client, session):
    headers = {"X-Hooke-Token": session.token, "Content-Length": "5", "Transfer-Encoding": "chunked"}
    assert client.post("/api/try", content=b"{}", headers=headers).status_code == 411
