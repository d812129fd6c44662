"""Whether memory grows with the number of tokens: peak memory at 4 M tokens over that at 1 M, each in a process of its
own.

Run: python benchmarks/memory.py [--json]

Two ways are measured: from a harvest straight into a pool, and from a harvest into a store and from there into a pool.
The model is tiny (random weights, width 16, one id per byte), so that the rows, not the model, are what could grow.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hooke

TARGET = 1.05
SITE = "resid_post.1"


def tiny_model():
    """Two Llama blocks over bytes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from hooke.model.load import load

    vocab = {"<s>": 0, "<pad>": 1, **{c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=300, max_position_embeddings=256, bos_token_id=0, eos_token_id=0, **sizes)
    return load(
        (LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", pad_token="<pad>"))
    )


def work(way: str, n_tokens: int) -> float:
    """Go through the tokens one way; the peak memory of this process in MB."""
    from hooke.data.corpora import Corpus, Document
    from hooke.data.harvest import harvest
    from hooke.data.pool import Pool
    from hooke.data.store import write_store
    from hooke.data.writing import StoreOptions

    def documents() -> Iterator[Document]:
        line = "".join(chr(97 + i * i % 26) for i in range(4000))
        i = 0
        while True:
            yield Document(str(i), line[: 1000 + i * 7919 % 3000])
            i += 1

    model, corpus = tiny_model(), Corpus("endless", documents)
    with tempfile.TemporaryDirectory() as folder:
        if way == "live":
            source = harvest(model, corpus, SITE, n_tokens=n_tokens, batch=64)
        else:
            options = StoreOptions(batch=64, shard_rows=1 << 16)
            source = write_store(Path(folder) / "store", model, corpus, SITE, n_tokens=n_tokens, options=options)
        n = sum(len(rows) for batch in Pool(source, batch=4096, rows=1 << 17) for rows in batch.values())
        assert n == n_tokens
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak(way: str, n_tokens: int) -> float:
    """The peak memory of a fresh process that does this work, in MB."""
    source = str(Path(hooke.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--work", way, "--tokens", str(n_tokens)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main(small: int = 1_000_000, large: int = 4_000_000) -> list[dict]:
    """The rows of the benchmark: peak memory in MB, the larger number of tokens over the smaller."""
    rows = []
    for way in ("live", "store"):
        ours, against = peak(way, large), peak(way, small)
        name = f"peak memory in MB of harvest and pool ({way}), {large:,} tokens against {small:,}"
        ratio = ours / against
        holds = ratio <= TARGET
        rows.append({"name": name, "ours": ours, "against": against, "ratio": ratio, "target": TARGET, "holds": holds})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the rows")
    parser.add_argument("--work", choices=["live", "store"], help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=1_000_000, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(work(options.work, options.tokens))
        raise SystemExit
    results = main()
    for row in results:
        print(f"{row['name']}: {row['ours']:.0f} / {row['against']:.0f}, ratio {row['ratio']:.3f}", end=" ")
        print(f"(at most {row['target']}: {'holds' if row['holds'] else 'does not hold'})")
    if options.json:
        print(json.dumps({"rows": results}))
