"""Sizes and switches of the toy transformer."""

from __future__ import annotations

from typing import Literal, get_args

from transformers import PretrainedConfig

from hooke.base.errors import ConfigError, nearest

Norm = Literal["none", "layer", "rms"]
Positions = Literal["none", "learned", "sinusoidal", "rotary", "shortformer"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "solu"]


class ToyConfig(PretrainedConfig):
    """Sizes and switches of a toy transformer.

    Args:
        vocab_out: number of output tokens, where it differs from `vocab_size`.
        n_ctx: longest sequence.
        n_kv_heads, d_head, d_mlp, final_norm: by default `n_heads`, `d_model / n_heads`, `4 d_model`, `norm`.
        positions: "shortformer" adds the learned positions to what queries and keys read, not to the residual stream.
        parallel: attention and MLP both read the block's input.
        gated: the MLP's first matrix goes through the activation and gates a second one.
        attention_scale: factor on `q . k`, by default `d_head ** -0.5`.
        init_std: of all matrices; by default `d_model ** -0.5`, and `vocab_out ** -0.5` for the unembedding.

    Raises:
        ConfigError: for sizes and switches that do not fit together.
    """

    model_type = "hooke_toy"
    attribute_map = {  # what transformers calls them
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "head_dim": "d_head",
        "intermediate_size": "d_mlp",
        "max_position_embeddings": "n_ctx",
        "is_causal": "causal",
    }

    vocab_size: int = 64
    vocab_out: int | None = None
    n_ctx: int = 64
    d_model: int = 32
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int | None = None
    d_head: int | None = None
    d_mlp: int | None = None
    attention_only: bool = False
    norm: Norm = "layer"
    final_norm: Norm | None = None
    norm_eps: float = 1e-5
    positions: Positions = "learned"
    rotary_base: float = 10_000.0
    parallel: bool = False
    activation: Activation = "gelu"
    gated: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    unembed_bias: bool = False
    attention_scale: float | None = None
    causal: bool = True
    tie_word_embeddings: bool = False
    init_std: float | None = None

    def __init__(self, **given: object) -> None:
        # All fields are set on the instance, defaults too, so that a saved folder does not depend on today's defaults.
        super().__init__(**{name: getattr(ToyConfig, name) for name in ToyConfig.__annotations__} | given)
        self._complete()

    def _complete(self) -> None:
        if self.d_head is None and self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} does not divide into {self.n_heads} heads; give d_head")
        self.vocab_out = self.vocab_out or self.vocab_size
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        self.d_head = self.d_head or self.d_model // self.n_heads
        self.d_mlp = self.d_mlp or 4 * self.d_model
        self.final_norm = self.final_norm or self.norm
        for name, choices in (
            ("norm", Norm),
            ("final_norm", Norm),
            ("positions", Positions),
            ("activation", Activation),
        ):
            known, given = get_args(choices), getattr(self, name)
            if given not in known:
                raise ConfigError(
                    f"{name} {given!r} is not known{nearest(str(given), known)}; known: {', '.join(known)}"
                )
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"{self.n_heads} heads do not divide among {self.n_kv_heads} key-value heads")
        if self.positions == "rotary" and self.d_head % 2:
            raise ConfigError(f"rotary positions turn pairs; d_head {self.d_head} is odd")
        if self.tie_word_embeddings and self.vocab_out != self.vocab_size:
            raise ConfigError(f"tied embeddings need vocab_out {self.vocab_out} equal to vocab_size {self.vocab_size}")
