"""`hooke models list | show`: what can be opened, and what is inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import tyro
from pydantic import Field
from rich.table import Table
from rich.text import Text

from hooke.cli.command import Command
from hooke.cli.session import Session


class List(Command):
    """List the built-in models and the architectures that have a map of sites."""

    words: ClassVar[str] = "models list"

    def execute(self, session: Session) -> None:
        """Print both lists."""
        from hooke.model.families import FAMILIES
        from hooke.model.load import BUILTIN

        session.say("built in:  " + "  ".join(BUILTIN))
        session.say("families:  " + "  ".join(sorted(FAMILIES)))
        session.results |= {"builtin": list(BUILTIN), "families": sorted(FAMILIES)}
        session.next = f"hooke models show {BUILTIN[0]}"


class Show(Command):
    """Show a model: its shapes, its sites, its identity, and for built-in models what was measured on held-out text."""

    words: ClassVar[str] = "models show"

    name: tyro.conf.Positional[str] = Field("hooke/stdlib", description="Built-in name, Hugging Face name, or folder.")

    def execute(self, session: Session) -> None:
        """Open the model and print its facts."""
        import hooke
        from hooke.model.load import BUILTIN, builtin_folder

        model = hooke.load(self.name)
        facts = {
            "name": model.name,
            "family": model.family,
            "parameters": sum(p.numel() for p in model.hf.parameters()),
            **{name: getattr(model, name) for name in ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab")},
        }
        measured = measurements(builtin_folder(self.name)) if self.name in BUILTIN else {}
        table = Table.grid(padding=(0, 2))
        for name, value in (facts | measured).items():
            table.add_row(Text(name, style="dim"), f"{value:,}" if isinstance(value, int) else f"{value}")
        session.show(table)
        sites = Table(box=None, pad_edge=False, header_style="dim")
        sites.add_column("site (first layer)")
        sites.add_column("shape")
        for info in model.sites():
            if info.site.layer in (None, 0) and info.site.head is None:
                sites.add_row(str(info.site), info.words)
        session.show("", sites)
        session.results |= facts | measured | {"identity": dict(model.identity)}
        session.next = f'hooke generate "def area(self):" --model {self.name}'


def measurements(folder: Path) -> dict[str, Any]:
    """The numbers in a shipped model's `measured.json` (held-out bits per byte, of `xz` too, ...); empty without it."""
    from hooke.base.files import read_json

    path = folder / "measured.json"
    values = read_json(path) if path.is_file() else {}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}
