"""Packed passes at their edges: one token alone, places that nobody reads, queries and keys alone."""

import pytest
import torch
from conftest_model import random_model
from test_sweep_edges import check

from hooke.dictionaries.activations.topk import TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.model.edits import Scale, Splice


@pytest.mark.parametrize("name", ["z", "result", "attn_out", "mlp_out", "mlp_in"])
def test_a_chunk_of_one_token_keeps_its_attention(name):
    model = random_model("llama-gqa", torch.float64)
    sets = [[Scale(f"{name}.{n}", 0.5, positions="last")] for n in range(3)]
    check(model, model.tokens("abcdef"), sets, memory=1)


def test_a_dictionary_at_z_where_nothing_is_read():
    model = random_model("gpt2", torch.float64)
    dictionary = Dictionary(32, 20, activation=TopK(k=4), seed=3).double()
    check(model, model.tokens("abcdef"), [[Splice("z.2", dictionary, positions=[1])]])


@pytest.mark.parametrize("site", ["q_rot.1", "k_rot.0.1"])
def test_turned_queries_and_keys_stay_on_the_kernel(site):
    model = random_model("gemma2", torch.float64, "eager")
    check(model, model.batch([[2, 3, 4, 5, 6, 7]]), [[Scale(site, 0.5, positions=[2])]])
