"""Edits of the residual stream, each with its new value by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from hooke.base.seeds import torch_generator
from hooke.dictionaries.activations.topk import TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.model.edits import Ablate, Add, Call, Freeze, Project, Scale, Set, Splice
from hooke.model.tokens import Tokens

D = 32
SAME = ["abcdef", "ghijkl", "mnopqr"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dictionary() -> Dictionary:
    return Dictionary(D, 20, activation=TopK(k=4), reads="resid_post.1", seed=3).double()


def noise(tokens: Tokens, shared: bool) -> Tensor:
    """Drawn by hand: one named stream for each row and each position of its own."""
    out = torch.zeros(*tokens.shape, D, dtype=torch.float64)
    for row in range(len(tokens)):
        for position in range(int(tokens.lengths[row])):
            stream = torch_generator(7, "noise", "resid_post.1", 0 if shared else row, position)
            out[row, int(tokens.starts[row]) + position] = 0.5 * torch.randn(D, generator=stream)
    return out


def decoded(x: Tensor, **latents: float) -> Tensor:
    """A dictionary's reconstruction with latents set, by its dense form."""
    sparse = dictionary()
    codes = sparse.encode(x).dense()
    for name, value in latents.items():
        codes[..., int(name[1:])] = value
    return codes @ sparse.W_dec.detach() + sparse.b_dec.detach()


MEAN, PLACES = draw(30, D), draw(3, 7, D)
# name -> (edit, the new value of the block's output by hand)
AT_A_BLOCK = {
    "set": (lambda: Set("resid_post.1", draw(D)), lambda x, t: draw(D).expand_as(x)),
    "set-places": (lambda: Set("resid_post.1", PLACES), lambda x, t: PLACES),
    "add": (lambda: Add("resid_post.1", draw(D), scale=-2.5), lambda x, t: x - 2.5 * draw(D)),
    "add-places": (lambda: Add("resid_post.1", PLACES, scale=0.5), lambda x, t: x + 0.5 * PLACES),
    "scale": (lambda: Scale("resid_post.1", 0.3), lambda x, t: 0.3 * x),
    "project": (
        lambda: Project("resid_post.1", draw(D)),
        lambda x, t: x - (x @ draw(D))[..., None] * draw(D) / (draw(D) @ draw(D)),
    ),
    "zero": (lambda: Ablate("resid_post.1"), lambda x, t: 0 * x),
    "mean": (lambda: Ablate("resid_post.1", "mean", draw(D)), lambda x, t: draw(D).expand_as(x)),
    "mean-by-position": (lambda: Ablate("resid_post.1", "mean", MEAN), lambda x, t: MEAN[:7].expand_as(x)),
    "mean-places": (lambda: Ablate("resid_post.1", "mean", PLACES), lambda x, t: PLACES),
    "resample": (lambda: Ablate("resid_post.1", "resample"), lambda x, t: x[[2, 0, 1]]),
    "resample-2": (lambda: Ablate("resid_post.1", "resample", shift=2), lambda x, t: x[[1, 2, 0]]),
    "noise": (lambda: Ablate("resid_post.1", "noise", std=0.5, seed=7), lambda x, t: x + noise(t, False)),
    "noise-shared": (
        lambda: Ablate("resid_post.1", "noise", std=0.5, seed=7, shared=True),
        lambda x, t: x + noise(t, True),
    ),
    "freeze": (lambda: Freeze("resid_post.1", {"resid_post.1": PLACES}), lambda x, t: PLACES),
    "call": (lambda: Call("resid_post.1", lambda x: x.cumsum(1).tanh()), lambda x, t: x.cumsum(1).tanh()),
    "splice": (
        lambda: Splice("resid_post.1", dictionary(), positions=None),
        lambda x, t: dictionary().reconstruct(x).detach(),
    ),
    "splice-set": (
        lambda: Splice("resid_post.1", dictionary(), positions=None, latents={3: 2.0, 7: 0.0}),
        lambda x, t: decoded(x, l3=2.0, l7=0.0),
    ),
    "splice-set-error": (
        lambda: Splice("resid_post.1", dictionary(), positions=None, latents={3: 2.0}, error="keep"),
        lambda x, t: x - decoded(x) + decoded(x, l3=2.0),
    ),
    "splice-scale": (
        lambda: Splice("resid_post.1", dictionary(), positions=None, latents={i: 3.0 for i in range(20)}, by="scale"),
        lambda x, t: 3 * (decoded(x) - dictionary().b_dec.detach()) + dictionary().b_dec.detach(),
    ),
}
