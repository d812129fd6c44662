"""Every captured site equals a recomputation from the module's weights, for every family and precision.

The recomputation is written here, from the papers and the modules' weights, in float64, and knows nothing of the
library's maps: `anatomy` says where each family keeps what. Each site is worked out from the captured sites before it,
so one step's rounding does not add to the next one's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from conftest_model import CASES, random_model
from torch import Tensor, nn
from torch.nn import functional

from hooke.model.model import Model
from hooke.model.run import Run

# Largest error, as a share of the largest entry (or of 1) of the tensor.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
# What transformers computes in float32 whatever the model's precision: RMSNorm, the rotary table, Gemma's embedding
# scale, BLOOM's slopes and softmax, scores of GPT-Neo and GPT-J. In a float64 model they carry float32's rounding.
FLOAT32_INSIDE = 3e-6
IDS = torch.arange(24).reshape(2, 12) * 17 % 290 + 5

Tensors = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Anatomy:
    """Where a family keeps its weights.

    Args:
        norms: site that a norm gives -> the norm's path in the block.
        qkv: (block, attn_in) -> q, k, v.
        out, up, down: output projection of the attention; first and last matrix of the MLP.
        linear: the second of a gated MLP's first matrices.
        scale: of the scores, by layer.
        rotate: (layer) -> (inverse frequencies, whether neighbouring dimensions turn together), or None.
        qk_norm: (block, "q" or "k", heads) -> normed heads.
        window: keys that a query of the layer sees, or None for all before it.
    """

    blocks: str
    norms: Mapping[str, str]
    qkv: Callable[[nn.Module, Tensor], Tensors]
    out: str
    up: str
    down: str
    activation: Callable[[Tensor], Tensor]
    ends: tuple[str, str | None, str] = ("model.embed_tokens", "model.norm", "lm_head")
    linear: Callable[[nn.Module, Tensor], Tensor] | None = None
    norm: str = "rms"
    parallel: bool = False
    scale: Callable[[int], float] | None = None
    rotate: Callable[[int], tuple[Tensor, bool]] | None = None
    qk_norm: Callable[[nn.Module, str, Tensor], Tensor] | None = None
    window: Callable[[int], int | None] = lambda layer: None
    bias: Callable[[int], Tensor] | None = None
    softcap: float | None = None
    float32: frozenset[str] = field(default_factory=frozenset)


# -- steps ------------------------------------------------------------------------------------------------------------


def dense(module: nn.Module, x: Tensor) -> Tensor:
    weight = module.weight.double()
    y = x.double() @ (weight if type(module).__name__ == "Conv1D" else weight.T)
    return y if module.bias is None else y + module.bias.double()


def normed(module: nn.Module, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The norm's value and what it divides by."""
    x = x.double()
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    root = ((x**2).mean(-1, keepdim=True) + eps).sqrt()
    weight = 1.0 if module.weight is None else module.weight.double() + (kind == "gemma")
    bias = getattr(module, "bias", None)
    return x / root * weight + (0 if bias is None else bias.double()), root


def turned(x: Tensor, frequencies: Tensor, neighbours: bool) -> Tensor:
    """Each pair of dimensions of `[batch, pos, head, d_head]` turned by position * frequency, as complex numbers."""
    x, half = x.double(), len(frequencies)
    angle = torch.arange(x.shape[1]).double()[:, None, None] * frequencies.double()
    turn = torch.polar(torch.ones_like(angle), angle)
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if neighbours else (slice(half), slice(half, 2 * half))
    )
    spun = torch.complex(x[..., first], x[..., second]) * turn
    out = x.clone()
    out[..., first], out[..., second] = spun.real, spun.imag
    return out


def allowed(n: int, window: int | None) -> Tensor:
    query, key = torch.arange(n)[:, None], torch.arange(n)
    return (key <= query) if window is None else (key <= query) & (query - key < window)


