"""Attention in a packed pass: rows spread out over their columns, the clean run filling in what they share with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hooke.model.attention import step_by_step
from hooke.model.sites import INNER_SITES, MAP_SITES, Site
from hooke.model.sweep.portion import Portion


class Attention:
    """One block's attention: a handler for the registry, and what enters the output projection."""

    def __init__(self, portion: Portion) -> None:
        self.portion = portion
        self.mixed: Tensor | None = None  # [row, column, d_z]

    def attend(
        self, kernel: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """Attention of the packed tokens, each row spread out over its columns."""
        portion = self.portion
        packing, rows, width = portion.packing, portion.n_attending, portion.packing.width
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [n, head, d_head]
        if packing.n_clean:
            portion.clean.mask = portion.clean.options.get("attention_mask")
        if packing.n_clean and portion.whole.keep:
            portion.clean.queries, portion.clean.keys, portion.clean.values = (
                tensor[: packing.n_clean].clone() for tensor in (query, key, value)
            )
        if rows == 0:
            return query.new_zeros(1, len(query), query.shape[1], value.shape[-1]), None
        source, offset = self._sources(rows)

        def of(tokens: Tensor, clean: Tensor | None, columns: Tensor | None = None) -> Tensor:
            if source is None:
                spread = tokens.unflatten(0, (rows, width))
                picked = (
                    spread if columns is None else spread[torch.arange(rows, device=columns.device)[:, None], columns]
                )
            else:
                where = source if columns is None else source.gather(1, columns)
                picked = (torch.cat([clean, tokens]) if offset else tokens)[where]
            return picked.transpose(1, 2)

        keys, values = of(key, portion.clean.keys), of(value, portion.clean.values)
        mask = portion.clean.mask
        if mask is not None and mask.shape[0] != 1:
            mask = mask[packing.examples[:rows]]
        if portion.few_queries:
            columns = portion.columns[packing.examples[:rows]]
            queries = of(query, portion.clean.queries, columns)
            mixed, _ = kernel(module, queries, keys, values, self._mask_of(mask, columns, module, options), **options)
            self.mixed = mixed.flatten(-2)
            return query.new_empty(1, len(query), query.shape[1], value.shape[-1]), None  # see `mixed_of_all`
        full = of(query, portion.clean.queries), keys, values
        inner = {row for site, items in portion.edits.items() if site.name in INNER_SITES for row, _ in items}
        if not inner:
            mixed, _ = kernel(module, *full, mask, **options)
        else:
            mixed = self._attend_apart(kernel, module, full, mask, sorted(inner), options)
        self.mixed = mixed.flatten(-2)
        if packing.n_clean:
            portion.clean.mixed = portion.whole.kept(self._mixed_at(slice(0, packing.n_clean)))
        if portion.narrow:
            return query.new_empty(1, len(query), query.shape[1], value.shape[-1]), None
        return self._mixed_at(slice(0, portion.n))[None].unflatten(-1, (-1, value.shape[-1])), None

    def _sources(self, rows: int) -> tuple[Tensor | None, int]:
        """Where each column of each row lies, `[row, column]`: among those that ask, which come after `offset` clean
        tokens where these were kept. None where the tokens that ask are all there is, in order.
        """
        portion = self.portion
        packing, whole = portion.packing, portion.whole
        offset = 0 if packing.n_clean else len(whole.example)
        if portion.is_grid and not offset and len(portion.asking) == portion.n_spread:
            return None, 0
        source = whole.place[packing.examples[:rows]]
        place = packing.row[portion.asking] * packing.width + packing.column[portion.asking]
        source.view(-1)[place] = torch.arange(offset, offset + len(place), device=source.device)
        return source, offset

    def _mixed_at(self, places: slice) -> Tensor:
        """Attention's result at packed places of rows that attend."""
        portion = self.portion
        assert self.mixed is not None
        if portion.is_grid:
            return self.mixed.flatten(0, 1)[places]
        return self.mixed[portion.packing.row[places], portion.packing.column[places]]

    def _mask_of(
        self, mask: Tensor | None, columns: Tensor, module: nn.Module, options: dict[str, Any]
    ) -> Tensor | None:
        """The mask for some queries of each row `[row, 1, query, key]`; None where they see every key."""
        width = self.portion.packing.width
        if mask is not None:
            mask = mask.expand(len(columns), -1, -1, -1)
            return mask.gather(2, columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if not causal or (columns.shape[1] == 1 and bool((columns == width - 1).all())):
            return None
        return torch.arange(width, device=columns.device) <= columns[:, None, :, None]

    def mixed_of_all(self) -> Tensor:
        """What enters the output projection, of all rows, or of the places that are read: rows that join after
        attention take the clean run's.
        """
        portion = self.portion
        packing, parts = portion.packing, []
        if not portion.few_queries:
            if portion.n_spread:
                parts.append(self._mixed_at(slice(0, portion.n_spread)))
            if portion.n_spread < portion.n:
                assert portion.clean.mixed is not None
                parts.append(portion.clean.mixed[packing.clean_place[portion.n_spread : portion.n]])
            self.mixed = None  # memory that the MLP can use
            return torch.cat(parts)[None]
        assert portion.read is not None and portion.columns is not None
        attending, late = (
            portion.read[portion.read < portion.n_spread],
            portion.read[portion.read >= portion.n_spread],
        )
        if len(attending):
            assert self.mixed is not None
            rows, columns = packing.row[attending], packing.column[attending]
            which = (portion.columns[packing.examples[rows]] == columns[:, None]).int().argmax(1)
            parts.append(self.mixed[rows, which])
            if packing.n_clean:
                own = attending < packing.n_clean
                portion.clean.mixed = self.mixed.new_zeros(packing.n_clean, self.mixed.shape[-1])
                portion.clean.mixed[attending[own]] = parts[0][own]
        if len(late):
            assert portion.clean.mixed is not None
            parts.append(portion.clean.mixed[packing.clean_place[late]])
        return torch.cat(parts)[None]

    def _attend_apart(
        self,
        kernel: Callable,
        module: nn.Module,
        full: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        inner: list[int],
        options: dict[str, Any],
    ) -> Tensor:
        """Rows whose maps are edited go step by step, the others stay on the kernel, as they do in a run."""
        rows = full[0].shape[0]
        edited = self.portion.edits.items()
        maps = sorted({row for site, items in edited if site.name in MAP_SITES for row, _ in items})
        turned = sorted(set(inner) - set(maps))  # queries or keys alone
        plain = sorted(set(range(rows)) - set(inner))
        mixed = full[0].new_empty(rows, full[0].shape[2], full[0].shape[1], full[2].shape[-1])
        for chosen in (maps, turned, plain):
            if not chosen:
                continue
            pick = torch.tensor(chosen, device=full[0].device)
            own = mask if mask is None or mask.shape[0] == 1 else mask[pick]
            query, key, value = (tensor[pick] for tensor in full)
            observe = self._observer(chosen)
            if chosen is maps:
                mixed[pick], _ = step_by_step(module, query, key, value, own, observe=observe, **options)
                continue
            if chosen is turned:
                query = observe("q_rot", query.transpose(1, 2)).transpose(1, 2)
                key = observe("k_rot", key.transpose(1, 2)).transpose(1, 2)
            mixed[pick], _ = kernel(module, query, key, value, own, **options)
        return mixed

    def _observer(self, chosen: list[int]) -> Callable[[str, Tensor], Tensor]:
        def observe(name: str, value: Tensor) -> Tensor:
            items = self.portion.edits.get(Site(name, self.portion.layer), ())
            value = value.clone() if items else value
            for row, edit in items:
                if row not in chosen:
                    continue
                here = chosen.index(row)
                columns = torch.tensor(edit.columns, device=value.device)
                head, by_query = edit.placed.site.head, name in MAP_SITES
                view = value[here : here + 1]
                view = view if head is None else view.select(1 if by_query else 2, head)
                turned = by_query and head is None  # [1, head, query, key]: queries second
                example = torch.tensor([[self.portion.packing.rows[row].example]], device=value.device)
                own = edit.placed.edit.at(example, torch.arange(self.portion.packing.width, device=value.device)[None])
                changed = own.change(view)
                if turned:
                    view[:, :, columns] = changed[:, :, columns]
                else:
                    view[:, columns] = changed[:, columns]
            return value

        return observe
