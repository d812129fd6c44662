"""Folded weights: every rewrite is proven by running a copy of the model with the rewritten weights in it."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from conftest_model import CONFIGS, random_model
from conftest_weights import MORE_CONFIGS, model_of, noisy, text_for
from torch import nn

from hooke.base.errors import ConfigError
from hooke.model.families.derived import epsilon
from hooke.model.toy.make import toy
from hooke.model.weights import folding
from hooke.model.weights.folding import FoldedWeights, Rewrites
from hooke.model.weights.views import Weights

NAMES = ("fold_norm", "centre_writing", "centre_unembed", "fold_value_bias")
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}
NAMED = ("gpt2", "gpt_neox", "llama-gqa", "gemma", "qwen3", "opt", "phi3")  # these in float32 as well
# The eager attention of BLOOM takes its softmax in float32, whatever the model's precision.
FLOAT32_INSIDE = {"bloom": 1e-6}


def only(*names: str) -> Rewrites:
    return Rewrites(**{name: name in names for name in NAMES})


def allowed(raw: Weights) -> list[str]:
    """Rewrites that are not refused for this model."""
    return [name for name in NAMES if folding._REASONS[name](raw) is None]


def log_probs(hf, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return hf(ids, use_cache=False).logits.log_softmax(-1)


def moved(model, folded: FoldedWeights) -> float:
    """Largest change of a log-probability when the rewritten weights run in place of the model's own."""
    ids = model.tokens(text_for(model)).ids
    return (log_probs(folded.into_copy(), ids) - log_probs(model.hf, ids)).abs().max().item()


@pytest.fixture
def exact_norms(monkeypatch):
    """Lets RMSNorms compute in the precision of their input: transformers' own round to float32 in between."""

    def patch(model) -> None:
        for module in model.hf.modules():
            if not type(module).__name__.endswith("RMSNorm") or type(module) is nn.RMSNorm:
                continue

            def forward(self, x, offset=model.layout.gain_offset):
                return x * (x.pow(2).mean(-1, keepdim=True) + epsilon(self)).rsqrt() * (self.weight + offset)

            monkeypatch.setattr(type(module), "forward", forward)

    return patch


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((name, torch.float64) for name in (*CONFIGS, *MORE_CONFIGS)), *((name, torch.float32) for name in NAMED)],
)
def test_each_rewrite_and_all_together_leave_log_probs_alone(family, dtype, exact_norms):
    model = model_of(family, dtype)
    raw = Weights(model)
    names = allowed(raw)
    assert "fold_value_bias" in names
    if dtype == torch.float64:
        exact_norms(model)
    limit = max(LIMITS[dtype], FLOAT32_INSIDE.get(family, 0) if dtype == torch.float64 else 0)
    for chosen in (*([name] for name in names), names):
        assert moved(model, FoldedWeights(raw, only(*chosen))) < limit, chosen


EXPECTED_REFUSALS = {
    "gpt2": set(),
    "gpt_neox": set(),
    "opt": set(),
    "stablelm-parallel": set(),
    "bloom": set(),
    "opt-postnorm": {"fold_norm", "centre_writing"},
    "llama-gqa": {"centre_writing"},
    "qwen3": {"centre_writing"},
    "phi3": {"centre_writing"},
    "olmo2": {"centre_writing"},
    "gemma": {"centre_writing"},
    "gemma3_text": {"centre_writing"},
    "gemma2": {"centre_writing", "centre_unembed"},
    "mixtral": {"centre_writing"},
    "qwen2_moe": {"centre_writing"},
    "bert": {"fold_norm", "centre_writing"},
    "roberta": {"fold_norm", "centre_writing"},
    "gemma3": {"centre_writing"},
}


@pytest.mark.parametrize("family", EXPECTED_REFUSALS)
def test_what_is_refused(family):
    raw = Weights(model_of(family))
    assert set(NAMES) - set(allowed(raw)) == EXPECTED_REFUSALS[family]
    for name in EXPECTED_REFUSALS[family]:
        with pytest.raises(ConfigError, match=f"pass {name}=False"):
            raw.folded()


SMALL = {"n_layers": 2, "d_model": 16, "n_heads": 2}
TOYS = {
    "layer": ({}, set()),
    "rms": ({"norm": "rms", "positions": "rotary", "gated": True}, {"centre_writing"}),
    "none": ({"norm": "none"}, {"fold_norm", "centre_writing"}),
    "final only": ({"norm": "none", "final_norm": "layer"}, {"centre_writing"}),
    "final rms": ({"norm": "layer", "final_norm": "rms"}, {"centre_writing"}),
    "no final": ({"norm": "layer", "final_norm": "none"}, {"fold_norm", "centre_writing"}),
    "attention only": ({"attention_only": True}, set()),
    "parallel": ({"parallel": True, "positions": "rotary"}, set()),
    "shortformer": ({"positions": "shortformer"}, {"fold_norm", "centre_writing"}),
    "encoder": ({"causal": False}, set()),
    "two vocabularies": ({"vocab_out": 11}, set()),
}


