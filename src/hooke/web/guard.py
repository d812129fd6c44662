"""The laws of the server, as one piece of ASGI middleware: whom it answers, and what a page may load.

A page of another site can make a browser send requests to a local server. So: the Host header must name this machine
(which stops DNS rebinding), requests that a foreign page started are refused, and requests that run the model carry a
secret that only our own page knows.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY = 1_000_000
CSP = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """Refuse what the laws forbid, and put the security headers on every answer.

    Args:
        app: the application behind it.
        token: the secret for requests that change something or run the model.
        port: the port in the Host header; `None` takes any.
        allow_remote: also answer to other host names. Whoever reaches the port can then read everything and run the
            model.
    """

    def __init__(self, app: Any, *, token: str, port: int | None = None, allow_remote: bool = False) -> None:
        self.app, self.token, self.port, self.allow_remote = app, token, port, allow_remote

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # there are none here, and their origin is not checked by browsers
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self.refusal(scope["method"], headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)

    def refusal(self, method: str, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        """Status and reason for a request that must not pass, or None."""
        host = headers.get("host", "")
        if not self.allow_remote and not self._is_local(host):
            return 403, f"Host {host!r} is not this server; open it as http://127.0.0.1:{self.port or 'PORT'}"
        foreign = headers.get("sec-fetch-site") in (
            "cross-site",
            "same-site",
        )  # same-site: another port of this machine
        if foreign and headers.get("sec-fetch-mode") != "navigate":
            return 403, "requests that another site started are refused"
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return 403, f"Origin {origin!r} is not this server"
        if not secrets.compare_digest(headers.get("x-hooke-token", "").encode(), self.token.encode()):
            return 403, "the header X-Hooke-Token is missing or wrong; reload the page"
        length = headers.get("content-length", "")
        if not length.isdigit() or "transfer-encoding" in headers:  # a chunked body could be longer than it says
            return 411, "the header Content-Length is missing"
        if int(length) > MAX_BODY:
            return 413, f"the body has {length} bytes; at most {MAX_BODY} are read"
        return None

    def _is_local(self, host: str) -> bool:
        name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not colon:
            name, port = host, "80"
        return name.lower() in LOOPBACK and (self.port is None or port == str(self.port))


async def _answer(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
