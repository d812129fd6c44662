"""Generation under edits."""

from __future__ import annotations

import pytest
import torch
from conftest_model import TEXTS, random_model

from hooke.base.errors import ConfigError
from hooke.model.edits import Ablate, Add, Scale, Set
from hooke.model.model import Model

V = torch.randn(32, generator=torch.Generator().manual_seed(0))

EDITS = {
    "everywhere": [Add("resid_post.1", V)],
    "one position": [Add("resid_pre.1", V, scale=5.0, positions=2)],
    "last prompt token": [Add("resid_post.0", V, scale=5.0, positions="last")],
    "prompt": [Scale("mlp_out.1", 3.0, positions="prompt")],
    "generated": [Add("resid_post.1", V, positions="generated")],
    "kept": [Add("resid_post.1", V, positions="kept")],
    "embedding": [Add("embed", V)],
    "a head": [Ablate("z.1.2")],
    "a pattern": [Ablate("pattern.1.0")],
}


@pytest.mark.parametrize("kind", list(EDITS))
def test_cached_generation_equals_running_the_whole_text_again(model: Model, kind):
    """The same edits on prompt + continuation without a cache choose the same tokens."""
    text, n_new = TEXTS[0], 6
    ours = model.generate(text, edits=EDITS[kind], max_new_tokens=n_new, stop_at_end=False).ids[0]
    prompt = model.tokens(text)
    width = prompt.shape[1]
    ids = prompt.ids
    for step in range(n_new):
        columns = torch.arange(ids.shape[1])[None]
        where = {
            "everywhere": columns >= 0,
            "embedding": columns >= 0,
            "a head": columns >= 0,
            "a pattern": columns >= 0,
            "one position": columns == 2,
            "last prompt token": columns == width - 1,
            "prompt": columns < width,
            "generated": columns >= width,
            "kept": columns >= 1,
        }[kind]
        import dataclasses

        edits = [dataclasses.replace(edit, positions=where) for edit in EDITS[kind]]
        logits = model.run(ids, edits=edits).logits[0, -1]
        best = logits.topk(2).values
        assert best[0] - best[1] > 1e-4 or int(logits.argmax()) == int(ours[step])
        assert int(logits.argmax()) == int(ours[step]) or best[0] - best[1] < 1e-4
        ids = torch.cat([ids, ours[step].view(1, 1)], dim=1)


def test_rows_do_not_depend_on_the_batch(model: Model):
    batch = model.generate(TEXTS, edits=EDITS["everywhere"], max_new_tokens=5, stop_at_end=False)
    for row, text in enumerate(TEXTS):
        alone = model.generate(text, edits=EDITS["everywhere"], max_new_tokens=5, stop_at_end=False)
        assert torch.equal(batch.ids[row], alone.ids[0])


def test_sampling_is_seeded():
    model = random_model("llama")
    options = {"max_new_tokens": 12, "temperature": 1.0, "stop_at_end": False}
    first = model.generate("x = ", seed=1, **options).ids
    assert torch.equal(first, model.generate("x = ", seed=1, **options).ids)
    assert not torch.equal(first, model.generate("x = ", seed=2, **options).ids)
    with_others = model.generate(["x = ", "def"], seed=1, **options).ids
    assert torch.equal(with_others[:1], first)


def test_top_p_keeps_the_smallest_set():
    from hooke.model.generate import _choose

    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    generator = [torch.Generator().manual_seed(0)]
    drawn = {int(_choose(logits, 1.0, 0.8, generator)) for _ in range(200)}
    assert drawn == {0, 1}
    assert {int(_choose(logits, 1.0, 0.81, generator)) for _ in range(400)} == {0, 1, 2}


def test_streaming_sees_every_step():
    model = random_model("gpt2")
    steps = []
    generation = model.generate(TEXTS, max_new_tokens=4, on_token=lambda step, ids: steps.append((step, ids.tolist())))
    assert [s for s, _ in steps] == list(range(generation.ids.shape[1]))
    assert torch.tensor([ids for _, ids in steps]).T.tolist() == generation.ids.tolist()


def test_refusals():
    model = random_model("gpt2")
    with pytest.raises(ConfigError, match="exceed the context of 64"):
        model.generate("x" * 30, max_new_tokens=40)
    with pytest.raises(ConfigError, match="temperature -1"):
        model.generate("x", temperature=-1.0)


def test_masks_and_per_position_values_follow_the_prompts_when_they_are_padded_anew():
    model = random_model("llama")
    right, left = (model.tokens(TEXTS, padding_side=side) for side in ("right", "left"))
    plain = model.generate(left, max_new_tokens=5, stop_at_end=False).ids
    own = model.run(right, capture=["resid_pre.1"])["resid_pre.1"]
    assert torch.equal(
        model.generate(right, edits=[Set("resid_pre.1", own)], max_new_tokens=5, stop_at_end=False).ids, plain
    )
    mask = torch.zeros_like(right.mask).scatter(1, right.columns([1, -1]), True)
    by_mask = Add("resid_post.0", V, scale=4.0, positions=mask)
    by_number = Add("resid_post.0", V, scale=4.0, positions=[1, -1])
    ours, theirs = (
        model.generate(right, edits=[edit], max_new_tokens=5, stop_at_end=False).ids for edit in (by_mask, by_number)
    )
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)


@pytest.mark.parametrize("stop", [True, False])
def test_a_row_ends_at_the_end_token_and_the_others_go_on(stop):
    model = random_model("gpt2")
    end = model.tokenizer.eos_token_id
    calls = []

    def push(module, args, out):  # row 1 says the end token at the second step, nobody else ever does
        calls.append(1)
        out[..., end] = -1e9
        if len(calls) == 2:
            out[1, :, end] = 1e9
        return out

    handle = model.hf.lm_head.register_forward_hook(push)
    found = model.generate(TEXTS, max_new_tokens=5, stop_at_end=stop)
    handle.remove()
    assert found.ids[1, 1] == end
    if stop:
        assert found.mask[1].tolist() == [True, True, False, False, False]
        assert found.ids[1, 2:].tolist() == [model.tokenizer.pad_token_id] * 3
        assert found.texts[1] == model.text.decode([int(found.ids[1, 0])])
    else:
        assert found.mask.all()
    assert found.mask[0].all() and found.mask[2].all()
