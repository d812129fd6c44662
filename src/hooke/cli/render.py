"""Latents and scores as coloured text. Tokens are data: control characters are escaped, markup is off."""

from __future__ import annotations

import math

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hooke.cli.terminal import visible
from hooke.features.examples import Example

_WARM = (255, 158, 54)  # full activation; nothing is black


def example_text(example: Example, *, strongest: float, colour: bool) -> Text:
    """One line of text, each token shaded by its activation.

    Args:
        strongest: activation that gets the full shade.
        colour: whether shades will be seen; if not, active tokens stand in «marks».
    """
    line = Text(no_wrap=True, overflow="ellipsis")
    for token, value in zip(example.tokens, example.activations, strict=True):
        text, share = visible(token), float(value) / strongest if strongest > 0 else 0.0
        if share <= 0:
            line.append(text, style="dim" if colour else "")
        elif colour:
            shade = min(1.0, 0.25 + 0.75 * share)
            red, green, blue = (round(part * shade) for part in _WARM)
            line.append(text, style=f"{'black' if shade > 0.5 else 'white'} on rgb({red},{green},{blue})")
        else:
            line.append(f"«{text}»")
    return line


def latent_card(
    latent: int, examples: list[Example], *, density: float, raised: list[str], lowered: list[str], colour: bool
) -> Group:
    """A latent's number, how often it fires, the tokens that it raises and lowers, and examples, strongest first."""
    head = Text(f"latent {latent}", style="bold", no_wrap=True, overflow="ellipsis")
    head.append(f"   fires on {density:.2%} of tokens".replace("%", " %"), style="dim")
    for name, tokens in (("raises", raised), ("lowers", lowered)):
        if tokens:
            head.append(f"   {name} ", style="dim")
            head.append(" ".join(visible(token).strip() or repr(token) for token in tokens))
    strongest = max((example.value for example in examples), default=0.0)
    lines = []
    for example in examples:
        line = Text(f"  {example.value:6.2f}  ", style="cyan", no_wrap=True, overflow="ellipsis")
        lines.append(line.append_text(example_text(example, strongest=strongest, colour=colour)))
    return Group(head, *lines, Text())


def number(value: object) -> str:
    """A number of a table: four digits, or a dash where it is undefined.

    Example:
        >>> number(0.98765), number(float("nan")), number(12)
        ('0.9877', '-', '12')
    """
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def scores_table(rows: dict[str, dict[str, float]], columns: list[str]) -> Table:
    """Scores beside their controls: one row a metric, one column a dictionary; missing numbers are left out."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("score")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right", style="bold" if i == 0 else "")
    for metric, values in rows.items():
        table.add_row(metric, *(number(values[name]) if name in values else "" for name in columns))
    return table
