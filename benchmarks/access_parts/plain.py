"""Plain Hugging Face: the forward, one patch a forward through a hook, attribution by hand, and `generate`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}
OUTPUT_PROJECTION = {"gpt2": "attn.c_proj", "llama": "self_attn.o_proj"}


def blocks(hf: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a model."""
    return hf.get_submodule(BLOCKS[hf.config.model_type])


def output_projections(hf: PreTrainedModel) -> list[nn.Module]:
    """The attention output projection of every block: its input is z, heads side by side."""
    return [block.get_submodule(OUTPUT_PROJECTION[hf.config.model_type]) for block in blocks(hf)]


@torch.no_grad()
def forward(hf: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits."""
    return hf(ids, use_cache=False).logits


def record(hf: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """resid_pre `[layer, pos, d_model]` and z `[layer, pos, head * d_head]` of one prompt `[pos]`."""
    residual: list[Tensor] = []
    z: list[Tensor] = []
    handles = [m.register_forward_pre_hook(lambda _, args: residual.append(args[0][0])) for m in blocks(hf)]
    handles += [m.register_forward_pre_hook(lambda _, args: z.append(args[0][0])) for m in output_projections(hf)]
    try:
        forward(hf, ids[None])
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(residual), torch.stack(z)


def residual_loop(hf: PreTrainedModel, ids: Tensor, values: Tensor, answer: int, wrong: int) -> Tensor:
    """The metric `[layer, pos]`, one patch of resid_pre a forward: what every sweep must equal."""
    found = values.new_empty(values.shape[:2])
    for layer, block in enumerate(blocks(hf)):
        for p in range(values.shape[1]):

            def patch(module: nn.Module, args: tuple, layer: int = layer, p: int = p) -> tuple:
                changed = args[0].clone()
                changed[:, p] = values[layer, p]
                return (changed, *args[1:])

            found[layer, p] = _patched(hf, block, patch, ids, answer, wrong)
    return found


def head_loop(hf: PreTrainedModel, ids: Tensor, z: Tensor, answer: int, wrong: int) -> Tensor:
    """The metric `[layer, head]`, one head's z patched at all positions a forward."""
    n_heads = hf.config.num_attention_heads
    width = z.shape[-1] // n_heads
    found = z.new_empty(len(z), n_heads)
    for layer, module in enumerate(output_projections(hf)):
        for head in range(n_heads):
            part = slice(head * width, (head + 1) * width)

            def patch(module: nn.Module, args: tuple, layer: int = layer, part: slice = part) -> tuple:
                changed = args[0].clone()
                changed[..., part] = z[layer, :, part]
                return (changed, *args[1:])

            found[layer, head] = _patched(hf, module, patch, ids, answer, wrong)
    return found


def _patched(hf: PreTrainedModel, module: nn.Module, patch: object, ids: Tensor, answer: int, wrong: int) -> Tensor:
    handle = module.register_forward_pre_hook(patch)
    try:
        last = forward(hf, ids[None])[0, -1]
    finally:
        handle.remove()
    return last[answer] - last[wrong]


def forward_and_backward(hf: PreTrainedModel, ids: Tensor, corrupted: Tensor, answer: int, wrong: int) -> Tensor:
    """What attribution cannot do without: one forward, and one forward-backward in which no weight needs a gradient.

    The corrupted prompts go forward only; in the clean run the embeddings are the leaf, so that the backward pass
    crosses every block. Returns that gradient.
    """
    forward(hf, corrupted)
    embedded = hf.get_input_embeddings()(ids).detach().requires_grad_()
    last = hf(inputs_embeds=embedded, use_cache=False).logits[:, -1]
    (gradient,) = torch.autograd.grad((last[:, answer] - last[:, wrong]).sum(), embedded)
    return gradient


def attribution(hf: PreTrainedModel, ids: Tensor, corrupted: Tensor, answer: int, wrong: int) -> Tensor:
    """Gradient times difference for every head by hand: `[layer, row, head]`, summed over positions.

    The difference is corrupted less clean, so that a value estimates what patching that head would change.
    """
    store: list[list[Tensor]] = [[], []]
    modules = output_projections(hf)
    with torch.enable_grad():
        for run, prompts in enumerate((ids, corrupted)):
            keep = store[run].append
            handles = [m.register_forward_pre_hook(lambda _, args, keep=keep: keep(args[0])) for m in modules]
            try:
                embedded = hf.get_input_embeddings()(prompts).detach().requires_grad_(run == 0)
                logits = hf(inputs_embeds=embedded, use_cache=False).logits[:, -1]
            finally:
                for handle in handles:
                    handle.remove()
            if run == 0:
                metric = (logits[:, answer] - logits[:, wrong]).sum()
    gradients = torch.autograd.grad(metric, store[0])
    width = store[0][0].shape[-1] // hf.config.num_attention_heads
    effects = [
        (g * (there - here).detach()).unflatten(-1, (-1, width)).sum(dim=(1, 3))
        for g, here, there in zip(gradients, *store, strict=True)
    ]
    return torch.stack(effects)


@torch.no_grad()
def generate(hf: PreTrainedModel, ids: Tensor, new: int) -> Tensor:
    """Greedy continuation `[row, new]` without edits."""
    out = hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    return out[:, ids.shape[1] :]


def first_blocks(hf: PreTrainedModel, layers: int) -> nn.Module:
    """A copy of the model's body that ends after some blocks, without the final norm."""
    body = copy.deepcopy(hf.base_model)
    name, norm = ("h", "ln_f") if hf.config.model_type == "gpt2" else ("layers", "norm")
    setattr(body, name, nn.ModuleList(list(getattr(body, name))[:layers]))
    setattr(body, norm, nn.Identity())
    body.config.num_hidden_layers = layers  # some bodies count blocks by their configuration
    return body


@torch.no_grad()
def run_body(body: nn.Module, ids: Tensor) -> Tensor:
    """What the last block gives."""
    return body(ids, use_cache=False).last_hidden_state
