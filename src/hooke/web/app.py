"""The HTTP API: routes from addresses to bodies. All rules of access are in `guard.py`, all bodies in `schemas.py`."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from hooke.base.errors import ConfigError, HookeError, require_extra
from hooke.web import latents, live, lookup, page, schemas
from hooke.web.guard import Guard
from hooke.web.session import Session

MAX_WAITING = 32
_WATCH_SECONDS = 0.05
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem} for status in (403, 404, 409, 411, 413, 422, 503)
}
Reply = TypeVar("Reply")
Check = Callable[[], None]


class ModelQueue:
    """One model, one request at a time; the others wait in order."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def run(self, request: Any, work: Callable[[Check], Reply]) -> Reply:
        """Wait for the model, then work in a thread. A reader who goes away costs nothing more: what waits is
        dropped, and `work` is given a check to call now and then, which raises `Gone`.

        Raises:
            Busy: more than `MAX_WAITING` requests wait already.
            Gone: the reader left.
        """
        if self._waiting >= MAX_WAITING:
            raise Busy(f"{self._waiting} requests wait for the model already; try again in a moment")
        self._waiting += 1
        try:
            async with self._lock:
                if await request.is_disconnected():
                    raise Gone("the request was given up")
                gone = threading.Event()

                def check() -> None:
                    if gone.is_set():
                        raise Gone("the request was given up")

                watch = asyncio.create_task(_watch(request, gone))
                try:
                    return await asyncio.to_thread(work, check)
                finally:
                    watch.cancel()
        finally:
            self._waiting -= 1


async def _watch(request: Any, gone: threading.Event) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(_WATCH_SECONDS)
    gone.set()


class Busy(HookeError):
    """Too many requests wait for the model."""


class Gone(HookeError):
    """Nobody waits for the answer any more."""