@pytest.mark.parametrize("kind", TOYS)
def test_every_switch_of_the_toy_is_folded_exactly_or_refused(kind):
    switches, refused = TOYS[kind]
    model = noisy(toy(**SMALL, **switches))
    raw = Weights(model)
    names = allowed(raw)
    assert set(NAMES) - set(names) == refused
    for chosen in (*([name] for name in names), names):
        assert moved(model, FoldedWeights(raw, only(*chosen))) < 1e-10, chosen


def test_encoders_would_not_be_centred_by_centring_what_is_written(monkeypatch):
    """Their norms take each sum's mean away and bring their own back: nothing changes, nothing is gained."""
    model = model_of("bert")
    monkeypatch.setattr(folding, "refuse_wrong_rewrites", lambda raw, rewrites: None)
    folded = FoldedWeights(Weights(model), only("centre_writing"))
    assert moved(model, folded) < 1e-10
    assert model.run(text_for(model), capture=["resid_post.1"])["resid_post.1"].mean(-1).abs().max() > 1e-2


HARMLESS = {("bert", "centre_writing"), ("roberta", "centre_writing")}
REFUSED = [
    (family, name)
    for family, names in EXPECTED_REFUSALS.items()
    for name in sorted(names)
    if (family, name) not in HARMLESS
]
REFUSED_TOYS = [(kind, name) for kind, (_, names) in TOYS.items() for name in sorted(names)]


@pytest.mark.parametrize(("family", "name"), [*REFUSED, *REFUSED_TOYS])
def test_what_is_refused_would_have_been_wrong(family, name, monkeypatch):
    """Done all the same, each refused rewrite moves log-probabilities, or has nothing that it could fold."""
    model = noisy(toy(**SMALL, **TOYS[family][0])) if family in TOYS else model_of(family)
    monkeypatch.setattr(folding, "refuse_wrong_rewrites", lambda raw, rewrites: None)
    folded = FoldedWeights(Weights(model), only(name))
    if name == "fold_norm" and not model.layout.has("final_norm", None):
        with pytest.raises(Exception, match="final_norm_gain"):
            folded.W_U  # noqa: B018
    else:
        assert moved(model, folded) > 1e-3


def test_bloom_that_adds_its_normed_stream_is_refused():
    model = random_model("bloom")
    hf = copy.deepcopy(model.hf)
    hf.config.apply_residual_connection_post_layernorm = True
    with pytest.raises(ConfigError, match="normed stream is added on"):
        Weights(SimpleNamespace(hf=hf, layout=model.layout)).folded()


@pytest.mark.parametrize(("name", "says"), [("v_norm", "values are normed"), ("sinks", "attention sinks")])
def test_attention_whose_values_cannot_be_folded_is_refused(name, says):
    model = random_model("llama")
    hf = copy.deepcopy(model.hf)
    setattr(hf.model.layers[2].self_attn, name, nn.Parameter(torch.ones(4)))
    raw = Weights(SimpleNamespace(hf=hf, layout=model.layout))
    with pytest.raises(ConfigError, match=says):
        raw.folded(centre_writing=False)


# -- controls: a wrong fold is seen -----------------------------------------------------------------------------------


def test_a_gain_without_its_offset_moves_log_probs():
    model = random_model("gemma", torch.float64)
    wrong = dataclasses.replace(model.layout, gain_offset=0.0)
    folded = Weights(SimpleNamespace(hf=model.hf, layout=wrong)).folded(centre_writing=False, dtype=torch.float64)
    assert moved(model, folded) > 1e-2


class _Spoiled(FoldedWeights):
    """Folded weights, one name of which is left raw."""

    left_raw = ""

    def _rewritten(self, name, layer):
        return self._raw(name, layer) if name == self.left_raw else super()._rewritten(name, layer)


@pytest.mark.parametrize(
    ("family", "rewrite", "left_raw"),
    [
        *(("gpt2", "fold_norm", name) for name in ("W_Q", "b_Q", "W_K", "W_V", "b_V", "W_in", "b_in", "W_U", "b_U")),
        ("llama-gqa", "fold_norm", "W_gate"),
        ("phi", "fold_norm", "W_in"),
        ("gpt2", "fold_value_bias", "b_O"),
        ("gpt2", "fold_value_bias", "b_V"),
        ("qwen2", "fold_value_bias", "b_O"),
    ],
)
def test_each_part_of_a_rewrite_matters(family, rewrite, left_raw, monkeypatch):
    model = random_model(family, torch.float64)
    monkeypatch.setattr(_Spoiled, "left_raw", left_raw)
    assert moved(model, _Spoiled(Weights(model), only(rewrite))) > 1e-3


