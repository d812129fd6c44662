"""The card of the built-in model: what was measured on held-out text, with the page that states data and recipe."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from hooke.base.files import write_json
from hooke.base.progress import SILENT, Sink
from hooke.components.heads import prefix_matching
from hooke.data import corpora
from hooke.evals.language import bits_per_byte, in_context_gain, xz_bits_per_byte
from hooke.model.model import Model

Measured = Mapping[str, float | int | str]


def measure(model: Model, *, sink: Sink = SILENT) -> Measured:
    """Score a language model of Python source on the held-out modules of the standard library.

    Every number comes with its control: xz for the compression, uniform attention for the induction head, an interval
    for the gain in context.
    """
    heldout = corpora.stdlib("heldout")
    sizes = [len(document.text.encode()) for document in heldout]
    ours, theirs = bits_per_byte(model, heldout, sink=sink), xz_bits_per_byte(heldout)
    gain = in_context_gain(model, heldout, n_windows=400)
    scores = prefix_matching(model)
    layer, head, best = scores.best()
    return {
        "bits_per_byte": ours,
        "xz_bits_per_byte": theirs,
        "ratio_to_xz": ours / theirs,
        "heldout_modules": len(sizes),
        "heldout_bytes": sum(sizes),
        "in_context_gain_nats": gain.value,
        "in_context_gain_low": gain.low,
        "in_context_gain_high": gain.high,
        "in_context_windows": gain.n,
        "prefix_matching": best,
        "prefix_matching_head": f"{layer}.{head}",
        "prefix_matching_uniform": scores.uniform,
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }


def write_card(folder: Path, recipe: Mapping[str, float | int], measured: Measured) -> None:
    """Write `measured.json` and the model card `README.md` beside the weights."""
    write_json(folder / "measured.json", dict(measured))
    tokens = int(recipe["steps"]) * int(recipe["rows"]) * int(recipe["context"])
    rows = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
    (folder / "README.md").write_text(_CARD.format(recipe=rows, tokens=tokens / 1e6, **measured), encoding="utf-8")


_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [python-source, interpretability]
---
# hooke/stdlib

A small Llama-shaped language model of Python source, made to be looked into: it opens in a second, runs on a laptop,
and its training text is on every machine that has Python.

**Data.** The source files of CPython's standard library (Python {python}), library modules and their tests, split by
module: about 5 % of the modules, and their tests with them, are held out by a hash of the module's name and were never
seen. Code-page tables (`encodings`) and rendered documentation (`pydoc_data`) are left out. Rows of random tokens
repeated with a random period are mixed in (`repeat_share` below), so that copying from context is exercised off text
too.

**Licence.** The weights are released under Apache-2.0. The text that they were trained on is CPython's, under the
Python Software Foundation License; the model can repeat passages of it.

**Not for** writing code: it has seen one code base, and invents.

## Measured on the held-out modules
| what | value | control |
|---|---|---|
| bits per byte ({heldout_modules} modules, {heldout_bytes:,} bytes) | {bits_per_byte:.4f} \
| {xz_bits_per_byte:.4f} by `xz -9e` |
| ratio to xz | {ratio_to_xz:.3f} | 1 |
| loss at positions 20-50 minus loss at 200-255, nats | {in_context_gain_nats:.3f} \
[{in_context_gain_low:.3f}, {in_context_gain_high:.3f}], n = {in_context_windows} | 0 |
| prefix matching of head {prefix_matching_head}, random period | {prefix_matching:.3f} \
| {prefix_matching_uniform:.3f} by uniform attention |

Documents are scored one by one behind the document mark, in windows of 512 tokens that overlap by half. xz compresses
all of them as one stream.

## Recipe
`hooke train-builtin` with its defaults; {tokens:.1f} M tokens. torch {torch}, CPU, bfloat16 products, float32 weights,
stored as float16.

| setting | value |
|---|---|
{recipe}
"""