def create_app(session: Session, *, port: int | None = None, allow_remote: bool = False) -> Any:
    """The server's application.

    Args:
        session: what it shows.
        port: the port that it will listen on, which Host headers must name; `None` takes any.
        allow_remote: also answer to other hosts than this machine.

    Returns:
        A `fastapi.FastAPI`; its OpenAPI description is at /api/openapi.json.

    Raises:
        MissingExtraError: fastapi is not installed.
    """
    fastapi = require_extra("fastapi", "web")
    app = fastapi.FastAPI(title="hooke", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    _problems(app)
    app.include_router(_reading(session))
    app.include_router(_running(session, ModelQueue()))
    app.include_router(_pages(session))
    app.add_middleware(Guard, token=session.token, port=port, allow_remote=allow_remote)
    return app


def _reading(session: Session) -> Any:
    """Routes that only read the index and the weights. FastAPI runs them in threads."""
    fastapi = require_extra("fastapi", "web")
    router = fastapi.APIRouter(prefix="/api", responses=_PROBLEMS)
    field = fastapi.Query

    def overview() -> schemas.Overview:
        return latents.overview(session)

    def table(
        sort: latents.Sort = "density",
        order: Literal["asc", "desc"] = "desc",
        offset: int = field(default=0, ge=0),
        limit: int = field(default=200, ge=1, le=1000),
        query: str = field(default="", max_length=200),
        alive: bool = True,
    ) -> schemas.LatentPage:
        return latents.page(session, sort=sort, order=order, offset=offset, limit=limit, query=query, alive=alive)

    def latent(
        index: int,
        groups: Literal["quantiles", "intervals"] = "quantiles",
        variant: Literal["raw", "centred"] = "raw",
    ) -> schemas.LatentDetail:
        _known(session, index)
        return latents.detail(session, index, groups=groups, variant=variant)

    def search_token(
        text: str = field(max_length=200), by: Literal["mean", "max", "share"] = "mean"
    ) -> schemas.TokenSearch:
        return lookup.by_token(session, text, by=by)

    def search_text(q: str = field(max_length=200), regex: bool = False) -> schemas.TextSearch:
        return lookup.by_text(session, q, regex=regex)

    router.get("/overview")(overview)
    router.get("/latents")(table)
    router.get("/latents/{index}")(latent)
    router.get("/search/token")(search_token)
    router.get("/search/text")(search_text)
    return router


def _running(session: Session, queue: ModelQueue) -> Any:
    """Routes that run the model, one at a time."""
    fastapi = require_extra("fastapi", "web")
    router = fastapi.APIRouter(prefix="/api", responses=_PROBLEMS)

    async def try_text(request, body: schemas.TryRequest) -> schemas.TryReply:
        return await queue.run(request, lambda _check: live.try_text(session, body))

    async def steer(request, body: schemas.SteerRequest) -> schemas.SteerReply:
        _known(session, body.latent)
        return await queue.run(request, lambda check: live.steer(session, body, check))

    for path, endpoint in (("/try", try_text), ("/steer", steer)):
        # fastapi is imported late, so the annotation is set here, on the function itself under any decorator
        inspect.unwrap(endpoint).__annotations__["request"] = fastapi.Request
        router.post(path)(endpoint)
    return router


def _pages(session: Session) -> Any:
    """The page itself, its files, and saved copies of it."""
    fastapi = require_extra("fastapi", "web")
    responses = require_extra("fastapi.responses", "web")
    router = fastapi.APIRouter()

    def export(index: int):
        _known(session, index)
        payload = schemas.SavedPage(overview=latents.overview(session), latent=latents.detail(session, index))
        disposition = {"content-disposition": f'attachment; filename="latent-{index}.html"'}
        return responses.HTMLResponse(page.saved_page(payload), headers=disposition)

    def anything(path: str):
        found = page.static_file(path) if path else None
        if found is not None and found.name != "index.html":
            return responses.FileResponse(found, media_type=page.TYPES.get(found.suffix, "application/octet-stream"))
        if path.startswith(("api/", "static/")):
            raise NotThere(f"there is nothing at /{path}")
        return responses.HTMLResponse(page.index_page(session.token), status_code=200 if page.is_built() else 503)

    export_options = {"response_class": responses.HTMLResponse, "responses": _PROBLEMS}
    router.get("/api/latents/{index}/export", **export_options)(export)
    router.get("/{path:path}", include_in_schema=False)(anything)
    return router


class NotThere(HookeError):
    """An address, or a latent in it, that does not exist."""


def _known(session: Session, latent: int) -> None:
    n = session.dictionary.n_latents
    if not 0 <= latent < n:
        raise NotThere(f"latent {latent} does not exist; the dictionary has {n} latents (0 to {n - 1})")


def _reason(error: dict[str, Any]) -> str:
    """One error of a request, with the field it is about; errors about the body as a whole have none."""
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    name = ".".join(str(part) for part in error["loc"][1:]) or "the body"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"


def _problems(app: Any) -> None:
    """Turn every kind of error into a status and {"error": reason}."""
    responses = require_extra("fastapi.responses", "web")
    exceptions = require_extra("fastapi.exceptions", "web")
    starlette = require_extra("starlette.exceptions", "web")

    def answer(status: int, reason: str) -> Any:
        return responses.JSONResponse({"error": reason}, status_code=status)

    def refused(_request, error: HookeError):
        status = {NotThere: 404, ConfigError: 409, Busy: 503, Gone: 499}.get(type(error), 422)
        return answer(status, str(error))

    def invalid(_request, error):
        return answer(422, "; ".join(_reason(e) for e in error.errors()))

    def http(_request, error):
        return answer(error.status_code, str(error.detail))

    def broken(_request, error: Exception):
        return answer(500, f"an error in hooke itself, {type(error).__name__}; the terminal has the details")

    app.add_exception_handler(HookeError, refused)
    app.add_exception_handler(exceptions.RequestValidationError, invalid)
    app.add_exception_handler(starlette.HTTPException, http)
    app.add_exception_handler(Exception, broken)
