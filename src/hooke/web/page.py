"""The compiled page: served with the token in it, or saved with its data as one HTML file that needs no server."""

from __future__ import annotations

import html
import re
from pathlib import Path

from hooke.base.errors import ConfigError
from hooke.web import schemas

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
_SAVED_CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
_TOKEN = re.compile(r'<meta\s+name="hooke-token"[^>]*>')
_SCRIPT = re.compile(r'<script\b[^>]*\bsrc="([^"]+)"[^>]*>\s*</script>')
_STYLE = re.compile(r'<link\b[^>]*\brel="stylesheet"[^>]*\bhref="([^"]+)"[^>]*>')
_NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>hooke</title>
<body style="font: 16px/1.5 system-ui; max-width: 40em; margin: 4em auto; padding: 0 1em">
<h1>The page is not built</h1>
<p>The server runs, but this copy of hooke has no compiled page. In a clone of the repository, run:</p>
<pre>make install</pre>
<p>and reload. A wheel of hooke contains the page already. <code>/api/overview</code> works without it.</p>
</body></html>
"""


def is_built() -> bool:
    """Whether the compiled page is there."""
    return (STATIC / "index.html").is_file()


def index_page(token: str) -> str:
    """The page as served, with the token for its requests; a note on how to build it where it is not built."""
    if not is_built():
        return _NOT_BUILT
    meta = f'<meta name="hooke-token" content="{html.escape(token)}" />'
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    if _TOKEN.search(text):
        return _TOKEN.sub(lambda _: meta, text, count=1)
    return text.replace("<head>", f"<head>{meta}", 1)


def static_file(path: str) -> Path | None:
    """The built file at a path of the address, if there is one inside the folder of the page."""
    root = STATIC.resolve()
    try:
        found = (root / path.removeprefix("static/")).resolve()
        known = found.suffix in TYPES and found.is_relative_to(root) and found.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a null character
        return None
    return found if known else None


def saved_page(payload: schemas.SavedPage) -> str:
    """One HTML file with scripts, styles and data inside. It asks nothing of any server, and its own policy forbids
    that.

    Raises:
        ConfigError: the page is not built.
    """
    if not is_built():
        raise ConfigError("the page is not built, so it cannot be saved; run `make install` in the repository")
    data = payload.model_dump_json().replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_SAVED_CSP}" />'
    text = _TOKEN.sub("", (STATIC / "index.html").read_text(encoding="utf-8"))
    text = _SCRIPT.sub(lambda m: f'<script type="module">{_script(_asset(m.group(1)))}</script>', text)
    text = _STYLE.sub(lambda m: "<style>" + _asset(m.group(1)).replace("</", "<\\/") + "</style>", text)
    text = text.replace("<head>", f"<head>{policy}", 1)
    return re.sub(
        r"<body[^>]*>",
        lambda m: f'{m.group()}<script type="application/json" id="hooke-payload">{data}</script>',
        text,
        count=1,
    )


def _asset(address: str) -> str:
    found = static_file(address.lstrip("./"))
    if found is None:
        raise ConfigError(f"the built page names {address}, which is not there; build it again in web/")
    return found.read_text(encoding="utf-8")


def _script(source: str) -> str:
    """Source that may stand between script tags: nothing in it can end the element or open a comment."""
    return re.sub(r"</(?=script)", r"<\\/", source, flags=re.IGNORECASE).replace("<!--", "\\x3C!--")