def gelu_tanh(x: Tensor, factor: float = math.sqrt(2 / math.pi)) -> Tensor:
    return x / 2 * (1 + torch.tanh(factor * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": functional.gelu,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: x.clamp(min=0),
}


# -- where families keep what -----------------------------------------------------------------------------------------


def apart(path: str, d_head: int) -> Callable[[nn.Module, Tensor], Tensors]:
    """Three matrices; `path` holds a `*` for q, k and v."""

    def qkv(block: nn.Module, x: Tensor) -> Tensors:
        return tuple(dense(block.get_submodule(path.replace("*", n)), x).unflatten(-1, (-1, d_head)) for n in "qkv")

    return qkv


def in_a_row(path: str, n_heads: int, n_kv: int, d_head: int) -> Callable[[nn.Module, Tensor], Tensors]:
    """All q heads, all k heads, all v heads."""

    def qkv(block: nn.Module, x: Tensor) -> Tensors:
        heads = dense(block.get_submodule(path), x).unflatten(-1, (-1, d_head))
        return heads[..., :n_heads, :], heads[..., n_heads : n_heads + n_kv, :], heads[..., n_heads + n_kv :, :]

    return qkv


def in_groups(path: str, n_heads: int, n_kv: int, d_head: int) -> Callable[[nn.Module, Tensor], Tensors]:
    """For each key-value head in turn: its q heads, itself, its v head."""
    size = n_heads // n_kv + 2

    def qkv(block: nn.Module, x: Tensor) -> Tensors:
        heads = dense(block.get_submodule(path), x).unflatten(-1, (-1, d_head))
        q = [i for i in range(n_kv * size) if i % size < size - 2]
        return heads[..., q, :], heads[..., size - 2 :: size, :], heads[..., size - 1 :: size, :]

    return qkv


def frequencies(config, layer: int) -> Tensor:
    """Inverse frequencies of the rotary positions that a configuration asks for."""
    if config.model_type == "gptj":
        return 10_000.0 ** -(torch.arange(0, config.rotary_dim, 2).double() / config.rotary_dim)
    rope = config.rope_parameters
    if "full_attention" in rope:  # Gemma 3 has two of them
        rope = rope[config.layer_types[layer]]
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dims = int(d_head * rope.get("partial_rotary_factor", 1.0))
    plain = rope["rope_theta"] ** -(torch.arange(0, dims, 2).double() / dims)
    if rope["rope_type"] == "default":
        return plain
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)  # Llama 3: slow ones are stretched
    blend = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    return plain * (blend.clamp(0, 1) + (1 - blend.clamp(0, 1)) / rope["factor"])


def slopes(n: int) -> Tensor:
    """ALiBi's slopes: a geometric series, filled up with every other one of a finer series."""
    whole = 2 ** int(math.log2(n))
    series = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return torch.tensor(series + [2 ** (-8 * (2 * i + 1) / (2 * whole)) for i in range(n - whole)])


def gpt(config) -> Anatomy:
    """GPT-2, GPT-Neo, GPT-J."""
    kind = config.model_type
    d_head = config.hidden_size // config.num_attention_heads
    n_heads, local = config.num_attention_heads, getattr(config, "attention_layers", [])
    by_layer = kind == "gpt2" and config.scale_attn_by_inverse_layer_idx
    scale = {"gpt_neo": 1.0}.get(kind, d_head**-0.5)
    return Anatomy(
        blocks="transformer.h",
        ends=("transformer.wte", "transformer.ln_f", "lm_head"),
        norm="layer",
        norms={"attn_in": "ln_1", "mlp_in": "ln_1" if kind == "gptj" else "ln_2"},
        parallel=kind == "gptj",
        qkv={
            "gpt2": in_a_row("attn.c_attn", n_heads, n_heads, d_head),
            "gpt_neo": apart("attn.attention.*_proj", d_head),
            "gptj": apart("attn.*_proj", d_head),
        }[kind],
        out={"gpt2": "attn.c_proj", "gpt_neo": "attn.attention.out_proj", "gptj": "attn.out_proj"}[kind],
        up="mlp.fc_in" if kind == "gptj" else "mlp.c_fc",
        down="mlp.fc_out" if kind == "gptj" else "mlp.c_proj",
        activation=ACTIVATIONS[config.activation_function],
        scale=lambda layer: scale / (layer + 1 if by_layer else 1),
        rotate=(lambda layer: (frequencies(config, layer), True)) if kind == "gptj" else None,
        window=lambda layer: config.window_size if local and local[layer] == "local" else None,
        float32=frozenset() if kind == "gpt2" else frozenset({"q_rot", "k_rot", "scores", "pattern"}),
    )


