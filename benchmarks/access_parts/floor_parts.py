"""Two blocks taken apart by hand for the floors: only Hugging Face's own modules and weights, nothing of hooke.

All functions take packed tokens `[token, ...]` and the column of each token.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class Parts(Protocol):
    """What a floor needs of an architecture."""

    blocks: nn.ModuleList
    n_heads: int

    def embed(self, ids: Tensor) -> Tensor: ...

    def queries_keys_values(self, block: nn.Module, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def queries(self, block: nn.Module, x: Tensor, columns: Tensor) -> Tensor: ...

    def keys_values(self, block: nn.Module, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]: ...

    def out(self, block: nn.Module, z: Tensor) -> Tensor: ...

    def head_weights(self, block: nn.Module) -> Tensor: ...

    def mlp(self, block: nn.Module, mid: Tensor) -> Tensor: ...

    def difference(self, x: Tensor, answer: int, wrong: int) -> Tensor: ...


class GPT2Parts:
    """GPT-2: learned positions, one joined projection."""

    def __init__(self, hf: PreTrainedModel) -> None:
        self.hf, self.blocks, self.n_heads = hf, hf.transformer.h, hf.config.n_head

    def embed(self, ids: Tensor) -> Tensor:
        body = self.hf.transformer
        return body.wte(ids) + body.wpe(torch.arange(len(ids)))

    def queries_keys_values(self, block: nn.Module, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1)
        return q, k, v

    def queries(self, block: nn.Module, x: Tensor, columns: Tensor) -> Tensor:
        joined, width = block.attn.c_attn, x.shape[-1]
        return torch.addmm(joined.bias[:width], block.ln_1(x), joined.weight[:, :width])

    def keys_values(self, block: nn.Module, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        joined, width = block.attn.c_attn, x.shape[-1]
        k, v = torch.addmm(joined.bias[width:], block.ln_1(x), joined.weight[:, width:]).chunk(2, dim=-1)
        return k, v

    def out(self, block: nn.Module, z: Tensor) -> Tensor:
        return block.attn.c_proj(z)

    def head_weights(self, block: nn.Module) -> Tensor:
        return block.attn.c_proj.weight.unflatten(0, (self.n_heads, -1))

    def mlp(self, block: nn.Module, mid: Tensor) -> Tensor:
        return mid + block.mlp(block.ln_2(mid))

    def difference(self, x: Tensor, answer: int, wrong: int) -> Tensor:
        weight = self.hf.lm_head.weight
        return self.hf.transformer.ln_f(x) @ (weight[answer] - weight[wrong])


class LlamaParts:
    """Llama: rotary positions, separate projections, grouped key-value heads."""

    def __init__(self, hf: PreTrainedModel) -> None:
        self.hf, self.blocks, self.n_heads = hf, hf.model.layers, hf.config.num_attention_heads
        self.d_head = hf.config.head_dim
        columns = torch.arange(hf.config.max_position_embeddings)[None]
        cos, sin = hf.model.rotary_emb(torch.zeros(1, dtype=hf.dtype), columns)
        # rotate_half as a product with a signed sine: x -> x cos + swap(x) signed
        half = self.d_head // 2
        self.cos = cos[0][:, None]
        self.signed = torch.cat([-sin[0][:, None, :half], sin[0][:, None, half:]], dim=-1)

    def embed(self, ids: Tensor) -> Tensor:
        return self.hf.model.embed_tokens(ids)

    def _rotated(self, x: Tensor, columns: Tensor) -> Tensor:
        heads = x.unflatten(-1, (-1, self.d_head))
        turned = heads.roll(self.d_head // 2, dims=-1)
        return (heads * self.cos[columns] + turned * self.signed[columns]).flatten(1)

    def queries_keys_values(self, block: nn.Module, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed, own = block.input_layernorm(x), block.self_attn
        return (
            self._rotated(own.q_proj(normed), columns),
            self._rotated(own.k_proj(normed), columns),
            own.v_proj(normed),
        )

    def queries(self, block: nn.Module, x: Tensor, columns: Tensor) -> Tensor:
        return self._rotated(block.self_attn.q_proj(block.input_layernorm(x)), columns)

    def keys_values(self, block: nn.Module, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        normed, own = block.input_layernorm(x), block.self_attn
        return self._rotated(own.k_proj(normed), columns), own.v_proj(normed)

    def out(self, block: nn.Module, z: Tensor) -> Tensor:
        return block.self_attn.o_proj(z)

    def head_weights(self, block: nn.Module) -> Tensor:
        return block.self_attn.o_proj.weight.T.unflatten(0, (self.n_heads, -1))

    def mlp(self, block: nn.Module, mid: Tensor) -> Tensor:
        return mid + block.mlp(block.post_attention_layernorm(mid))

    def difference(self, x: Tensor, answer: int, wrong: int) -> Tensor:
        weight = self.hf.lm_head.weight
        return self.hf.model.norm(x) @ (weight[answer] - weight[wrong])


def parts_of(hf: PreTrainedModel) -> Parts:
    """The parts of one of the two architectures."""
    return {"gpt2": GPT2Parts, "llama": LlamaParts}[hf.config.model_type](hf)


def attend(parts: Parts, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Rows of queries `[row, query, width]` over rows of keys: z `[row, query, width]`.

    `causal` is for as many queries as keys; without it every query sees every key.
    """
    d_head = q.shape[-1] // parts.n_heads
    heads = [x.unflatten(-1, (-1, d_head)).transpose(1, 2) for x in (q, k, v)]
    z = F.scaled_dot_product_attention(*heads, is_causal=causal, enable_gqa=k.shape[-1] != q.shape[-1])
    return z.transpose(1, 2).flatten(2)
