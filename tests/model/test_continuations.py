"""Log-probabilities of given continuations."""

from __future__ import annotations

import pytest
import torch
from conftest_model import TEXTS, random_model

from hooke.base.errors import ConfigError, DataError
from hooke.model.edits import Ablate, Add, Edit, Scale
from hooke.model.generation.continuations import score

FAMILIES = ("gpt2", "llama-gqa", "mistral-window", "gemma3_text", "bloom", "gpt_neox", "opt")
CHOICES = [" yes", "n", " a longer answer"]


def one_forward(model, prompt: str, ids: list[int], edits: list[Edit]) -> torch.Tensor:
    """From one forward over the whole text; `edits` in terms of the whole text."""
    start = model.tokens(prompt).ids[0].tolist()
    logits = model.run(torch.tensor([start + ids]), edits=edits).logits[0]
    return logits.log_softmax(-1)[len(start) - 1 : -1].gather(-1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_one_forward_over_each_text(family, dtype):
    model = random_model(family, dtype)
    # Without SDPA, transformers' attention over padding is NaN in float64.
    texts = ["abc", "x =", "def"] if family == "bloom" else TEXTS
    edits = [Scale("resid_post.1", 1.3), Ablate("z.1.2"), Add("embed", torch.full((model.d_model,), 0.2))]
    for own in ([], edits):
        found = model.score(texts, CHOICES, edits=own)
        assert found.prompt.tolist() == [p for p in range(3) for _ in CHOICES]
        for row in range(9):
            ids = model.tokenizer(CHOICES[row % 3], add_special_tokens=False)["input_ids"]
            assert found.ids[row][found.mask[row]].tolist() == ids
            expected = one_forward(model, texts[row // 3], ids, own)
            # Float64 models round norms and softmaxes to float32, where the family does; GPT-2 does not.
            tolerance = 2e-5 if dtype == torch.float32 else 1e-12 if family == "gpt2" else 1e-6
            assert torch.allclose(found.logprobs[row][found.mask[row]], expected, atol=tolerance, rtol=tolerance)
            assert torch.allclose(found.sums[row], expected.sum(), atol=10 * tolerance, rtol=0)
            assert torch.allclose(found.means[row], expected.mean(), atol=tolerance, rtol=1e-5)
        assert torch.equal(found.logprobs.isnan(), ~found.mask)


def test_edits_by_position_and_by_prompt():
    """Positions are the prompt's; generated tokens are the continuation; one list for each prompt."""
    model = random_model("gpt2", torch.float64)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
    edits = [
        [Add("resid_post.0", vector, positions="last")],
        [Scale("k.1", 0.3, positions="generated"), Add("resid_pre.1", vector, positions=0)],
    ]
    found = model.score(TEXTS[:2], [["ab", "xyz"], ["ab"]], edits=edits)
    width = [len(model.tokens(text).ids[0]) for text in TEXTS]
    for row, (prompt, text) in enumerate([(0, "ab"), (0, "xyz"), (1, "ab")]):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        columns = torch.arange(width[prompt] + len(ids))[None]
        whole = [
            [Add("resid_post.0", vector, positions=width[0] - 1)],
            [Scale("k.1", 0.3, positions=columns >= width[1]), Add("resid_pre.1", vector, positions=0)],
        ][prompt]
        expected = one_forward(model, TEXTS[prompt], ids, whole)
        assert torch.allclose(found.logprobs[row, : len(ids)], expected, atol=1e-12, rtol=0)
    assert found.prompt.tolist() == [0, 0, 1]
    assert found.of(0).tolist() == [0, 1]


def test_a_sampled_continuation_has_the_score_that_it_was_sampled_with():
    model = random_model("llama-gqa", torch.float64)
    edits = [Scale("mlp_out.1", 2.0), Add("resid_post.0", torch.ones(32).double(), positions="generated")]
    out = model.generate(TEXTS, edits=edits, max_new_tokens=7, temperature=1.0, logprobs=True, stop_at_end=False)
    found = model.score(TEXTS, [[ids.tolist()] for ids in out.ids], edits=edits)
    assert torch.allclose(found.logprobs, out.logprobs, atol=1e-6, rtol=0)


def test_every_next_token_together_has_probability_one():
    model = random_model("gpt2", torch.float64)
    found = model.score("x", [[i] for i in range(model.d_vocab)])
    assert torch.allclose(found.sums.exp().sum(), torch.ones((), dtype=torch.float64), atol=1e-12)


def test_the_prompt_runs_once_and_the_rest_in_parts():
    model = random_model("gpt2", torch.float64)
    widths = []
    handle = model.hf.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        whole = model.score(TEXTS, CHOICES)
        assert widths == [(3, 27), (9, 15)]
        widths.clear()
        parts = score(model, TEXTS, CHOICES, logit_bytes=4 * 8 * 300 * 15 * 2)  # two rows a pass
        assert widths == [(3, 27), *[(2, 15)] * 4, (1, 15)]
        widths.clear()
        model.score(TEXTS, ["a", "b"])
        assert widths == [(3, 27)]  # one token needs no second pass
    finally:
        handle.remove()
    assert torch.allclose(whole.logprobs, parts.logprobs, atol=1e-12, rtol=0, equal_nan=True)


def test_a_text_is_tokenised_by_itself():
    model = random_model("gpt2")
    by_text, by_ids = model.score("ab", ["cd"]), model.score("ab", [model.tokenizer("cd")["input_ids"][1:]])
    assert torch.equal(by_text.logprobs, by_ids.logprobs)
    assert torch.equal(by_text.logprobs, model.score("ab", [by_ids.ids[0]]).logprobs)


@pytest.mark.parametrize(
    ("continuations", "error", "words"),
    [
        (["a", ""], DataError, "continuation 1 of prompt 0 is empty"),
        ([["a"], [[]], ["b"]], DataError, "continuation 0 of prompt 1 is empty"),
        ([["a"], [], ["b"]], DataError, "prompt 1 has no continuation"),
        ("yes", DataError, "continuations are a list"),
        ([], DataError, "continuations are a list"),
        ([["a"], ["b"]], DataError, "one list for each of the 3 prompts; got 2 entries"),
        ([["a"], "b", "c"], DataError, "2 of them single"),
        ([[5, 300]], DataError, "has the id 300; the model knows 0 to 299"),
        (["x" * 40], ConfigError, "27 prompt tokens . 40 new ones exceed the context of 64"),
    ],
)
def test_refusals(continuations, error, words):
    with pytest.raises(error, match=words):
        random_model("gpt2").score(TEXTS, continuations)
