"""`hooke models list | show`: what can be opened, and what is inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro
from pydantic import Field
from rich.table import Table
from rich.text import Text

from hooke.cli.command import Command
from hooke.cli.session import Session
from hooke.model.sites import AFTER_BLOCKS, BEFORE_BLOCKS, BLOCK_SITES, INNER_SITES, TRANSFORMER_LENS

if TYPE_CHECKING:
    from hooke.model.model import Model


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
    """Show a model: its sizes, its sites with shapes, layers and other names, the sites that it does not have and why,
    and for built-in models what was measured on held-out text.
    """

    words: ClassVar[str] = "models show"

    name: tyro.conf.Positional[str] = Field("hooke/stdlib", description="Built-in name, Hugging Face name, or folder.")

    def execute(self, session: Session) -> None:
        """Open the model and print its facts."""
        import hooke
        from hooke.model.load import BUILTIN, builtin_folder

        model = hooke.load(self.name)
        precision, device = str(model.dtype).removeprefix("torch."), str(model.device)
        facts = {
            "name": model.name,
            "family": model.family,
            "parameters": sum(p.numel() for p in model.hf.parameters()),
            "dtype": precision,
            "device": device,
            "blocks": model.layout.blocks,
            **{name: getattr(model, name) for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head")},
            **{name: getattr(model, name) for name in ("d_mlp", "d_vocab")},
        }
        measured = measurements(builtin_folder(self.name)) if self.name in BUILTIN else {}
        table = Table.grid(padding=(0, 2))
        for name, value in (facts | measured).items():
            table.add_row(Text(name, style="dim"), f"{value:,}" if isinstance(value, int) else f"{value}")
        found, absent = sites_of(model), absent_sites(model)
        session.show(table, "", sites_table(found, model.n_layers, model.layout.blocks))
        if absent:
            session.show("", absent_table(absent))
        session.results |= facts | measured | {"identity": dict(model.identity), "sites": found, "absent": absent}
        session.next = f'hooke generate "def area(self):" --model {self.name}'


def sites_of(model: Model) -> list[dict[str, Any]]:
    """The sites of a model in order of execution, one entry for all layers in which a site has the same shape: its
    name, layers (None outside the blocks), shape (None where it depends on the input), and its other names.
    """
    groups: dict[tuple[str, str, tuple[int | None, ...]], list[int | None]] = {}
    for info in model.sites():
        groups.setdefault((info.site.name, info.words, info.shape), []).append(info.site.layer)
    aliases = {ours: theirs for theirs, ours in reversed(TRANSFORMER_LENS.items())}
    found = []
    for (name, words, shape), layers in groups.items():
        inside = layers[0] is not None
        lens = aliases.get(name)
        found.append(
            {
                "site": name,
                "layers": layers if inside else None,
                "dimensions": words,
                "shape": shape,
                "transformer_lens": f"blocks.{layers[0]}.{lens}" if lens and inside else lens,
                "module": _module(model, name, layers[0]),
            }
        )
    return found


def absent_sites(model: Model) -> dict[str, str]:
    """Why the sites that the model has nowhere are absent."""
    present = {info.site.name for info in model.sites()}
    names = (*BEFORE_BLOCKS, *BLOCK_SITES, *AFTER_BLOCKS)
    return {name: model.layout.why_absent(name) for name in names if name not in present}


def sites_table(found: list[dict[str, Any]], n_layers: int, blocks: str) -> Table:
    """What `sites_of` found, a line for each; names inside a block without the block's own."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("site", "layers", "shape", "module in the block", "in TransformerLens"):
        table.add_column(column, no_wrap=column in ("site", "layers"))
    for entry in found:
        layers = entry["layers"]
        name = entry["site"] if layers is None else f"{entry['site']}.{'*' if len(layers) == n_layers else layers[0]}"
        sizes = zip(entry["dimensions"].split(), entry["shape"], strict=True)
        shape = " ".join(word if size is None or word == str(size) else f"{word}={size}" for word, size in sizes)
        names = (entry["module"] or "", entry["transformer_lens"] or "")
        if layers is not None:
            names = tuple(
                text.removeprefix(f"{block}.{layers[0]}.")
                for text, block in zip(names, (blocks, "blocks"), strict=True)
            )
        which = "" if layers is None else "all" if len(layers) == n_layers else spans(layers)
        table.add_row(*(Text(text) for text in (name, which, shape, *names)))
    return table


def absent_table(absent: dict[str, str]) -> Table:
    """The sites that a model does not have, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in absent.items():
        reasons.setdefault(reason, []).append(name)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("absent")
    table.add_column("because")
    for reason, names in reasons.items():
        table.add_row(Text(", ".join(names)), Text(reason))
    return table


def spans(layers: list[int]) -> str:
    """Layers as people write them.

    Example:
        >>> spans([0, 1, 2, 5, 7, 8])
        '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _module(model: Model, name: str, layer: int | None) -> str | None:
    """The module at whose input or output a site lies; None for what only attention knows."""
    if name in INNER_SITES:
        return None
    tap = model.layout.tap(name, layer)
    side = {"in": ".input", "out": ".output", "through": " (worked out)"}[tap.side]
    return (model.layout.path(name, layer) or "model") + side


def measurements(folder: Path) -> dict[str, Any]:
    """The numbers in a shipped model's `measured.json` (held-out bits per byte, of `xz` too, ...); empty without it."""
    from hooke.base.files import read_json

    path = folder / "measured.json"
    values = read_json(path) if path.is_file() else {}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}
