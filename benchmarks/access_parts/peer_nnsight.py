"""nnsight in its own idioms: `TransformersModel` around the Hugging Face model, a trace a patch, and, as its
documentation advises for many prompts, one trace with an `invoke` a patch, here for all patches of a layer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from access_parts import plain, shapes


class Sight:
    """The work that the parent process asks for, by name."""

    package = "nnsight"

    def __init__(self, folder: Path) -> None:
        from nnsight import TransformersModel
        from transformers import AutoTokenizer

        torch.set_grad_enabled(False)
        self.inputs = shapes.read(folder)
        hf = shapes.open_hf(folder)
        self.values, self.z = plain.record(hf, self.inputs.corrupted)
        self.n_heads = hf.config.num_attention_heads
        self.model = TransformersModel(hf, tokenizer=AutoTokenizer.from_pretrained(folder))
        self.gpt2 = hf.config.model_type == "gpt2"

    def _blocks(self) -> object:
        return self.model.transformer.h if self.gpt2 else self.model.model.layers

    def logits(self) -> Tensor:
        with self.model.trace(self.inputs.clean[None]):
            logits = self.model.output.logits.save()
        return logits[0]

    def forward(self) -> None:
        with self.model.trace(self.inputs.batch):
            self.model.output.logits.save()

    def residual(self) -> None:
        """The residual stream before and after every block."""
        blocks, kept = self._blocks(), []
        with self.model.trace(self.inputs.batch):
            for block in blocks:
                kept.append(block.input.save())
                kept.append(block.output.save())

    def residual_sweep(self) -> Tensor:
        """A trace a patch."""
        blocks, ids, answer, wrong = self._blocks(), self.inputs.clean[None], self.inputs.answer, self.inputs.wrong
        found = torch.empty(self.values.shape[:2])
        for layer in range(found.shape[0]):
            for p in range(found.shape[1]):
                with self.model.trace(ids):
                    blocks[layer].input[:, p] = self.values[layer, p]
                    last = self.model.lm_head.output[0, -1]
                    difference = (last[answer] - last[wrong]).save()
                found[layer, p] = difference
        return found

    def residual_sweep_invokes(self) -> Tensor:
        """A trace a layer, in which every patch is an invoke: one forward of as many rows as there are positions."""
        blocks, ids, answer, wrong = self._blocks(), self.inputs.clean[None], self.inputs.answer, self.inputs.wrong
        found = torch.empty(self.values.shape[:2])
        for layer in range(found.shape[0]):
            differences = []
            with self.model.trace() as tracer:
                for p in range(found.shape[1]):
                    with tracer.invoke(ids):
                        blocks[layer].input[:, p] = self.values[layer, p]
                        last = self.model.lm_head.output[0, -1]
                        differences.append((last[answer] - last[wrong]).save())
            found[layer] = torch.stack(differences)
        return found

    def _projection(self, layer: int) -> object:
        block = self._blocks()[layer]
        return block.attn.c_proj if self.gpt2 else block.self_attn.o_proj

    def head_sweep(self) -> Tensor:
        """A trace a head."""
        ids, answer, wrong = self.inputs.clean[None], self.inputs.answer, self.inputs.wrong
        width = self.z.shape[-1] // self.n_heads
        found = torch.empty(len(self.z), self.n_heads)
        for layer in range(found.shape[0]):
            projection = self._projection(layer)
            for head in range(self.n_heads):
                part = slice(head * width, (head + 1) * width)
                with self.model.trace(ids):
                    projection.input[..., part] = self.z[layer, :, part]
                    last = self.model.lm_head.output[0, -1]
                    difference = (last[answer] - last[wrong]).save()
                found[layer, head] = difference
        return found

    def head_sweep_invokes(self) -> Tensor:
        """A trace a layer, in which every head is an invoke."""
        ids, answer, wrong = self.inputs.clean[None], self.inputs.answer, self.inputs.wrong
        width = self.z.shape[-1] // self.n_heads
        found = torch.empty(len(self.z), self.n_heads)
        for layer in range(found.shape[0]):
            projection, differences = self._projection(layer), []
            with self.model.trace() as tracer:
                for head in range(self.n_heads):
                    with tracer.invoke(ids):
                        part = slice(head * width, (head + 1) * width)
                        projection.input[..., part] = self.z[layer, :, part]
                        last = self.model.lm_head.output[0, -1]
                        differences.append((last[answer] - last[wrong]).save())
            found[layer] = torch.stack(differences)
        return found
