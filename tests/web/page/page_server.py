"""A small server for the page's tests: the built page, made-up payloads, and a strict content security policy."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import page_payloads
from pydantic import BaseModel

from hooke.web import schemas

ROOT = Path(__file__).parents[3]
STATIC = ROOT / "src/hooke/web/static"
SCREENS = ROOT / "test-output/screens"
TOKEN = "token-of-this-test"
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html; charset=utf-8", ".json": "application/json"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)


def saved_page(payload: schemas.SavedPage) -> str:
    """A feature page as one file, the way the server saves it: script, style and data inlined."""
    data = payload.model_dump_json().replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{(STATIC / "app.css").read_text()}</style></head><body><div id="app"></div>'
        f'<script type="application/json" id="hooke-payload">{data}</script>'
        f'<script type="module">{(STATIC / "app.js").read_text()}</script></body></html>'
    )


class Handler(BaseHTTPRequestHandler):
    """Answers the calls of the API by pattern; remembers each request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def reply(self, body: BaseModel | dict | bytes, kind: str = ".json", status: int = 200) -> None:
        """Send one answer with the security policy of the real server."""
        if isinstance(body, BaseModel):
            body = body.model_dump_json().encode()
        elif isinstance(body, dict):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": KINDS[kind],
            "Content-Length": str(len(body)),
            "Content-Security-Policy": POLICY,
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """The page, its files, and the reading half of the API."""
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.server.seen.append(self.path)
        if url.path.startswith("/static/"):
            file = STATIC / Path(url.path).name
            self.reply(file.read_bytes(), file.suffix)
        elif not url.path.startswith("/api/"):
            page = (STATIC / "index.html").read_text()
            page = page.replace('name="hooke-token" content=""', f'name="hooke-token" content="{TOKEN}"')
            self.reply(page.encode(), ".html")
        else:
            self.api(url.path, query)

    def api(self, path: str, query: dict[str, str]) -> None:
        """The reading half of the API."""
        latent = re.fullmatch(r"/api/latents/(\d+)(/export)?", path)
        if path == "/api/overview":
            self.reply(page_payloads.overview())
        elif path == "/api/latents":
            total = self.server.total if not query.get("query") else 1
            self.reply(page_payloads.latents(total, int(query["offset"]), int(query["limit"])))
        elif latent and int(latent[1]) < page_payloads.N_LATENTS:
            detail = page_payloads.detail(int(latent[1]))
            if latent[2]:
                page = saved_page(schemas.SavedPage(overview=page_payloads.overview(), latent=detail))
                self.reply(page.encode(), ".html")
            else:
                self.reply(detail)
        elif path == "/api/search/token":
            self.reply(page_payloads.token_search(unquote(query["text"])))
        elif path == "/api/search/text":
            self.reply(page_payloads.text_search(unquote(query["q"])))
        else:
            self.reply({"error": "latent does not exist; the dictionary has latents 0 to 4095"}, status=404)

    def do_POST(self) -> None:
        """The calls that make the model run; they need the token."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(self.path)
        if self.headers.get("X-Hooke-Token") != TOKEN:
            self.reply({"error": "the token is missing"}, status=403)
        elif self.path == "/api/try":
            self.reply(page_payloads.try_reply(schemas.TryRequest(**body)))
        elif body["seed"] == 13:
            self.reply({"error": "the model is busy, try again in a moment"}, status=409)
        else:
            self.reply(page_payloads.steer_reply(schemas.SteerRequest(**body)))


class PageServer(ThreadingHTTPServer):
    """The server on a free loopback port, as a context manager."""

    daemon_threads = True
    total = 100_000

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> PageServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
