"""What a capture holds is at most what was stated before the run, in every precision, storage counted as it lies."""

from __future__ import annotations

import pytest
import torch
from conftest_model import TEXTS, random_model

from hooke.model.model import Model
from hooke.model.sites import HEAD_SITES


def held(model: Model, tokens, sites, at) -> int:
    acts = model.run(tokens, capture=sites, at=at).acts.values()
    storages = {act.untyped_storage().data_ptr(): act.untyped_storage().nbytes() for act in acts}
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [None, (0, -1)])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gptj", "bloom", "falcon", "phi3", "gemma2", "llama-gqa"])
def test_no_capture_holds_more_than_stated(family, at, dtype):
    model = random_model(family, dtype)
    tokens = model.tokens(TEXTS)
    sites = [info.site for info in model.sites() if info.site.layer in (1, None)]
    names = [str(site) for site in sites] + [f"{site}.0" for site in sites if site.name in HEAD_SITES]
    for name in names:
        assert held(model, tokens, name, at) <= model.capture_bytes(tokens, name, at=at), name
    assert held(model, tokens, names, at) <= model.capture_bytes(tokens, names, at=at)


def test_parts_of_one_tensor_are_counted_once():
    model = random_model("gpt2")
    tokens = model.tokens(TEXTS)
    assert model.capture_bytes(tokens, "q.1") == model.capture_bytes(tokens, ["q.1", "k.1", "v.1"])
    assert held(model, tokens, "q.1", None) == model.capture_bytes(tokens, "q.1")
    assert held(model, tokens, "q.1.2", None) == model.capture_bytes(tokens, "q.1.2") == tokens.ids.numel() * 8 * 4


@pytest.mark.parametrize("head", ["", ".2"])
@pytest.mark.parametrize("name", ["pattern.1", "q_rot.1", "z.1"])
def test_positions_that_are_kept_are_those_asked_for(name, head):
    """Of maps, the queries."""
    model = random_model("llama-gqa")
    tokens = model.tokens(TEXTS, padding_side="left")
    whole, kept = (model.run(tokens, capture=name + head, at=at)[name + head] for at in (None, (1, -1)))
    for row, start in enumerate(tokens.starts.tolist()):
        columns = [start + 1, tokens.shape[1] - 1]
        of_row = whole[row].transpose(0, 1) if name == "pattern.1" and not head else whole[row]
        kept_row = kept[row].transpose(0, 1) if name == "pattern.1" and not head else kept[row]
        assert torch.equal(kept_row, of_row[columns])