def test_a_centred_bias_without_its_matrix_moves_log_probs():
    """W_U centred along d_model instead of the vocabulary."""
    model = random_model("llama", torch.float64)
    folded = FoldedWeights(Weights(model), only("centre_unembed"))
    hf = folded.into_copy()
    W_U = model.hf.lm_head.weight.detach()
    hf.lm_head.weight = nn.Parameter(W_U - W_U.mean(1, keepdim=True))
    ids = model.tokens(text_for(model)).ids
    assert (log_probs(hf, ids) - log_probs(model.hf, ids)).abs().max() > 1e-3


# -- what the result is ------------------------------------------------------------------------------------------------


def test_folded_weights_have_the_properties_that_the_rewrites_promise():
    folded = Weights(random_model("gpt2")).folded(dtype=torch.float64)
    for layer in range(3):
        for written in (folded.W_O[layer], folded.W_out[layer], folded.b_O[layer], folded.b_out[layer]):
            assert written.mean(-1).abs().max() < 1e-12
        assert not folded.b_V[layer].any()
        assert torch.equal(folded.attn_norm_gain[layer], torch.ones(32, dtype=torch.float64))
        assert not folded.mlp_norm_bias[layer].any()
    assert folded.W_E.mean(-1).abs().max() < 1e-12 and folded.W_pos.mean(-1).abs().max() < 1e-12
    assert folded.W_U.mean(-1).abs().max() < 1e-12 and abs(folded.b_U.mean()) < 1e-12
    assert torch.equal(folded.final_norm_gain, torch.ones(32, dtype=torch.float64))


def test_folding_twice_changes_nothing_more():
    model = random_model("gpt_neox", torch.float64)
    once = Weights(model).folded()
    again = Weights(SimpleNamespace(hf=once.into_copy(), layout=model.layout)).folded()
    for name in once:
        torch.testing.assert_close(again[name], once[name], atol=1e-12, rtol=0)


def test_the_model_is_left_as_it_is_and_tied_embeddings_are_apart():
    model = random_model("gpt2")
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    raw = Weights(model)
    assert raw.W_E.data_ptr() == raw.W_U.data_ptr()  # tied
    folded = raw.folded()
    hf = folded.into_copy()
    assert hf.get_input_embeddings().weight.data_ptr() != hf.get_output_embeddings().weight.data_ptr()
    assert not torch.equal(folded.W_E, folded.W_U.T)
    hf.tie_weights()  # as saving and loading would
    torch.testing.assert_close(hf.get_output_embeddings().weight.T, folded.W_U)
    after = model.hf.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before) and after.keys() == before.keys()


@pytest.mark.parametrize("rewrite", NAMES)
def test_a_copy_differs_where_the_rewrite_says_and_nowhere_else(rewrite):
    """What the rewritten numbers change is what is written; the rest stays bit for bit."""
    model = random_model("gpt2", torch.float64)
    raw = Weights(model)
    folded = FoldedWeights(raw, only(rewrite))
    written = Weights(SimpleNamespace(hf=folded.into_copy(), layout=model.layout))
    for name in raw:
        torch.testing.assert_close(written[name], folded[name], atol=1e-15, rtol=0)
        if name == "b_U":
            continue  # zeros may stay zeros
        changed = name.split(".")[0] in folding._CHANGED[rewrite]
        assert torch.equal(folded[name], raw[name]) != changed, name
        assert changed or torch.equal(written[name], raw[name]), name


def test_the_result_says_what_was_done_and_is_a_mapping():
    model = random_model("gpt2", torch.bfloat16)
    folded = Weights(model).folded(fold_value_bias=False)
    assert repr(folded) == "FoldedWeights(gpt2, rewritten: fold_norm, centre_writing, centre_unembed; bfloat16)"
    tensors = dict(folded)
    assert set(tensors) == set(Weights(model)) and all(t.dtype == torch.bfloat16 for t in tensors.values())
    assert torch.equal(tensors["W_Q.2"], folded.W_Q[2])
    assert Weights(model).folded(dtype=torch.float64).W_Q[0].dtype == torch.float64
    olmo = Weights(random_model("olmo2")).folded(centre_writing=False)
    assert any("only the final norm" in note for note in olmo.notes)
    assert any("keep their gains" in note for note in olmo.notes)
    mixed = Weights(model_of("qwen2_moe")).folded(centre_writing=False)
    assert any("layers 0, 2, where router" in note for note in mixed.notes)
    assert torch.equal(mixed.mlp_norm_gain[2], mixed.raw.mlp_norm_gain[2]) and mixed.mlp_norm_gain[1].eq(1).all()
    assert any("behind W_E" in note for note in Weights(random_model("bloom")).folded().notes)


def test_circuits_of_folded_weights_are_folded():
    folded = Weights(random_model("llama-gqa", torch.float64)).folded(centre_writing=False)
    expected = folded.W_V[1][1] @ folded.W_O[1][3]
    torch.testing.assert_close(folded.OV(1, 3).dense(), expected, atol=1e-12, rtol=1e-12)
    raw = folded.raw.OV(1, 3).dense()
    gained = folded.raw.attn_norm_gain[1][:, None] * raw
    torch.testing.assert_close(folded.OV(1, 3).dense(), gained, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(raw, gained)
