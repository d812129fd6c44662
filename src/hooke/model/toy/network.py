"""The toy transformer's modules. Attention is dispatched as in transformers' own models, so that kernels, caches, masks
and attention maps work on it as on them.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hooke.base.errors import ConfigError
from hooke.base.seeds import torch_generator
from hooke.model.toy.config import ToyConfig

Added = Float[Tensor, "#batch pos d_model"]
Rotation = tuple[Float[Tensor, "#batch pos half"], Float[Tensor, "#batch pos half"]]  # cosines, sines


class SoLU(nn.Module):
    """`x * softmax(x)` over the neurons (Elhage et al. 2022), without the norm that may follow it."""

    def forward(self, x: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_mlp"]:
        return x * x.softmax(-1)


ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "solu": SoLU,
}


def eager_attention_forward(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    attention_mask: Float[Tensor, "#batch 1 query key"] | None,
    scaling: float,
    **_: object,
) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch head query key"]]:
    """Attention step by step, in the calling convention of transformers' registry (its "eager")."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    pattern = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return (pattern @ value).transpose(1, 2), pattern


class ToyAttention(nn.Module):
    """Multi-head attention, dispatched as transformers' own models do."""

    def __init__(self, config: ToyConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, config.causal
        self.scaling = config.d_head**-0.5 if config.attention_scale is None else config.attention_scale
        self.num_key_value_groups = config.n_heads // config.n_kv_heads
        linear = partial(nn.Linear, bias=config.attention_bias)
        self.q_proj = linear(config.d_model, config.n_heads * config.d_head)
        self.k_proj = linear(config.d_model, config.n_kv_heads * config.d_head)
        self.v_proj = linear(config.d_model, config.n_kv_heads * config.d_head)
        self.o_proj = linear(config.n_heads * config.d_head, config.d_model)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        *,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: Rotation | None = None,
        added_positions: Added | None = None,
    ) -> Float[Tensor, "batch _ d_model"]:  # as many places as went in, unless a sweep's hooks say otherwise
        turned = hidden_states if added_positions is None else hidden_states + added_positions
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.config.d_head)).transpose(1, 2)
            for projection, x in ((self.q_proj, turned), (self.k_proj, turned), (self.v_proj, hidden_states))
        )
        if position_embeddings is not None:
            query, key = _rotated(query, *position_embeddings), _rotated(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        z, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0)
        return self.o_proj(z.flatten(-2))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class ToyMLP(nn.Module):
    """One hidden layer, gated or not."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias)
        self.gate_proj = nn.Linear(config.d_model, config.d_mlp, bias=config.mlp_bias) if config.gated else None
        self.act_fn = ACTIVATIONS[config.activation]()
        self.down_proj = nn.Linear(config.d_mlp, config.d_model, bias=config.mlp_bias)

    def forward(self, hidden_states: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


def _norm(kind: str, config: ToyConfig) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return (nn.LayerNorm if kind == "layer" else nn.RMSNorm)(config.d_model, eps=config.norm_eps)


class ToyBlock(nn.Module):
    """Attention and, unless attention-only, an MLP, each on the normed residual stream."""

    def __init__(self, config: ToyConfig, layer_idx: int) -> None:
        super().__init__()
        self.parallel = config.parallel
        self.attn_norm = _norm(config.norm, config)
        self.attn = ToyAttention(config, layer_idx)
        self.mlp_norm = None if config.attention_only else _norm(config.norm, config)
        self.mlp = None if config.attention_only else ToyMLP(config)

    def forward(
        self, hidden_states: Float[Tensor, "batch pos d_model"], **kwargs: object
    ) -> Float[Tensor, "batch pos d_model"]:
        middle = hidden_states + self.attn(self.attn_norm(hidden_states), **kwargs)
        if self.mlp is None:
            return middle
        return middle + self.mlp(self.mlp_norm(hidden_states if self.parallel else middle))


class ToyTransformer(PreTrainedModel, GenerationMixin):
    """The toy transformer with its unembedding."""

    config_class = ToyConfig
    config: ToyConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["ToyBlock"]
    _tied_weights_keys = {"unembed.weight": "embed.weight"}

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        tabled = config.positions in ("learned", "sinusoidal", "shortformer")
        self.pos_embed = nn.Embedding(config.n_ctx, config.d_model) if tabled else None
        if config.positions == "sinusoidal":
            self.pos_embed.weight.requires_grad_(False)
        self.blocks = nn.ModuleList(ToyBlock(config, layer) for layer in range(config.n_layers))
        self.final_norm = _norm(config.final_norm, config)
        self.unembed = nn.Linear(config.d_model, config.vocab_out, bias=config.unembed_bias)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = value

    def get_output_embeddings(self) -> nn.Module:
        return self.unembed

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.unembed = new_embeddings

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#batch pos"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **_: object,
    ) -> CausalLMOutputWithPast:
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None and not self.config.causal:
            raise ConfigError("a bidirectional toy has no KV cache: its keys change with every token; use_cache=False")
        # Asked for before any layer fills the cache.
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        options: dict[str, object] = {"attention_mask": mask, "past_key_values": past_key_values}
        if self.config.positions == "rotary":
            options["position_embeddings"] = rotation(self.config, position_ids, x.dtype)
        elif self.config.positions == "shortformer":
            options["added_positions"] = self.pos_embed(position_ids)
        elif self.pos_embed is not None:
            x = x + self.pos_embed(position_ids)
        for block in self.blocks:
            x = block(x, **options)
        x = self.final_norm(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(logits=self.unembed(x[:, kept]), past_key_values=past_key_values)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Embedding) and not module.weight.requires_grad:
            init.copy_(module.weight, sinusoids(*module.weight.shape))
        elif isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=self.std(module))
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)

    def std(self, module: nn.Module) -> float:
        """Spread of a matrix's random start."""
        width = self.config.vocab_out if module is self.unembed else self.config.d_model
        return width**-0.5 if self.config.init_std is None else self.config.init_std

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Draw all random weights anew; each matrix has a stream of its own, so switches do not shift the others."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module.weight.requires_grad:
                if module is self.unembed and self.config.tie_word_embeddings:
                    continue
                module.weight.normal_(std=self.std(module), generator=torch_generator(seed, "toy", name))


def rotation(config: ToyConfig, position_ids: Int[Tensor, "#batch pos"], dtype: torch.dtype) -> Rotation:
    """Cosines and sines of the rotary angles, worked out in float32 at least; pairs are (i, i + d_head / 2)."""
    wide = torch.promote_types(dtype, torch.float32)
    steps = torch.arange(0, config.d_head, 2, dtype=wide, device=position_ids.device) / config.d_head
    angles = position_ids[..., None].to(wide) * config.rotary_base**-steps
    return angles.cos().to(dtype), angles.sin().to(dtype)


def sinusoids(n_ctx: int, d_model: int) -> Float[Tensor, "n_ctx d_model"]:
    """Fixed positions of Vaswani et al. 2017, sines at even and cosines at odd places."""
    place = torch.arange(d_model, dtype=torch.float64)
    angles = torch.arange(n_ctx, dtype=torch.float64)[:, None] * 10_000.0 ** (-(place - place % 2) / d_model)
    return torch.where(place % 2 == 0, angles.sin(), angles.cos()).float()


AutoConfig.register(ToyConfig.model_type, ToyConfig)
AutoModelForCausalLM.register(ToyConfig, ToyTransformer)
