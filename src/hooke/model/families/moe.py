"""Mixtures of experts (Mixtral, Qwen 2 MoE, Qwen 3 MoE): the Llama tree with a router and experts in place of the MLP.

A layer with experts has `router_logits` and `expert_out` and no neuron sites: each token goes through experts of its
own. Layers that the configuration keeps dense are the other way round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig

from hooke.model.families.family import Layout, Tap
from hooke.model.families.llama import llama

_NEURONS = ("mlp_pre", "mlp_gate", "mlp_pre_linear", "mlp_post")
_EXPERTS = ("router_logits", "expert_out")


@dataclass(frozen=True)
class RouterLogits:
    """The router's linear scores, `[tokens, expert]`, before softmax and choice.

    The router gives back (scores, weights of the chosen, their numbers). Edited scores are put in the place of its
    linear map's result and its own code chooses again, so that weights and choice follow the edit.
    """

    def read(self, module: nn.Module, x: Tensor, output: Any) -> Tensor:
        return output[0]

    def write(self, module: nn.Module, x: Tensor, output: Any, value: Tensor) -> Any:
        with _FirstLinearGives(value.to(output[0].dtype)):
            return module.forward(x)


@dataclass(frozen=True)
class ExpertOut:
    """What each chosen expert adds, weighted, `[batch, pos, choice, d_model]`, the router's first choice first.

    Worked out by the experts module itself, one choice at a time, so it is right for whichever kernel is in use. The
    choices (and the shared expert, where there is one) sum to the module's output up to rounding. The router is asked
    again, with the run's hooks on, so that the choice is the one that edited scores made.
    """

    def read(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        _, weights, chosen = module.gate(tokens)
        parts = zip(chosen.split(1, dim=-1), weights.split(1, dim=-1), strict=True)
        each = torch.stack([module.experts.forward(tokens, index, weight) for index, weight in parts], dim=-2)
        return each.unflatten(0, x.shape[:2])

    def write(self, module: nn.Module, x: Tensor, output: Tensor, value: Tensor) -> Tensor:
        return output + (value - self.read(module, x, output)).sum(-2)


class _FirstLinearGives(TorchFunctionMode):
    """While it lasts, the first linear map gives `value` instead of its result."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self._value: Tensor | None = value

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and self._value is not None:
            value, self._value = self._value, None
            return value
        return func(*args, **(kwargs or {}))


def moe(config: PretrainedConfig) -> Layout:
    """Sites of `MixtralForCausalLM`, `Qwen2MoeForCausalLM` and `Qwen3MoeForCausalLM`."""
    base = llama(config)
    n_experts = getattr(config, "num_local_experts", None) or config.num_experts
    dense = [layer for layer in range(base.n_layers) if not _has_experts(config, layer, n_experts)]
    neurons = {name: tap for name, tap in base.inside.items() if name in _NEURONS}
    inside = {name: tap for name, tap in base.inside.items() if name not in _NEURONS}
    inside["router_logits"] = Tap("mlp.gate", "through", RouterLogits(), flat=True)
    inside["expert_out"] = Tap("mlp", "through", ExpertOut())
    absent = {name: "each token has its own experts' neurons; see expert_out" for name in _NEURONS}
    absent |= {name: "that layer has one dense MLP and no experts" for name in _EXPERTS}
    return dataclasses.replace(
        base,
        family=config.model_type,
        d_mlp=config.intermediate_size if dense else getattr(config, "moe_intermediate_size", config.intermediate_size),
        inside=inside,
        varied={layer: {**neurons, **dict.fromkeys(_EXPERTS)} for layer in dense},
        absent={**base.absent, **absent},
        n_experts=n_experts,
        experts_per_token=config.num_experts_per_tok,
    )


def _has_experts(config: PretrainedConfig, layer: int, n_experts: int) -> bool:
    """Whether a layer's MLP is a mixture; Mixtral's all are."""
    if layer in (getattr(config, "mlp_only_layers", None) or ()):
        return False
    return n_experts > 0 and (layer + 1) % (getattr(config, "decoder_sparse_step", None) or 1) == 0
