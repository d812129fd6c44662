"""`hooke serve`: the local page on a dictionary and its index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import tyro
from pydantic import Field

from hooke.cli.command import Command, Switch
from hooke.cli.session import Session
from hooke.cli.sources import find_dictionary, find_index, model_of

if TYPE_CHECKING:
    from hooke.model.model import Model

PORT = 7333


class Serve(Command):
    """Open the page: scores beside their controls, the table of latents, a page for each latent, your own text,
    steering. Listens on this machine only, works offline, and runs until Ctrl-C.
    """

    words: ClassVar[str] = "serve"

    folder: tyro.conf.Positional[Path] = Field(description="Run folder of demo, or a dictionary (then with --index).")
    index: Path | None = Field(None, description="Latent index or run folder of features; by default in FOLDER.")
    scores: Path | None = Field(None, description="scores.json or run folder of eval; by default in FOLDER.")
    model: str | None = Field(None, description="By default the model that the dictionary was trained on.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(PORT, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    open: Switch = Field(False, description="Open the page in the default browser.")
    allow_remote: Switch = Field(
        False, description="Listen on addresses that others can reach. There is no login: they can run the model."
    )

    def execute(self, session: Session) -> None:
        """Load everything, then serve once the JSON line is out."""
        import hooke

        where = Where(self.host, self.port, self.open, self.allow_remote)
        check(where)
        dictionary = find_dictionary(self.folder)
        index = find_index(self.index or self.folder)
        scores = find_scores(self.scores or self.folder)
        session.say("loading ...")
        model = hooke.load(self.model or model_of(dictionary))
        session.results |= {"dictionary": str(dictionary), "index": str(index), "port": self.port}
        session.after = page(
            session,
            model,
            dictionary,
            index,
            scores,
            run=self.folder if (self.folder / "run.json").is_file() else None,
            where=where,
        )


class Where(NamedTuple):
    """Where the page is served, and whether a browser is opened."""

    host: str = "127.0.0.1"
    port: int = PORT
    open: bool = False
    allow_remote: bool = False


def check(where: Where) -> None:
    """Make sure that the page can be served there.

    Raises:
        MissingExtraError: where the extra `web` is not installed.
        ConfigError: where the port is taken, or the address is not loopback.
    """
    from hooke.base.errors import require_extra
    from hooke.web.server import listen

    require_extra("fastapi", "web")
    require_extra("uvicorn", "web")
    listen(where.host, where.port, allow_remote=where.allow_remote).close()


def page(
    session: Session,
    model: Model,
    dictionary: Path,
    index: Path,
    scores: Path | None,
    *,
    run: Path | None,
    where: Where,
) -> Callable[[], None]:
    """Prepare the page; calling the result serves it until interrupted.

    Raises:
        ConfigError: where index, dictionary and model do not belong together.
        FormatError: where a file of the index was altered.
    """
    from hooke.base.files import read_json
    from hooke.dictionaries.dictionary import Dictionary
    from hooke.features.index import LatentIndex
    from hooke.web import server
    from hooke.web.session import Session as Page

    opened = LatentIndex.open(index, model)
    opened.verify(remember=True, sink=session.sink)
    shown = Page(
        model,
        Dictionary.load(dictionary),
        opened,
        evaluation=read_json(scores) if scores is not None else {},
        run_path=run,
        dictionary_path=dictionary,
    )

    def serve() -> None:
        server.serve(
            shown,
            host=where.host,
            port=where.port,
            open_browser=where.open,
            allow_remote=where.allow_remote,
            on_ready=lambda url: session.say(f"page  {url}   (Ctrl-C to stop)"),
        )

    return serve


def find_scores(path: Path) -> Path | None:
    """The scores that `hooke eval` or `hooke demo` left, if any."""
    return next((file for file in (path, path / "scores.json") if file.is_file()), None)
