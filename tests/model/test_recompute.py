"""Every captured site equals a recomputation from the module's weights, for every family and precision.

The recomputation is written here, from the papers and the modules' weights, in float64, and knows nothing of the
library's maps: `conftest_anatomy` says where each family keeps what. Each site is worked out from the captured sites
before it, so one step's rounding does not add to the next one's.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest_anatomy import Anatomy, allowed, anatomy, dense, normed, turned
from conftest_model import CASES, random_model
from torch import Tensor, nn

from hooke.model.model import Model
from hooke.model.run import Run

# Largest error, as a share of the largest entry (or of 1) of the tensor.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2}
# What transformers computes in float32 whatever the model's precision: RMSNorm, the rotary table, Gemma's embedding
# scale, BLOOM's slopes and softmax, scores of GPT-Neo and GPT-J. In a float64 model they carry float32's rounding.
FLOAT32_INSIDE = 2e-6
IDS = torch.arange(24).reshape(2, 12) * 17 % 290 + 5


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))


def attention_errors(run: Run, body: Anatomy, block: nn.Module, layer: int) -> dict[str, float]:
    """From `attn_in` to the output projection."""
    got = {name: run[f"{name}.{layer}"] for name in ("q", "k", "v", "z", "scores", "pattern", "result")}
    found = {
        name: error(got[name], value)
        for name, value in zip("qkv", body.qkv(block, run[f"attn_in.{layer}"]), strict=True)
    }
    q, k = got["q"], got["k"]
    if body.rotate is not None:
        heads = {"q": q, "k": k}
        if body.qk_norm is not None:
            heads = {name: body.qk_norm(block, name, x) for name, x in heads.items()}
        q, k = run[f"q_rot.{layer}"], run[f"k_rot.{layer}"]
        found["q_rot"] = error(q, turned(heads["q"], *body.rotate(layer)))
        found["k_rot"] = error(k, turned(heads["k"], *body.rotate(layer)))
    n_heads, n = q.shape[2], q.shape[1]
    k = k.repeat_interleave(n_heads // k.shape[2], dim=2)
    scale = q.shape[-1] ** -0.5 if body.scale is None else body.scale(layer)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * scale
    if body.softcap is not None:
        scores = body.softcap * torch.tanh(scores / body.softcap)
    if body.bias is not None:
        scores = scores + body.bias(n).double()
    seen = allowed(n, body.window(layer))
    found["scores"] = error(got["scores"][..., seen], scores[..., seen])
    assert bool((got["scores"][..., ~seen] < -1e30).all())
    assert bool((got["pattern"][..., ~seen] == 0).all())
    expected = got["scores"].double().masked_fill(~seen, -math.inf).softmax(-1)
    found["pattern"] = error(got["pattern"], expected)
    v = got["v"].repeat_interleave(n_heads // got["v"].shape[2], dim=2)
    found["z"] = error(got["z"], torch.einsum("bhqk,bkhd->bqhd", got["pattern"].double(), v.double()))
    out = block.get_submodule(body.out)
    matrix = out.weight.double() if type(out).__name__ == "Conv1D" else out.weight.double().T
    by_head = [got["z"][..., h, :].double() @ part for h, part in enumerate(matrix.chunk(n_heads))]
    found["result"] = error(got["result"], torch.stack(by_head, dim=-2))
    return found


def block_errors(run: Run, body: Anatomy, block: nn.Module, layer: int) -> dict[str, float]:
    """Every site of one block."""
    at = {str(site).removesuffix(f".{layer}"): x for site, x in run.acts.items() if site.layer == layer}
    found = attention_errors(run, body, block, layer)

    def check(name: str, value: Tensor, scale: str | None = None) -> None:
        """`value` through the norm that gives the site, if there is one."""
        if name in body.norms:
            value, root = normed(block.get_submodule(body.norms[name]), value, body.norm)
            if scale in at:
                found[scale] = error(at[scale], root)
        found[name] = error(at[name], value)

    out_bias = block.get_submodule(body.out).bias
    summed = at["result"].double().sum(-2) + (0 if out_bias is None else out_bias.double())
    check("attn_in", at["resid_pre"], "attn_norm_scale")
    check("attn_out", summed, "attn_post_norm_scale")
    added = [at[name].double() for name in ("resid_pre", "attn_out", "mlp_out")]
    if body.parallel:
        assert "resid_mid" not in at
        check("mlp_in", at["resid_pre"], "mlp_norm_scale")
        check("resid_post", sum(added))
    else:
        check("resid_mid", added[0] + added[1])
        check("mlp_in", at["resid_mid"], "mlp_norm_scale")
        check("resid_post", at["resid_mid"].double() + added[2])
    found["mlp_pre"] = error(
        at["mlp_pre"], dense(block.get_submodule(body.up), at["mlp_in"])[..., : at["mlp_pre"].shape[-1]]
    )
    active = body.activation(at["mlp_pre"].double())
    if body.linear is not None:
        found["mlp_pre_linear"] = error(at["mlp_pre_linear"], body.linear(block, at["mlp_in"]))
        found["mlp_gate"] = error(at["mlp_gate"], active)
        active = at["mlp_gate"].double() * at["mlp_pre_linear"].double()
    found["mlp_post"] = error(at["mlp_post"], active)
    check("mlp_out", dense(block.get_submodule(body.down), at["mlp_post"]), "mlp_post_norm_scale")
    left = set(at) - set(found) - {"resid_pre"}
    assert not left, f"sites without a recomputation: {sorted(left)}"
    return found


def end_errors(run: Run, body: Anatomy, hf: nn.Module) -> dict[str, float]:
    """The sites outside the blocks, and the joints between blocks."""
    config, found = hf.config, {}
    at = {site.name: x for site, x in run.acts.items() if site.layer is None}
    embedding, norm, head = body.ends
    embed = hf.get_submodule(embedding).weight[run.tokens.ids].double()
    if config.model_type.startswith("gemma"):
        embed = embed * config.hidden_size**0.5
    if config.model_type == "bloom":
        embed = normed(hf.transformer.word_embeddings_layernorm, embed, "layer")[0]
    if getattr(hf.get_submodule(embedding.rpartition(".")[0]), "project_in", None) is not None:
        embed = dense(hf.model.decoder.project_in, embed)
    found["embed"], start = error(at["embed"], embed), at["embed"].double()
    if config.model_type in ("gpt2", "gpt_neo", "opt"):
        opt = config.model_type == "opt"
        table = hf.model.decoder.embed_positions if opt else hf.transformer.wpe
        places = torch.arange(IDS.shape[1]) + 2 * opt
        found["pos_embed"] = error(at["pos_embed"].expand(len(IDS), -1, -1), table.weight[places].expand(2, -1, -1))
        start = start + at["pos_embed"].double()
    found["resid_pre"] = error(run["resid_pre.0"], start)
    last = run[f"resid_post.{len(hf.get_submodule(body.blocks)) - 1}"]
    if norm is not None:
        value, root = normed(hf.get_submodule(norm), last, body.norm)
        found["final_norm"], found["final_norm_scale"] = (
            error(at["final_norm"], value),
            error(at["final_norm_scale"], root),
        )
        last = at["final_norm"]
    if getattr(hf.get_submodule(embedding.rpartition(".")[0]), "project_out", None) is not None:
        last = dense(hf.model.decoder.project_out, last)
    logits = dense(hf.get_submodule(head), last)
    cap = getattr(config, "final_logit_softcapping", None)
    found["logits"] = error(at["logits"], logits if cap is None else cap * torch.tanh(logits / cap))
    assert torch.equal(at["logits"], run.logits)
    assert set(at) == set(found) - {"resid_pre"}
    return found


def site_errors(run: Run, hf: nn.Module) -> dict[str, float]:
    """Largest error of each site over the layers."""
    body = anatomy(hf.config)
    found = end_errors(run, body, hf)
    for layer, block in enumerate(hf.get_submodule(body.blocks)):
        for name, value in block_errors(run, body, block, layer).items():
            found[name] = max(found.get(name, 0.0), value)
        if layer:
            assert torch.equal(run[f"resid_pre.{layer}"], run[f"resid_post.{layer - 1}"])
    return found


def capture_all(model: Model) -> Run:
    return model.run(IDS, capture=[info.site for info in model.sites()])


def tolerance(name: str, body: Anatomy, dtype: torch.dtype) -> float:
    float32 = set(body.float32)
    if body.norm == "gemma":
        float32 |= {"embed"}
    if body.norm != "layer":
        float32 |= {"attn_in", "mlp_in", "attn_out", "mlp_out", "final_norm"}
    if body.rotate is not None:
        float32 |= {"q_rot", "k_rot"}
    return max(TOLERANCE[dtype], FLOAT32_INSIDE) if name in float32 else TOLERANCE[dtype]


@pytest.mark.parametrize(("family", "kernel", "dtype"), CASES)
def test_every_site_is_what_the_weights_say(family, kernel, dtype):
    model = random_model(family, dtype)
    body = anatomy(model.hf.config)
    found = site_errors(capture_all(model), model.hf)
    wrong = {name: e for name, e in found.items() if not e <= tolerance(name, body, dtype)}
    assert not wrong
    assert set(found) >= {info.site.name for info in model.sites()}


def test_the_recomputation_notices_other_weights(family):
    """The same captures against weights that are a tenth off: sites behind a matrix disagree."""
    model = random_model(family)
    other = copy.deepcopy(model.hf)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    found = site_errors(capture_all(model), other)
    for name in ("embed", "q", "k", "v", "result", "mlp_pre", "mlp_out", "logits"):
        assert found[name] > 100 * TOLERANCE[torch.float32], name
