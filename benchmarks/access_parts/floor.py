"""Hand-written floors: the fastest exact sweeps of one pair that we could write on Hugging Face's modules.

Nothing of hooke is used. Every variant computes the clean run itself and is given the values to patch in (the
corrupted run's residual stream or z). What each one saves, and what it measured, is in
docs/decisions/004-access-speed.md; `residual_packed` and `head_wavefront` won and are what hooke is compared with.

A residual patch at (layer l, position p) changes nothing below l and nothing left of p. So rows join the batch at
their layer; the clean run travels with them as one more row; the last layer only matters at the last position, and
of the vocabulary only the two answers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from access_parts.floor_parts import Parts, attend


@torch.no_grad()
def residual_wavefront(parts: Parts, ids: Tensor, values: Tensor, answer: int, wrong: int) -> Tensor:
    """Rows join at their layer; every row runs on all tokens. The metric `[layer, pos]`."""
    n_layers, width, d_model = values.shape
    here = torch.arange(width)
    x = parts.embed(ids)[None]  # the clean row first, then the rows of layer 0, of layer 1, ...
    for layer, block in enumerate(parts.blocks):
        joining = x[:1].repeat(width, 1, 1)
        joining[here, here] = values[layer]
        x = _layer(parts, block, torch.cat([x, joining]), last=layer == n_layers - 1)
    return parts.difference(x[1:, -1], answer, wrong).view(n_layers, width)


def _layer(parts: Parts, block: torch.nn.Module, x: Tensor, *, last: bool) -> Tensor:
    """One block over whole rows `[row, pos, d_model]`; the last one at the last position only."""
    rows, width, d_model = x.shape
    flat, columns = x.reshape(-1, d_model), torch.arange(width).repeat(rows)
    if not last:
        q, k, v = (part.unflatten(0, (rows, width)) for part in parts.queries_keys_values(block, flat, columns))
        z = attend(parts, q, k, v, causal=True)
        return parts.mlp(block, flat + parts.out(block, z.flatten(0, 1))).view(rows, width, d_model)
    k, v = (part.unflatten(0, (rows, width)) for part in parts.keys_values(block, flat, columns))
    end = x[:, -1]
    q = parts.queries(block, end, torch.full((rows,), width - 1))
    z = attend(parts, q[:, None], k, v, causal=False)[:, 0]
    return parts.mlp(block, end + parts.out(block, z))[:, None]


@torch.no_grad()
def residual_suffix(parts: Parts, ids: Tensor, values: Tensor, answer: int, wrong: int) -> Tensor:
    """The wavefront once per position, on the tokens from there on, over clean keys and values. `[layer, pos]`."""
    n_layers, width, d_model = values.shape
    clean, keys, vals = [parts.embed(ids)], [], []
    columns = torch.arange(width)
    for block in parts.blocks:
        q, k, v = (part[None] for part in parts.queries_keys_values(block, clean[-1], columns))
        z = attend(parts, q, k, v, causal=True)[0]
        keys.append(k), vals.append(v)
        clean.append(parts.mlp(block, clean[-1] + parts.out(block, z)))
    found = values.new_empty(n_layers, width)
    for p in range(width):
        x = values.new_empty(0, width - p, d_model)
        for layer, block in enumerate(parts.blocks):
            joining = clean[layer][None, p:].clone()
            joining[:, 0] = values[layer, p]
            x = _suffix_layer(parts, block, torch.cat([x, joining]), keys[layer], vals[layer], layer == n_layers - 1)
        found[:, p] = parts.difference(x[:, -1], answer, wrong)
    return found


def _suffix_layer(parts: Parts, block: torch.nn.Module, x: Tensor, keys: Tensor, values: Tensor, last: bool) -> Tensor:
    rows, length, d_model = x.shape
    width = keys.shape[1]
    start = width - length
    flat, columns = x.reshape(-1, d_model), torch.arange(start, width).repeat(rows)
    own = parts.keys_values(block, flat, columns)
    k, v = (
        torch.cat([before[:, :start].expand(rows, -1, -1), part.unflatten(0, (rows, length))], dim=1)
        for before, part in zip((keys, values), own, strict=True)
    )
    if last:
        end = x[:, -1]
        q = parts.queries(block, end, torch.full((rows,), width - 1))
        z = attend(parts, q[:, None], k, v, causal=False)[:, 0]
        return parts.mlp(block, end + parts.out(block, z))[:, None]
    q = parts.queries(block, flat, columns).unflatten(0, (rows, length))
    if start:  # a causal kernel wants as many queries as keys: what stands left of the patch is not read
        q = torch.cat([q.new_zeros(rows, start, q.shape[-1]), q], dim=1)
    z = attend(parts, q, k, v, causal=True)[:, start:]
    return parts.mlp(block, flat + parts.out(block, z.flatten(0, 1))).view(rows, length, d_model)


@torch.no_grad()
def residual_packed(parts: Parts, ids: Tensor, values: Tensor, answer: int, wrong: int) -> Tensor:
    """One pass: token-wise modules see the changed tokens of all rows side by side, attention sees whole rows that are
    gathered from them and from the clean row. The metric `[layer, pos]`.

    In a row's own first layer its only new token is the patched one: the others' queries, keys and values are clean.
    """
    n_layers, width, _ = values.shape
    row_of, col_of = torch.triu_indices(width, width)  # within the rows of one layer: row p holds tokens p, p + 1, ...
    group, here = len(col_of), torch.arange(width)
    offset = torch.full((width, width), -1).index_put((row_of, col_of), torch.arange(group))
    clean_row = here[None]
    x = parts.embed(ids)  # packed: the clean row, then the group of layer 0, the group of layer 1, ...
    for layer, block in enumerate(parts.blocks):
        n = len(x)
        source = torch.cat([x, values[layer]])  # the patched tokens come last
        columns = torch.cat([here, col_of.repeat(layer), here])
        joining = torch.where(here[:, None] == here, n + here, here)  # row p: the clean row but for its token p
        starts = width + group * torch.arange(layer)[:, None, None]
        older = torch.where(offset >= 0, starts + offset, here).flatten(0, 1)
        rows = torch.cat([clean_row, older, joining])  # where each token of each row lies in `source`
        if layer == n_layers - 1:
            k, v = (part[rows] for part in parts.keys_values(block, source, columns))
            end = source[rows[:, -1]]
            q = parts.queries(block, end, torch.full((len(rows),), width - 1))
            z = attend(parts, q[:, None], k, v, causal=False)[:, 0]
            x = parts.mlp(block, end + parts.out(block, z))
            break
        q, k, v = (part[rows] for part in parts.queries_keys_values(block, source, columns))
        z = attend(parts, q, k, v, causal=True).flatten(0, 1)
        changed = torch.cat(
            [here, (width * torch.arange(1, len(rows), width)[:, None] + width * row_of + col_of).flatten()]
        )
        before = torch.cat([x, source[joining[row_of, col_of]]])
        x = parts.mlp(block, before + parts.out(block, z[changed]))
    return parts.difference(x[1:], answer, wrong).view(n_layers, width)


@torch.no_grad()
def head_wavefront(parts: Parts, ids: Tensor, z_values: Tensor, answer: int, wrong: int) -> Tensor:
    """Rows of one head's z, patched at all positions `[layer, pos, head * d_head]`, join after the attention of their
    layer, by the difference that the head's output makes. The metric `[layer, head]`.
    """
    n_layers, width, d_model = len(z_values), len(ids), 0
    x = parts.embed(ids)[None]
    for layer, block in enumerate(parts.blocks):
        rows, width, d_model = x.shape
        last = layer == n_layers - 1
        flat, columns = x.reshape(-1, d_model), torch.arange(width).repeat(rows)
        if last:
            k, v = (part.unflatten(0, (rows, width)) for part in parts.keys_values(block, flat, columns))
            x = x[:, -1:]
            q = parts.queries(block, x[:, 0], torch.full((rows,), width - 1))[:, None]
        else:
            q, k, v = (part.unflatten(0, (rows, width)) for part in parts.queries_keys_values(block, flat, columns))
        z = attend(parts, q, k, v, causal=not last)
        mid = x + parts.out(block, z.flatten(0, 1)).view(x.shape)
        change = (z_values[layer][-1:] if last else z_values[layer]) - z[0]
        by_head = change.unflatten(-1, (parts.n_heads, -1)).transpose(0, 1)
        joining = mid[:1] + by_head @ parts.head_weights(block)
        mid = torch.cat([mid, joining])
        x = parts.mlp(block, mid.flatten(0, 1)).view(mid.shape)
    return parts.difference(x[1:, -1], answer, wrong).view(n_layers, parts.n_heads)
