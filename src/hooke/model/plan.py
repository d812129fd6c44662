"""Plans: what a run reads and changes, resolved against the model and checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from hooke.base.errors import ConfigError, ShapeError, SiteError
from hooke.model.edits import Edit, Positions, Set
from hooke.model.families.family import Layout
from hooke.model.sites import AFTER_BLOCKS, BEFORE_BLOCKS, BLOCK_SITES, HEAD_SITES, Index, Site, parse_pattern
from hooke.model.tokens import Tokens

MAP_SITES = ("scores", "pattern")  # [batch, head, query, key]; they exist only inside the attention function


@dataclass(frozen=True)
class PlacedEdit:
    """An edit with its positions worked out.

    Args:
        where: prompt positions to change, or None for all of them.
        generated: whether tokens that are generated after the prompt change too.
    """

    site: Site
    edit: Edit
    where: Bool[Tensor, "batch pos"] | None
    generated: bool


@dataclass(frozen=True)
class Plan:
    """What one run reads, changes, and after which site it stops."""

    captures: tuple[Site, ...] = ()
    edits: tuple[PlacedEdit, ...] = ()
    until: Site | None = None

    @property
    def sites(self) -> list[Site]:
        """All sites involved, heads joined, earliest first."""
        stops = [self.until] if self.until else []
        everything = [*self.captures, *(placed.site for placed in self.edits), *stops]
        return sorted({site.without_head for site in everything}, key=lambda site: site.order)


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
        where = None if placed.where is None else placed.where[rows, column] & after.mask
        edit = placed.edit
        if isinstance(edit, Set) and edit.value.shape[:2] == before.ids.shape and edit.value.ndim > 2:
            if placed.site.name in MAP_SITES:
                raise ConfigError(f"{edit.label}: pad the prompts on the left to generate with a whole map")
            edit = dataclasses.replace(edit, value=edit.value[rows.to(edit.value.device), column.to(edit.value.device)])
        return dataclasses.replace(placed, edit=edit, where=where)

    return dataclasses.replace(plan, edits=tuple(moved(placed) for placed in plan.edits))


def available(layout: Layout) -> list[Site]:
    """Every site of the model, heads joined, in order of execution."""
    maps = set(MAP_SITES)
    inside = [name for name in BLOCK_SITES if name in layout.inside or name in maps]
    return [
        *(Site(name) for name in BEFORE_BLOCKS if name in layout.outside),
        *(Site(name, layer) for layer in range(layout.n_layers) for name in inside),
        *(Site(name) for name in AFTER_BLOCKS if name in layout.outside),
    ]


def resolve(layout: Layout, asked: Site | str) -> list[Site]:
    """The sites that a name or pattern stands for, checked against the model.

    Raises:
        SiteError: for a site that the architecture does not have, or a layer or head out of range.
    """
    name, layer, head = (asked.name, asked.layer, asked.head) if isinstance(asked, Site) else parse_pattern(asked)
    if name not in (layout.outside if layer is None else {*layout.inside, *MAP_SITES}):
        reason = layout.absent.get(name, "the architecture has no such place")
        raise SiteError(f"site {str(asked)!r} does not exist in this {layout.family} model: {reason}")
    if layer is None:
        return [Site(name)]
    layers = _indices(str(asked), "layer", layer, layout.n_layers)
    if head is None:
        return [Site(name, n) for n in layers]
    if name not in HEAD_SITES:
        raise SiteError(f"site {str(asked)!r}: {name!r} has no heads")
    heads = _indices(str(asked), "head", head, layout.heads(name))
    return [Site(name, n, h) for n in layers for h in heads]


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
    edits: Sequence[Edit] = (),
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
    placed = [item for edit in edits for item in _place(layout, vocab, tokens, edit)]
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


def _place(layout: Layout, vocab: int, tokens: Tokens, edit: Edit) -> list[PlacedEdit]:
    placed = []
    for site in resolve(layout, edit.site):
        feature = None if site.name in MAP_SITES else layout.feature_shape(site.name, vocab)
        if feature is not None and site.head is not None:
            feature = feature[1:]
        edit.check(feature, site)
        positions: Positions = getattr(edit, "positions", None)
        where, generated = _where(tokens, positions, edit.label)
        filled = _whole_prompt(edit, tokens, feature, positions) if isinstance(edit, Set) else edit
        if filled is not edit:
            generated = False  # the values belong to prompt positions
        placed.append(PlacedEdit(site, filled, where, generated))
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
        return positions, False
    if isinstance(positions, str):
        if positions == "kept":
            return tokens.keep, True
        if positions == "generated":
            return torch.zeros_like(tokens.mask), True
        if positions == "prompt":
            return tokens.mask, False
        if positions != "last":
            raise ConfigError(
                f"{label}: positions {positions!r} is not known; use 'last', 'prompt', 'generated' or 'kept'"
            )
        positions = -1
    columns = tokens.columns([positions] if isinstance(positions, int) else positions)
    return torch.zeros_like(tokens.mask).scatter(1, columns, True), False


def _whole_prompt(edit: Set, tokens: Tokens, feature: tuple[int, ...] | None, positions: Positions) -> Set:
    """The edit with its value spread over the whole prompt, where it was given per position."""
    if feature is None or edit.value.ndim == len(feature):
        return edit
    batch, width = tokens.shape
    lead = tuple(edit.value.shape[: edit.value.ndim - len(feature)])
    if lead == (batch, width):
        return (
            edit
            if isinstance(positions, Tensor) or positions is not None
            else dataclasses.replace(edit, positions="prompt")
        )
    if isinstance(positions, int) or (isinstance(positions, Sequence) and not isinstance(positions, str)):
        columns = tokens.columns([positions] if isinstance(positions, int) else positions)
        if lead in ((columns.shape[1],), (batch, columns.shape[1])):
            value = edit.value.expand(batch, columns.shape[1], *feature)
            spread = torch.zeros(batch, width, *feature, dtype=value.dtype, device=value.device)
            rows = torch.arange(batch, device=value.device)[:, None]
            return dataclasses.replace(edit, value=spread.index_put((rows, columns.to(value.device)), value))
    raise ShapeError(
        f"{edit.label}: value has shape {tuple(edit.value.shape)}; before the site's {feature} only [batch, pos] = "
        f"{(batch, width)} fits, or one entry per explicit position"
    )
