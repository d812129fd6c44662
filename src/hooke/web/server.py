"""Listen: one process, loopback unless asked otherwise, a clear word where the port is taken."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hooke.base.errors import ConfigError, require_extra
from hooke.web.app import create_app
from hooke.web.session import Session

DEFAULT_PORT = 7333
_START_SECONDS = 60.0


def serve(
    session: Session,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    open_browser: bool = False,
    allow_remote: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a page until interrupted.

    Args:
        session: what the page shows.
        host: address to listen on; only loopback ones unless `allow_remote`.
        port: port to listen on; 0 takes any free one.
        open_browser: open the page in the default browser once the server answers.
        allow_remote: listen on other addresses and answer to any host name. There is no login: whoever reaches the port
            can read the corpus and run the model.
        on_ready: called with the address once the server answers.

    Raises:
        ConfigError: the port is taken (naming the next free one), or the address is not loopback.
        MissingExtraError: fastapi or uvicorn is not installed.
    """
    listener = listen(host, port, allow_remote=allow_remote)
    with listener:
        url = address(listener)
        server = _server(session, listener, allow_remote)

        def announce() -> None:
            if _wait(server) and not server.should_exit:
                if on_ready is not None:
                    on_ready(url)
                if open_browser:
                    webbrowser.open(url)

        threading.Thread(target=announce, daemon=True).start()
        server.run(sockets=[listener])


@contextmanager
def running(session: Session, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve a page from a thread while the block lasts; yields its address. For notebooks and tests."""
    with listen(host, port) as listener:
        server = _server(session, listener, allow_remote=False)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            if not _wait(server):
                raise ConfigError("the server did not start; see the terminal for its error")
            yield address(listener)
        finally:
            server.should_exit = True
            thread.join()


def listen(host: str, port: int, *, allow_remote: bool = False) -> socket.socket:
    """A socket bound to the address.

    Raises:
        ConfigError: the port is taken, naming the next free one; or the address is not loopback and that was not
            asked for.
    """
    if not allow_remote and not is_loopback(host):
        raise ConfigError(
            f"{host} is not a loopback address; use 127.0.0.1, or --allow-remote if others shall reach it"
        )
    try:
        return _bound(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        free = _next_free(host, port)
        hint = f"port {free} is free: use --port {free}" if free else "choose another with --port"
        raise ConfigError(f"port {port} is in use on {host}, perhaps by another hooke; {hint}") from error


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def address(listener: socket.socket) -> str:
    """The address of a bound socket as people type it."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{shown}:{port}/"


def _bound(host: str, port: int) -> socket.socket:
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _next_free(host: str, port: int) -> int | None:
    for candidate in range(port + 1, min(port + 100, 65_536)):
        try:
            _bound(host, candidate).close()
        except OSError:
            continue
        return candidate
    return None


def _server(session: Session, listener: socket.socket, allow_remote: bool) -> Any:
    uvicorn = require_extra("uvicorn", "web")
    app = create_app(session, port=listener.getsockname()[1], allow_remote=allow_remote)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none")
    return uvicorn.Server(config)


def _wait(server: Any) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    return server.started
