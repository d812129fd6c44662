"""Module paths as names of sites, as nnsight writes them: `transformer.h[5].output` is `resid_post.5`.

A path and its side name a site where the family's map has a tap there. Paths that no tap uses are refused with the
nearest that are, never guessed: `model.layers.3.self_attn.output` is what is added to the residual stream in Llama, and
is not in Gemma 2, where a norm comes between.
"""

from __future__ import annotations

import re

from hooke.base.errors import SiteError, nearest
from hooke.model.families.family import Layout, Tap

_INDEX = re.compile(r"\[(-?\d+|\*)\]")
# `.output[0]`: nnsight shows the tuple that some modules return; `.inputs[0][0]` its arguments.
_SIDE = re.compile(r"(.*)\.(?:(output)(?:\.0)?|input(?:\.0)?|inputs\.0\.0)")


def module_path(layout: Layout, text: str) -> str | None:
    """The site that a module's input or output is, or None where the text is no module path.

    Args:
        text: "path.output" or "path.input", layers as `.5` or `[5]`, or `*` for all; `.output[0]` is the same site.

    Raises:
        SiteError: for a path that is no site of this architecture, that holds several sites, or that has no side.
    """
    plain = _INDEX.sub(r".\1", text)
    match = _SIDE.fullmatch(plain)
    if match is None:
        if _inside(layout, plain) is not None or plain in {tap.path for tap in layout.outside.values()}:
            raise SiteError(f"site {text!r} is a module; write '{text}.output' or '{text}.input'")
        return None
    path, side = match[1], "out" if match[2] else "in"
    names, layer = _sites(layout, path, side)
    if not names and path.startswith("model."):  # the variable of people's own scripts: `model.transformer.h[5]`
        names, layer = _sites(layout, path.removeprefix("model."), side)
    spelt = [name if layer is None else f"{name}.{layer}" for name in names]
    if len(spelt) > 1:
        raise SiteError(f"site {text!r} holds {', '.join(spelt)} together; ask for one of them")
    if spelt:
        return spelt[0]
    known = known_paths(layout, layer or "0")
    raise SiteError(
        f"site {text!r}: no site of this {layout.family} model lies there"
        f"{nearest(plain.replace('.output.0', '.output'), known)}; known: {', '.join(known)}"
    )


def known_paths(layout: Layout, layer: str = "0") -> list[str]:
    """Every module path that names a site, inside the blocks those of one layer."""
    shown = {"in": "input", "out": "output"}
    inside = _taps(layout, layer).values()
    paths = [f"{tap.path}.{shown[tap.side]}" for tap in layout.outside.values() if tap.side in shown]
    paths += [
        ".".join(filter(None, (layout.blocks, layer, tap.path, shown[tap.side]))) for tap in inside if tap.side in shown
    ]
    return list(dict.fromkeys(paths))


def _sites(layout: Layout, path: str, side: str) -> tuple[list[str], str | None]:
    """Names of the sites at one side of a module, and the layer as it was written."""
    found = _inside(layout, path)
    layer, rest = (None, path) if found is None else found
    taps = layout.outside if layer is None else _taps(layout, layer)
    names = [name for name, tap in taps.items() if (tap.path, tap.side) == (rest, side)]
    if not names and layer is not None and side == "in" and rest:
        names = [name for name in ("attn_in", "mlp_in") if name in taps and rest == _reader(layout, taps, name)]
    return names, layer


def _reader(layout: Layout, taps: dict[str, Tap], name: str) -> str | None:
    """The module whose input `attn_in` or `mlp_in` is, by their meaning, wherever the tap is."""
    if name == "attn_in":
        return layout.attention
    inner = taps.get("mlp_pre")  # "mlp.c_fc" lies in "mlp"
    return inner.path.rpartition(".")[0] if inner is not None else None


def _inside(layout: Layout, path: str) -> tuple[str, str] | None:
    """(layer, path below the block) of a module in a block."""
    match = re.fullmatch(rf"{re.escape(layout.blocks)}\.(-?\d+|\*)(?:\.(.+))?", path)
    return None if match is None else (match[1], match[2] or "")


def _taps(layout: Layout, layer: str) -> dict[str, Tap]:
    varied = {} if layer == "*" else layout.varied.get(int(layer) % layout.n_layers, {})
    return {name: tap for name, tap in {**layout.inside, **varied}.items() if tap is not None}
