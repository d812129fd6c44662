from __future__ import annotations

import socket
import threading

import httpx
import pytest

from hooke.base.errors import ConfigError
from hooke.web import server


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]


def test_a_taken_port_is_named_with_the_next_free_one(taken):
    with pytest.raises(ConfigError, match=rf"port {taken} is in use") as caught:
        server.listen("127.0.0.1", taken)
    free = int(str(caught.value).rsplit("--port ", 1)[1])
    assert free > taken
    server.listen("127.0.0.1", free).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_only_loopback_unless_asked(host):
    with pytest.raises(ConfigError, match="--allow-remote"):
        server.listen(host, 0)


def test_all_interfaces_when_asked():
    with server.listen("0.0.0.0", 0, allow_remote=True) as listener:
        assert server.address(listener).startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_names(host):
    server.listen(host, 0).close()
    assert server.is_loopback("::1") and not server.is_loopback("localhost.example.org")


def test_running_answers_and_stops(session):
    with server.running(session) as url:
        assert httpx.get(f"{url}api/overview").status_code == 200
        assert httpx.get(f"{url}api/overview", headers={"Host": "evil.example"}).status_code == 403
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}api/overview")


def test_serve_announces_its_address_and_opens_the_browser(session, monkeypatch):
    opened, ready = [], threading.Event()
    made = []
    real = server._server
    monkeypatch.setattr(server, "_server", lambda *a: made.append(real(*a)) or made[0])
    monkeypatch.setattr(server.webbrowser, "open", lambda url: (opened.append(url), ready.set()))
    addresses = []
    thread = threading.Thread(
        target=server.serve, args=(session,), kwargs={"port": 0, "open_browser": True, "on_ready": addresses.append}
    )
    thread.start()
    assert ready.wait(60)
    assert httpx.get(addresses[0]).status_code in (200, 503) and opened == addresses
    made[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()
