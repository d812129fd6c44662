"""What a harvest costs beside a plain Hugging Face forward that stops at the same layer.

Run: python benchmarks/harvest.py [--json] [--model NAME] [--layer N]

Both do the same batches, turn by turn: ours from text to checked rows (reading, tokenising, packing, forward,
selecting, checking), the plain forward from ready token ids, through a copy of the model from which the later blocks
and the final norm were taken away. A ratio is that of the sums over a window of batches, so that the tokenising of a
group of documents, which falls on one batch, is counted; the figure is the median over windows.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time

import torch
from torch import nn

import hooke.data.corpora as corpora
from hooke.data.harvest import harvest
from hooke.data.packing import pack
from hooke.model.load import load
from hooke.model.model import Model

TARGET = 1.10


def cut_forward(model: Model, layer: int) -> nn.Module:
    """A copy of the Hugging Face model's body that ends after one block: what a person would write by hand."""
    hf = copy.deepcopy(model.hf)
    parent, _, name = model.layout.blocks.rpartition(".")
    blocks = hf.get_submodule(model.layout.blocks)
    setattr(hf.get_submodule(parent), name, nn.ModuleList(list(blocks)[: layer + 1]))
    norm, _, norm_name = model.layout.outside["final_norm"].path.rpartition(".")
    setattr(hf.get_submodule(norm), norm_name, nn.Identity())
    return hf.base_model


def measure(
    model: Model, layer: int, *, windows: int = 11, window: int = 16, batch: int = 16
) -> tuple[float, float, float]:
    """(tokens per second of ours, of the plain forward, median ratio of times)."""
    corpus = corpora.stdlib("train").repeated()
    settings = {"context": 128, "batch": batch}
    cut = cut_forward(model, layer)
    ours = harvest(model, corpus, f"resid_post.{layer}", **settings)
    ready = pack(corpus, model, **settings)
    ratios, ours_rate, plain_rate = [], [], []
    for number in range(windows + 1):
        packed = [next(ready) for _ in range(window)]
        spent = {"ours": 0.0, "plain": 0.0}
        for i, one in enumerate(packed):
            order = ("ours", "plain") if i % 2 else ("plain", "ours")
            for who in order:
                start = time.perf_counter()
                if who == "ours":
                    rows = next(ours).rows
                else:
                    with torch.no_grad():
                        hidden = cut(**model.arguments(one.tokens), use_cache=False).last_hidden_state
                spent[who] += time.perf_counter() - start
            (found,) = rows.values()
            if not torch.equal(found, hidden[one.tokens.keep]):
                raise AssertionError("the two do not compute the same rows")
        if number == 0:
            continue  # warm-up
        tokens = sum(int(one.tokens.keep.sum()) for one in packed)
        ratios.append(spent["ours"] / spent["plain"])
        ours_rate.append(tokens / spent["ours"])
        plain_rate.append(tokens / spent["plain"])
    return statistics.median(ours_rate), statistics.median(plain_rate), statistics.median(ratios)


def main(name: str = "hooke/stdlib", layer: int | None = None) -> list[dict]:
    """The rows of the benchmark: rates in kept tokens per second; the ratio is time over time, smaller is better."""
    model = load(name)
    layer = model.n_layers // 2 - 1 if layer is None else layer
    ours, plain, ratio = measure(model, layer)
    what = f"harvest of resid_post.{layer} of {name} against a Hugging Face forward cut there (time ratio)"
    row = {"name": what, "ours": ours, "against": plain, "ratio": ratio, "target": TARGET, "holds": ratio <= TARGET}
    return [row]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the rows")
    parser.add_argument("--model", default="hooke/stdlib")
    parser.add_argument("--layer", type=int)
    options = parser.parse_args()
    rows = main(options.model, options.layer)
    for row in rows:
        print(f"{row['name']}: {row['ours']:,.0f} / {row['against']:,.0f} tokens/s, ratio {row['ratio']:.3f}", end=" ")
        print(f"(at most {row['target']}: {'holds' if row['holds'] else 'does not hold'})")
    if options.json:
        print(json.dumps({"rows": rows}))
