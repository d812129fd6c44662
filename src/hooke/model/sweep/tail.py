"""From the last block to the logits, for the positions and tokens that are read and no others."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooke.model.capture import own_run
from hooke.model.families.family import Layout

_CHECKED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class Tail:
    """The model's own final norm and unembedding, applied where asked."""

    def __init__(self, hf: nn.Module, layout: Layout) -> None:
        tap = layout.outside.get("final_norm")
        self.norm = hf.get_submodule(tap.path) if tap is not None else None
        self.head = hf.get_output_embeddings()
        self.softcap = layout.logit_softcap

    def logits(
        self, x: Float[Tensor, "... d_model"], ids: Int[Tensor, "... n"] | None = None
    ) -> Float[Tensor, "... n"]:
        """Logits of what the last block gave, for all tokens or for some tokens of each place."""
        if self.norm is not None:
            x = self.norm(x)
        if ids is None:
            raw = self.head(x)
        else:
            raw = torch.einsum("...d,...nd->...n", x, self.head.weight[ids])
            if getattr(self.head, "bias", None) is not None:
                raw = raw + self.head.bias[ids]
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)


def is_plain(hf: nn.Module, layout: Layout) -> bool:
    """Whether the model goes from its last block to its logits by final norm and unembedding alone: tried once on two
    tokens.
    """
    if hf not in _CHECKED:
        _CHECKED[hf] = _try(hf, layout)
    return _CHECKED[hf]


def _try(hf: nn.Module, layout: Layout) -> bool:
    head = hf.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.in_features != layout.d_model:
        return False
    last: list[Tensor] = []
    block = hf.get_submodule(f"{layout.blocks}.{layout.n_layers - 1}")

    def keep(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        last.append(output if isinstance(output, Tensor) else output[0])

    with own_run(), torch.no_grad():
        handle = block.register_forward_hook(keep)
        try:
            logits = hf(
                input_ids=torch.zeros(1, 2, dtype=torch.long, device=head.weight.device), use_cache=False
            ).logits
        finally:
            handle.remove()
        ours = Tail(hf, layout).logits(last[-1])
    scale = float(logits.abs().max())
    return ours.shape == logits.shape and float((ours - logits).abs().max()) <= 1e-2 * max(scale, 1e-6)
