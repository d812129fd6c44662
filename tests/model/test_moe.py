"""Mixtures of experts: routing and experts recomputed by hand, edits that change the routing, layers that differ."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from conftest_model import _LLAMA, _SMALL, TEXTS, byte_tokenizer
from torch.nn import functional
from transformers import AutoModelForCausalLM, MixtralConfig, PretrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from hooke.base.errors import SiteError
from hooke.model.edits import Add, Set
from hooke.model.load import load
from hooke.model.model import Model

_MOE = {**_LLAMA, "num_key_value_heads": 2}
_QWEN = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24}

MOE_CONFIGS: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**_SMALL, **_MOE, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen2_moe": Qwen2MoeConfig(**_SMALL, **_MOE, **_QWEN, shared_expert_intermediate_size=24, mlp_only_layers=[1]),
    "qwen3_moe": Qwen3MoeConfig(**_SMALL, **_MOE, **_QWEN, head_dim=12, norm_topk_prob=True),
    "qwen3_moe-sparse": Qwen3MoeConfig(**_SMALL, **_MOE, **_QWEN, decoder_sparse_step=2, norm_topk_prob=False),
}
# transformers' default kernel for experts, the first, takes no float64.
KERNELS = {
    torch.float32: ["grouped_mm", "batched_mm", "eager"],
    torch.bfloat16: ["grouped_mm", "batched_mm", "eager"],
    torch.float64: ["eager", "batched_mm"],
}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
CLOSE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}  # sums of about 100 terms of size about 1


@functools.cache
def random_moe(name: str, dtype: torch.dtype = torch.float32, kernel: str | None = None) -> Model:
    torch.manual_seed(len(name))
    kernel = kernel or KERNELS[dtype][0]
    hf = AutoModelForCausalLM.from_config(MOE_CONFIGS[name], experts_implementation=kernel)
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return load((hf.to(dtype), byte_tokenizer()))


@pytest.fixture(params=list(MOE_CONFIGS))
def name(request):
    return request.param


def sparse_layers(model: Model) -> list[int]:
    return [layer for layer in range(model.n_layers) if model.layout.has("router_logits", layer)]


def routed(model: Model, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and numbers of the chosen experts, from the router's scores; the families do this in float32."""
    config = model.hf.config
    shares = logits.float().softmax(-1)
    weights, chosen = shares.topk(config.num_experts_per_tok, dim=-1)
    if model.family == "mixtral" or config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.double(), chosen


def experts_by_hand(model: Model, layer: int, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor):
    """Each chosen expert's weighted output, token by token, in float64."""
    experts = model.hf.model.layers[layer].mlp.experts
    out = torch.zeros(*chosen.shape, model.d_model, dtype=torch.float64)
    for at in itertools.product(*map(range, chosen.shape)):
        token = at[:-1]
        gate, up = (experts.gate_up_proj[chosen[at]].double() @ x[token].double()).chunk(2)
        out[at] = weights[at] * (experts.down_proj[chosen[at]].double() @ (functional.silu(gate) * up))
    return out


