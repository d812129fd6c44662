"""The local page and its HTTP API: `Session` says what to show, `serve` shows it."""

from hooke.web.app import create_app
from hooke.web.server import running, serve
from hooke.web.session import Session

__all__ = ["Session", "create_app", "running", "serve"]
