"""Plans: what a run reads and changes, resolved against the model and checked before anything runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, ShapeError, SiteError, nearest
from hooke.model.aliases import module_path
from hooke.model.edits import Edit, Place, Positions
from hooke.model.families.family import Layout
from hooke.model.sites import (
    AFTER_BLOCKS,
    BEFORE_BLOCKS,
    BLOCK_SITES,
    HEAD_SITES,
    MAP_SITES,
    SITES,
    Index,
    Site,
    parse_pattern,
)
from hooke.model.tokens import Tokens

# One edit or one list for all rows, or one list per row.
Edits = Edit | Sequence[Edit] | Sequence[Sequence[Edit]]


@dataclass(frozen=True)
class PlacedEdit:
    """An edit with its positions worked out.

    Args:
        where: prompt positions to change, or None for all of them; `[len(rows), pos]` where it has rows of its own.
        generated: whether tokens that are generated after the prompt change too.
        rows: the rows of the batch that it changes, next to each other, or None for all.
    """

    site: Site
    edit: Edit
    where: Bool[Tensor, "batch pos"] | None
    generated: bool
    rows: range | None = None


@dataclass(frozen=True)
class Plan:
    """What one run reads, changes, and after which site it stops.

    Args:
        at: columns to keep of what is captured, or None for all.
        offload: move what is captured to main memory at once.
    """

    captures: tuple[Site, ...] = ()
    edits: tuple[PlacedEdit, ...] = ()
    until: Site | None = None
    at: Int[Tensor, "batch position"] | None = None
    offload: bool = False

    @property
    def sites(self) -> list[Site]:
        """All sites involved, heads joined, earliest first."""
        stops = [self.until] if self.until else []
        everything = [*self.captures, *(placed.site for placed in self.edits), *stops]
        return sorted({site.without_head for site in everything}, key=lambda site: site.order)

    # Asked once for each module that a run looks at, so worked out once for each run.

    @functools.cached_property
    def edits_at(self) -> dict[Site, list[PlacedEdit]]:
        """The edits of each site, heads joined, in the order given."""
        found: dict[Site, list[PlacedEdit]] = {}
        for placed in self.edits:
            found.setdefault(placed.site.without_head, []).append(placed)
        return found

    @functools.cached_property
    def captures_at(self) -> dict[Site, list[Site]]:
        """What is captured at each site, heads joined."""
        found: dict[Site, list[Site]] = {}
        for asked in self.captures:
            found.setdefault(asked.without_head, []).append(asked)
        return found


def repadded(plan: Plan, before: Tokens, after: Tokens) -> Plan:
    """The plan for the same rows with their padding elsewhere: masks and per-position values move with the tokens.

    Raises:
        ConfigError: for a whole attention map, whose keys would have to move too.
    """
    width = after.shape[1]
    column = torch.arange(width, device=before.ids.device)[None] - after.starts[:, None] + before.starts[:, None]
    column = column.clamp(0, before.shape[1] - 1)  # what falls on padding is not read
    rows = torch.arange(len(before), device=column.device)[:, None]

    def moved(placed: PlacedEdit) -> PlacedEdit:
        edit, where = placed.edit, placed.where
        own = slice(None) if placed.rows is None else slice(placed.rows.start, placed.rows.stop)
        local = rows if placed.rows is None else rows[: len(placed.rows)]
        where = None if where is None else where[local, column[own]] & after.mask[own]
        return dataclasses.replace(placed, edit=edit.moved(local, column[own]), where=where)

    return dataclasses.replace(plan, edits=tuple(moved(placed) for placed in plan.edits))


def available(layout: Layout) -> list[Site]:
    """Every site of the model, heads joined, in order of execution."""
    return [
        *(Site(name) for name in BEFORE_BLOCKS if layout.has(name, None)),
        *(Site(name, layer) for layer in range(layout.n_layers) for name in BLOCK_SITES if layout.has(name, layer)),
        *(Site(name) for name in AFTER_BLOCKS if layout.has(name, None)),
    ]


def resolve(layout: Layout, asked: Site | str) -> list[Site]:
    """The sites that a name or pattern stands for, checked against the model. A pattern over layers takes the layers
    that have the site.

    Raises:
        SiteError: for a site that the architecture does not have, or a layer or head out of range.
    """
    if asked not in layout.resolved:
        layout.resolved[asked] = _resolve(layout, asked)
    return layout.resolved[asked]


def _resolve(layout: Layout, asked: Site | str) -> list[Site]:
    if isinstance(asked, str) and asked.partition(".")[0] not in SITES:
        asked = module_path(layout, asked) or asked
    name, layer, head = (asked.name, asked.layer, asked.head) if isinstance(asked, Site) else parse_pattern(asked)
    if layer is None:
        layers: list[int | None] = [None]
    else:
        layers = list(_indices(str(asked), "layer", layer, layout.n_layers))
    found = [n for n in layers if layout.has(name, n)]
    if not found or (len(found) < len(layers) and layer != "*"):
        where = f"layer {layer} of " if any(layout.has(name, n) for n in range(layout.n_layers)) else ""
        reason = layout.why_absent(name)
        raise SiteError(f"site {str(asked)!r} does not exist in {where}this {layout.family} model: {reason}")
    if head is None:
        return [Site(name, n) for n in found]
    if name not in HEAD_SITES:
        raise SiteError(f"site {str(asked)!r}: {name!r} has no heads")
    heads = _indices(str(asked), "head", head, layout.heads(name))
    return [Site(name, n, h) for n in found for h in heads]


def _indices(asked: str, word: str, index: Index, count: int) -> list[int]:
    if index == "*":
        return list(range(count))
    assert isinstance(index, int)
    if not -count <= index < count:
        raise SiteError(f"site {asked!r}: {word} {index} is out of range; the model has {count}, 0 to {count - 1}")
    return [index % count]


def make_plan(
    layout: Layout,
    vocab: int,
    tokens: Tokens,
    *,
    capture: Sequence[Site | str] | Site | str = (),
    edits: Edits = (),
    until: Site | str | None = None,
) -> Plan:
    """Resolve and check; nothing has run yet when this raises.

    Raises:
        SiteError: for a site that does not exist, or one that `until` would never let the run reach.
        ShapeError, DataError, ConfigError: for an edit that does not fit its site or the prompt.
    """
    captures = [
        site for asked in ([capture] if isinstance(capture, str | Site) else capture) for site in resolve(layout, asked)
    ]
    placed = place_edits(layout, vocab, tokens, edits)
    stop = None
    if until is not None:
        (stop, *others) = resolve(layout, until)
        if others:
            raise SiteError(f"until={until!r} stands for several sites; name one")
        stop = stop.without_head
        late = [site for site in [*captures, *(p.site for p in placed)] if site.without_head.order > stop.order]
        if late:
            raise SiteError(f"the run stops after {stop}, before {late[0]} is computed; move `until` to {late[-1]}")
    return Plan(tuple(dict.fromkeys(captures)), tuple(placed), stop)


def place_edits(layout: Layout, vocab: int, tokens: Tokens, edits: Edits) -> list[PlacedEdit]:
    """Work out sites and positions of edits: one for all rows, one list for all rows, or one list per row."""
    if isinstance(edits, Edit):
        edits = [edits]
    if all(isinstance(edit, Edit) for edit in edits):
        return [placed for edit in edits for placed in _place(layout, vocab, tokens, edit)]
    if any(isinstance(edit, Edit) for edit in edits) or len(edits) != len(tokens):
        raise ConfigError(
            f"edits are one list for all rows, or one list for each of the {len(tokens)} rows; "
            f"got {len(edits)} entries, {sum(isinstance(edit, Edit) for edit in edits)} of them edits"
        )
    return [
        dataclasses.replace(placed, rows=range(row, row + 1))
        for row, own in enumerate(edits)
        for edit in own
        for placed in _place(layout, vocab, tokens.rows([row]), edit)
    ]


def _place(layout: Layout, vocab: int, tokens: Tokens, edit: Edit) -> list[PlacedEdit]:
    placed = []
    where, generated = _where(tokens, getattr(edit, "positions", None), edit.label)
    for site in dict.fromkeys(site for asked in edit.patterns for site in resolve(layout, asked)):
        feature = None if site.name in MAP_SITES else layout.feature_shape(site.name, vocab)
        if feature is not None and site.head is not None:
            feature = feature[1:]
        fitted = edit.fit(tokens, Place(site, feature, layout.heads(site.name), layout.causal))
        if fitted.per_position and where is None:
            where = tokens.mask
        # Values that belong to prompt positions have nothing to say about generated ones.
        placed.append(PlacedEdit(site, fitted, where, generated and not fitted.per_position))
    return placed


def _where(tokens: Tokens, positions: Positions, label: str) -> tuple[Tensor | None, bool]:
    """Prompt mask (None = all) and whether generated tokens are meant too."""
    if positions is None:
        return None, True
    if isinstance(positions, Tensor):
        if positions.dtype != torch.bool or positions.shape != tokens.ids.shape:
            raise ShapeError(
                f"{label}: positions is a {positions.dtype} tensor of shape {tuple(positions.shape)}; "
                f"expected Bool {tuple(tokens.shape)}, or ints"
            )
        return positions.to(tokens.ids.device), False
    if isinstance(positions, str) and positions in ("kept", "prompt", "generated"):
        where = {"kept": tokens.keep, "prompt": tokens.mask, "generated": torch.zeros_like(tokens.mask)}[positions]
        return where, positions != "prompt"
    if isinstance(positions, str) and positions == "image" and tokens.image is not None:
        return tokens.image, False
    if not isinstance(positions, str):
        with _named(label):
            return tokens.at([positions] if isinstance(positions, int) else positions), False
    image = ("image",) if tokens.image is not None else ()
    columns = columns_of(tokens, positions, label, words=("prompt", "generated", "kept", *image))
    return torch.zeros_like(tokens.mask).scatter(1, columns, True), False


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Say of which edit or metric a position is."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{label}: {error}") from error


def columns_of(
    tokens: Tokens, positions: Positions, label: str, *, words: Sequence[str] = ()
) -> Int[Tensor, "batch position"]:
    """Columns of explicit positions: an int, ints, "last", or a name that the tokens carry.

    Args:
        words: what else is known where it is asked for, for messages.

    Raises:
        ConfigError: for a word that is neither, or a tensor.
        DataError: for a position beyond a row.
    """
    if positions is None or isinstance(positions, Tensor):
        found = "None" if positions is None else f"a {positions.dtype} tensor of shape {tuple(positions.shape)}"
        raise ConfigError(
            f"{label}: positions is {found}; expected an int, ints, 'last' or a name that the tokens carry"
        )
    with _named(label):
        if not isinstance(positions, str):
            return tokens.columns([positions] if isinstance(positions, int) else positions)
        if positions == "last":
            return tokens.columns([-1])
        if positions in tokens.names:
            return tokens.named(positions)
    if positions == "each":
        raise ConfigError(
            f"{label}: positions 'each' stands for many runs; make an edit set for each position with "
            "hooke.model.edits.expand_each(edits, tokens), and sweep those"
        )
    known = ["last", *words, *tokens.names]
    hint = nearest(positions, known)
    raise ConfigError(f"{label}: positions {positions!r} is not known{hint}; use {', '.join(map(repr, known))} or ints")