@pytest.mark.parametrize(("dtype", "kernel"), [(dtype, kernel) for dtype in DTYPES for kernel in KERNELS[dtype]])
def test_nothing_changes_without_edits(name, dtype, kernel):
    model = random_moe(name, dtype, kernel)
    for side in ("left", "right"):
        tokens = model.tokens(TEXTS, padding_side=side)
        with torch.no_grad():
            expected = model.hf(**model.arguments(tokens), use_cache=False).logits
        run = model.run(tokens, capture=["router_logits.*", "expert_out.*", "mlp_out.*", "resid_post.*"])
        assert torch.equal(run.logits, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_routing_and_experts_equal_recomputation(name, dtype):
    model = random_moe(name, dtype)
    run = model.run(TEXTS[0], capture=["mlp_in.*", "router_logits.*", "expert_out.*", "mlp_out.*"])
    for layer in sparse_layers(model):
        mlp = model.hf.model.layers[layer].mlp
        x, logits, out = (run[f"{site}.{layer}"] for site in ("mlp_in", "router_logits", "expert_out"))
        assert torch.equal(logits, functional.linear(x, mlp.gate.weight))
        assert logits.shape == (*x.shape[:2], model.layout.n_experts)
        by_hand = experts_by_hand(model, layer, x, *routed(model, logits))
        torch.testing.assert_close(out.double(), by_hand, atol=CLOSE[dtype], rtol=CLOSE[dtype])
        total = by_hand.sum(-2)
        if model.family == "qwen2_moe":
            shared, switch = mlp.shared_expert.double(), mlp.shared_expert_gate.double()
            total = total + switch(x.double()).sigmoid() * shared(x.double())
            mlp.to(dtype)
        torch.testing.assert_close(run[f"mlp_out.{layer}"].double(), total, atol=2 * CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_writing_any_site_back_changes_nothing(name, dtype):
    model = random_moe(name, dtype)
    run = model.run(TEXTS, capture=[str(i.site) for i in model.sites() if i.site.name not in ("scores", "pattern")])
    edits = [Set(site, value) for site, value in run.acts.items()]
    assert torch.equal(model.run(TEXTS, edits=edits).logits, run.logits)
    for edit in edits if dtype == torch.float32 else []:
        assert torch.equal(model.run(TEXTS, edits=[edit]).logits, run.logits), edit.site


def test_edited_router_logits_route_as_if_the_router_had_given_them(name):
    """Against a router whose weights give these scores: for a prompt of one token, any scores are within its reach."""
    model = random_moe(name)
    tokens = model.tokens("x", bos=False)
    layer = sparse_layers(model)[0]
    gate = model.hf.model.layers[layer].mlp.gate
    sites = [f"router_logits.{layer}", f"expert_out.{layer}"]
    run = model.run(tokens, capture=[f"mlp_in.{layer}", sites[0]])
    x, old = run[f"mlp_in.{layer}"][0, 0], run[sites[0]][0, 0]
    wanted = -old
    assert routed(model, wanted)[1].tolist() != routed(model, old)[1].tolist()  # other experts are chosen
    edited = model.run(tokens, edits=[Set(sites[0], wanted)], capture=sites)
    assert torch.equal(edited[sites[0]][0, 0], wanted)
    by_hand = experts_by_hand(model, layer, x, *routed(model, wanted))
    torch.testing.assert_close(edited[sites[1]][0, 0].double(), by_hand, atol=2e-5, rtol=1e-4)
    kept = gate.weight.clone()
    try:
        with torch.no_grad():
            gate.weight += torch.outer(wanted - old, x) / (x @ x)
        reference = model.run(tokens, capture=sites)
    finally:
        with torch.no_grad():
            gate.weight.copy_(kept)
    torch.testing.assert_close(reference[sites[0]][0, 0], wanted, atol=1e-5, rtol=1e-5)  # the reference is as meant
    assert (reference.logits - run.logits).abs().max() > 1e-3
    torch.testing.assert_close(edited.logits, reference.logits, atol=5e-5, rtol=1e-4)


def test_a_large_score_makes_an_expert_the_first_choice(name):
    model = random_moe(name)
    layer = sparse_layers(model)[-1]
    push = torch.zeros(model.layout.n_experts)
    push[2] = 50.0
    run = model.run(
        TEXTS[0], edits=[Add(f"router_logits.{layer}", push)], capture=[f"mlp_in.{layer}", f"expert_out.{layer}"]
    )
    x = run[f"mlp_in.{layer}"]
    weights, chosen = torch.ones(*x.shape[:2], 1, dtype=torch.float64), torch.full((*x.shape[:2], 1), 2)
    alone = experts_by_hand(model, layer, x, weights, chosen)  # its weight is 1 to within exp(-40)
    torch.testing.assert_close(run[f"expert_out.{layer}"][:, :, :1].double(), alone, atol=2e-5, rtol=1e-4)
    if not model.hf.config.to_dict().get("norm_topk_prob", True):
        assert run[f"expert_out.{layer}"][:, :, 1:].abs().max() < 1e-6


def test_dropping_one_choice_equals_a_hook_on_the_experts(name):
    model = random_moe(name)
    layer = sparse_layers(model)[0]
    run = model.run(TEXTS[0], capture=[f"expert_out.{layer}"])
    value = run[f"expert_out.{layer}"].clone()
    value[:, :, 1] = 0.0
    edited = model.run(TEXTS[0], edits=[Set(f"expert_out.{layer}", value)])

    def without(module, args):
        tokens, chosen, weights = args
        weights = weights.clone()
        weights[:, 1] = 0.0
        return tokens, chosen, weights

    handle = model.hf.model.layers[layer].mlp.experts.register_forward_pre_hook(without)
    with torch.no_grad():
        expected = model.hf(model.tokens(TEXTS[0]).ids).logits
    handle.remove()
    assert (expected - run.logits).abs().max() > 1e-3
    torch.testing.assert_close(edited.logits, expected, atol=1e-5, rtol=1e-5)


def test_padding_does_not_matter(name):
    model = random_moe(name)
    sites = ["router_logits.*", "expert_out.*", "resid_post.*"]
    runs = [model.run(model.tokens(TEXTS, padding_side=side), capture=sites) for side in ("left", "right")]
    for row, text in enumerate(TEXTS):
        alone = model.run(text, capture=sites)
        for run in runs:
            mask = run.tokens.mask[row]
            for site in alone.acts:
                torch.testing.assert_close(run[site][row][mask], alone[site][0], atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_router(name):
    model = random_moe(name)
    layer = sparse_layers(model)[0]
    nudge = torch.zeros(model.layout.n_experts, requires_grad=True)
    run = model.run("x = 1", edits=[Add(f"router_logits.{layer}", nudge)], gradients=True)
    run.logits[0, -1, 7].backward()
    assert nudge.grad is not None and nudge.grad.abs().max() > 0
    step = torch.zeros_like(nudge)
    step[0] = 1e-3
    up, down = (model.run("x = 1", edits=[Add(f"router_logits.{layer}", s)]).logits[0, -1, 7] for s in (step, -step))
    assert abs(float(up - down) / 2e-3 - float(nudge.grad[0])) < 5e-3


def test_layers_without_experts_are_dense():
    model = random_moe("qwen2_moe")
    assert [i.site.layer for i in model.sites() if i.site.name == "router_logits"] == [0, 2]
    assert [i.site.layer for i in model.sites() if i.site.name == "mlp_post"] == [1]
    assert model.run("x", capture="mlp_post.1")["mlp_post.1"].shape[-1] == model.d_mlp == 48
    with pytest.raises(SiteError, match=r"'expert_out\.1' does not exist in layer 1 .* dense MLP and no experts"):
        model.site("expert_out.1")
    with pytest.raises(SiteError, match=r"'mlp_post\.0' does not exist in layer 0 .* see expert_out"):
        model.site("mlp_post.0")
    with pytest.raises(SiteError, match="see expert_out"):
        random_moe("mixtral").site("mlp_pre.0")
