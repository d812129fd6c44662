"""`hooke runs list | show | verify`: what earlier commands left behind."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tyro
from pydantic import Field
from rich.table import Table
from rich.text import Text

from hooke.cli.command import Command
from hooke.cli.session import Session


class List(Command):
    """List the run folders below a folder, newest first. The list is an index that is rebuilt from the folders
    whenever they changed; the folders are the truth.
    """

    words: ClassVar[str] = "runs list"

    root: Path = Field(Path("runs"), description="Folder that holds the runs.")
    limit: int = Field(20, ge=1, description="How many to show.")

    def execute(self, session: Session) -> None:
        """Refresh the index and print the newest runs."""
        from hooke.base.errors import DataError
        from hooke.runs.index import RunIndex

        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder; nothing has been run here yet (start with: hooke demo)")
        index = RunIndex(self.root)
        index.refresh()
        rows = index.list(limit=self.limit)
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("folder", "command", "status", "created"):
            table.add_column(name)
        for row in rows:
            table.add_row(*(Text(str(part)) for part in (row.path, row.command, row.status, row.created)))
        session.show(table if rows else Text("no runs yet"))
        session.results["runs"] = [
            {"id": row.id, "command": row.command, "status": row.status, "created": row.created, "path": str(row.path)}
            for row in rows
        ]
        session.next = f"hooke runs show {self.root / rows[0].path}" if rows else "hooke demo"


class Show(Command):
    """Show one run: its settings, results, and artefacts with their sizes."""

    words: ClassVar[str] = "runs show"

    folder: tyro.conf.Positional[Path] = Field(description="Run folder.")

    def execute(self, session: Session) -> None:
        """Print the record of the run."""
        from hooke.runs.folder import RunFolder

        info = RunFolder.open(self.folder).info
        session.say(f"{info.command}  {info.status}  {info.created}  {info.id}")
        if info.error is not None:
            session.say(f"error: {info.error.type}: {info.error.message}")
        for title, values in (("settings", info.config), ("results", info.results or {})):
            session.show(Text(f"\n{title}", style="bold"), _grid(values))
        if info.artefacts:
            sizes = {artefact.name: f"{artefact.bytes:,} bytes  {artefact.kind}" for artefact in info.artefacts}
            session.show(Text("\nartefacts", style="bold"), _grid(sizes))
        session.results |= info.model_dump(mode="json")
        session.next = f"hooke runs verify {self.folder}"


class Verify(Command):
    """Check every artefact of a run against its checksum and every line of its metrics. Exit code 2 on damage."""

    words: ClassVar[str] = "runs verify"

    folder: tyro.conf.Positional[Path] = Field(description="Run folder.")

    def execute(self, session: Session) -> None:
        """Verify, or raise what is damaged."""
        from hooke.runs.folder import RunFolder

        n = RunFolder.open(self.folder).verify()
        session.say(f"{self.folder}: {n} artefacts match their checksums")
        session.results |= {"run": str(self.folder), "artefacts": n, "intact": True}


def _grid(values: dict[str, object]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(Text(f"  {name}", style="dim"), Text(text))
    return table
