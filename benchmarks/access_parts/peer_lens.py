"""TransformerLens in its own idioms: the bridge around the Hugging Face model, `run_with_cache`, and its patching
functions as its documentation uses them (gradients off).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from access_parts import shapes


class Lens:
    """The work that the parent process asks for, by name."""

    package = "transformer_lens"

    def __init__(self, folder: Path) -> None:
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoTokenizer

        torch.set_grad_enabled(False)
        self.inputs = shapes.read(folder)
        hf = shapes.open_hf(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = TransformerBridge.boot_transformers(
            str(folder), hf_model=hf, tokenizer=tokenizer, device="cpu", dtype=torch.float32
        )
        self.model.eval()
        _, self.cache = self.model.run_with_cache(self.inputs.corrupted[None], prepend_bos=False)

    def logits(self) -> Tensor:
        return self.model(self.inputs.clean[None], return_type="logits")[0]

    def forward(self) -> None:
        self.model(self.inputs.batch, return_type="logits")

    def everything(self) -> None:
        self.model.run_with_cache(self.inputs.batch, return_type="logits")

    def residual(self) -> None:
        """Every residual site, by the documented filter on names."""
        self.model.run_with_cache(
            self.inputs.batch,
            return_type="logits",
            names_filter=lambda name: name.endswith(("hook_resid_pre", "hook_resid_mid", "hook_resid_post")),
        )

    def _metric(self, logits: Tensor) -> Tensor:
        return logits[0, -1, self.inputs.answer] - logits[0, -1, self.inputs.wrong]

    def residual_sweep(self) -> Tensor:
        from transformer_lens import patching

        return patching.get_act_patch_resid_pre(self.model, self.inputs.clean[None], self.cache, self._metric)

    def head_sweep(self) -> Tensor:
        from transformer_lens import patching

        return patching.get_act_patch_attn_head_out_all_pos(
            self.model, self.inputs.clean[None], self.cache, self._metric
        )