def gpt_neox(config) -> Anatomy:
    n_heads, d_head = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    return Anatomy(
        blocks="gpt_neox.layers",
        ends=("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "lm_head"),
        norm="layer",
        norms={"attn_in": "input_layernorm", "mlp_in": "post_attention_layernorm"},
        parallel=config.use_parallel_residual,
        qkv=in_groups("attention.query_key_value", n_heads, n_heads, d_head),
        out="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        activation=ACTIVATIONS[config.hidden_act],
        rotate=lambda layer: (frequencies(config, layer), False),
    )


def opt(config) -> Anatomy:
    first, second = "self_attn_layer_norm", "final_layer_norm"
    before = config.do_layer_norm_before
    decoder = "model.decoder"
    return Anatomy(
        blocks=f"{decoder}.layers",
        ends=(f"{decoder}.embed_tokens", f"{decoder}.final_layer_norm" if before else None, "lm_head"),
        norm="layer",
        norms={"attn_in": first, "mlp_in": second} if before else {"resid_mid": first, "resid_post": second},
        qkv=apart("self_attn.*_proj", config.hidden_size // config.num_attention_heads),
        out="self_attn.out_proj",
        up="fc1",
        down="fc2",
        activation=ACTIVATIONS[config.activation_function],
    )


def bloom(config) -> Anatomy:
    n_heads = config.n_head
    return Anatomy(
        blocks="transformer.h",
        ends=("transformer.word_embeddings", "transformer.ln_f", "lm_head"),
        norm="layer",
        norms={"attn_in": "input_layernorm", "mlp_in": "post_attention_layernorm"},
        qkv=in_groups("self_attention.query_key_value", n_heads, n_heads, config.hidden_size // n_heads),
        out="self_attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        activation=lambda x: gelu_tanh(x, 0.79788456),  # BLOOM's code has the factor with eight digits
        bias=lambda n: slopes(n_heads)[:, None, None] * torch.arange(n),
        float32=frozenset({"scores", "pattern"}),  # the slopes are float32
    )


def falcon(config) -> Anatomy:
    n_heads, d_head = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    grouped = config.new_decoder_architecture
    two = grouped and config.num_ln_in_parallel_attn != 1
    n_kv = config.num_kv_heads if grouped else 1 if config.multi_query else n_heads
    parallel = grouped or config.parallel_attn
    shared = "input_layernorm" if parallel else "post_attention_layernorm"

    def alibi(n: int) -> Tensor:
        """Slopes and their products with positions are rounded to bfloat16, and scaled as the scores are. On the eager
        kernel transformers adds them twice: with the scores and with the mask.
        """
        twice = 2 if config._attn_implementation == "eager" else 1
        return (slopes(n_heads).bfloat16()[:, None, None] * torch.arange(n)).double() * d_head**-0.5 * twice

    return Anatomy(
        blocks="transformer.h",
        ends=("transformer.word_embeddings", "transformer.ln_f", "lm_head"),
        norm="layer",
        norms={"attn_in": "ln_attn", "mlp_in": "ln_mlp"} if two else {"attn_in": "input_layernorm", "mlp_in": shared},
        parallel=parallel,
        qkv=in_groups("self_attention.query_key_value", n_heads, n_kv, d_head),
        out="self_attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        activation=ACTIVATIONS[config.activation],
        rotate=None if config.alibi else lambda layer: (frequencies(config, layer), False),
        bias=alibi if config.alibi else None,
    )


def head_norm(config) -> Callable[[nn.Module, str, Tensor], Tensor] | None:
    """The norm on q and k of those that have one."""
    kind = config.model_type

    def norm(block: nn.Module, name: str, heads: Tensor) -> Tensor:
        if kind == "stablelm":  # one for each head
            norms = block.get_submodule(f"self_attn.{name}_layernorm").norms
            return torch.stack([normed(n, heads[..., i, :], "layer")[0] for i, n in enumerate(norms)], dim=-2)
        if kind == "phi":
            return normed(block.get_submodule(f"self_attn.{name}_layernorm"), heads, "layer")[0]
        module = block.get_submodule(f"self_attn.{name}_norm")
        if kind == "olmo2":  # over all heads together
            return normed(module, heads.flatten(-2), "rms")[0].unflatten(-1, heads.shape[-2:])
        return normed(module, heads, "gemma" if kind == "gemma3_text" else "rms")[0]

    return norm if kind in ("qwen3", "gemma3_text", "olmo2") or getattr(config, "qk_layernorm", False) else None


def llama(config) -> Anatomy:
    """Llama and all that share its tree."""
    kind = config.model_type
    n_heads, n_kv = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    norms = {"attn_in": "input_layernorm", "mlp_in": "post_attention_layernorm"}
    if kind == "olmo2":
        norms = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
    if kind in ("gemma2", "gemma3_text"):
        norms |= {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
        norms["mlp_in"] = "pre_feedforward_layernorm"
    parallel = kind == "phi" or getattr(config, "use_parallel_residual", False)
    if parallel:
        norms["mlp_in"] = "input_layernorm"
    types, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    joined = kind == "phi3"
    query_scale = getattr(config, "query_pre_attn_scalar", d_head)

    def linear(block: nn.Module, x: Tensor) -> Tensor:
        return (
            dense(block.mlp.gate_up_proj, x)[..., config.intermediate_size :] if joined else dense(block.mlp.up_proj, x)
        )

    return Anatomy(
        blocks="model.layers",
        ends=("model.embed_tokens", "model.final_layernorm" if kind == "phi" else "model.norm", "lm_head"),
        norm="layer" if kind in ("phi", "stablelm") else "gemma" if kind.startswith("gemma") else "rms",
        norms=norms,
        parallel=parallel,
        qkv=in_a_row("self_attn.qkv_proj", n_heads, n_kv, d_head) if joined else apart("self_attn.*_proj", d_head),
        out="self_attn.dense" if kind == "phi" else "self_attn.o_proj",
        up={"phi": "mlp.fc1", "phi3": "mlp.gate_up_proj"}.get(kind, "mlp.gate_proj"),
        linear=None if kind == "phi" else linear,
        down="mlp.fc2" if kind == "phi" else "mlp.down_proj",
        activation=ACTIVATIONS[getattr(config, "hidden_activation", None) or config.hidden_act],
        scale=lambda layer: query_scale**-0.5,
        rotate=lambda layer: (frequencies(config, layer), False),
        qk_norm=head_norm(config),
        window=lambda layer: window if types is None or types[layer] == "sliding_attention" else None,
        softcap=config.attn_logit_softcapping if kind == "gemma2" else None,
    )


_OWN = {"gpt_neox": gpt_neox, "opt": opt, "bloom": bloom, "falcon": falcon}
ANATOMY = {**_OWN, **dict.fromkeys(("gpt2", "gpt_neo", "gptj"), gpt)}


# -- the recomputation ------------------------------------------------------------------------------------------------


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
    body = ANATOMY.get(hf.config.model_type, llama)(hf.config)
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
    body = ANATOMY.get(model.hf.config.model_type, llama)(model.hf.config)
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
