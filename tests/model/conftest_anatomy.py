"""Where each family keeps its weights, written down from papers and modules for the tests, apart from the library's
maps.

`ANATOMY` gives, for a configuration, what `test_recompute` needs to work out every site in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

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


_OWN: dict[str, Callable[..., Anatomy]] = {"gpt_neox": gpt_neox, "opt": opt, "bloom": bloom, "falcon": falcon}
ANATOMY = {**_OWN, **dict.fromkeys(("gpt2", "gpt_neo", "gptj"), gpt)}


def anatomy(config) -> Anatomy:
    """Where a model with this configuration keeps its weights."""
    return ANATOMY.get(config.model_type, llama)(config)
