"""`hooke bench`: our way against the plain way, in one run, as ratios."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import tyro
from pydantic import Field
from rich.table import Table
from rich.text import Text

from hooke.base.errors import DataError, nearest
from hooke.cli.command import Command
from hooke.cli.render import number
from hooke.cli.session import Session


class Bench(Command):
    """Run benchmarks. Each measures our way and the plain way in the same run and reports the ratio; absolute
    rates are of this machine and this moment. Exit code 1 when a ratio misses its target.
    """

    words: ClassVar[str] = "bench"

    names: tyro.conf.Positional[tuple[str, ...]] = Field((), description="Benchmarks to run; by default all.")
    run: Path | None = Field(None, description="Run folder to make; by default below runs/.")

    def execute(self, session: Session) -> None:
        """Run them one by one; a row a measurement."""
        known = benchmarks()
        for name in self.names:
            if name not in known:
                raise DataError(f"no benchmark {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
        rows: list[dict[str, Any]] = []
        with session.run_folder(self.run):
            chosen = self.names or tuple(known)
            for i, name in enumerate(chosen):
                session.sink.progress("bench", i, len(chosen), "benchmarks")
                session.say(f"{name} ...")
                rows += _load(known[name]).main()
            session.results["rows"] = rows
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for column in ("what", "ours", "against", "ratio", "target", ""):
            table.add_column(column, justify="left" if column in ("what", "") else "right")
        verdicts = {True: "holds", False: "misses", None: "not tested"}
        for row in rows:
            numbers = (number(row[name]) for name in ("ours", "against", "ratio", "target"))
            table.add_row(Text(row["name"]), *numbers, verdicts[row["holds"]])
        session.show(table)
        session.exit_code = 1 if any(row["holds"] is False for row in rows) else 0


def benchmarks() -> dict[str, Path]:
    """Files by name: beside the installed package, or in the repository of an editable install.

    Raises:
        DataError: where there are none.
    """
    import hooke

    package = Path(hooke.__file__).parent
    folders = (package / "benchmarks", package.parents[1] / "benchmarks")
    found = {path.stem: path for folder in folders for path in sorted(folder.glob("[a-z]*.py"))}
    if not found:
        raise DataError("this installation has no benchmarks; run them from a clone of the repository")
    return found


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"hooke_benchmark_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
