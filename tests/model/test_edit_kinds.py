"""Every kind of edit equals a hand-written hook on the same module, in float64, on three kinds of block."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
from conftest_model import TEXTS, random_model
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, HookeError, ShapeError, SiteError
from hooke.base.seeds import torch_generator
from hooke.dictionaries.activations.topk import TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.model.edits import (
    KINDS,
    Ablate,
    Add,
    Call,
    Freeze,
    Mask,
    Project,
    Scale,
    Set,
    Splice,
    expand_each,
)
from hooke.model.load import load
from hooke.model.model import Model
from hooke.model.tokens import Tokens

D, LAYER = 32, 1
SAME = ["abcdef", "ghijkl", "mnopqr"]
BLOCK = {"gpt2": "transformer.h.1", "llama-gqa": "model.layers.1", "gpt_neox": "gpt_neox.layers.1"}
ATTENTION = {"gpt2": "attn", "llama-gqa": "self_attn", "gpt_neox": "attention"}
OUT = {"gpt2": "c_proj", "llama-gqa": "o_proj", "gpt_neox": "dense"}
NORM = {"gpt2": "ln_1", "llama-gqa": "input_layernorm", "gpt_neox": "input_layernorm"}


@pytest.fixture(params=list(BLOCK))
def family(request):
    return request.param


@pytest.fixture
def model(family) -> Model:
    return random_model(family, torch.float64, "sdpa")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dictionary() -> Dictionary:
    return Dictionary(D, 20, activation=TopK(k=4), reads="resid_post.1", seed=3).double()


def logits_of(model: Model, tokens: Tokens, *hooks) -> Tensor:
    """A plain forward pass under hooks, each (module path, kind, function)."""
    with ExitStack() as stack, torch.no_grad():
        for path, kind, hook in hooks:
            module = model.hf.get_submodule(path)
            options = {"with_kwargs": True} if kind == "forward_pre" else {}
            stack.callback(getattr(module, f"register_{kind}_hook")(hook, **options).remove)
        return model.hf(**model.arguments(tokens), use_cache=False).logits


def same(edited: Tensor, by_hand: Tensor, plain: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(edited, by_hand, atol=tolerance, rtol=tolerance)
    assert (edited - plain).abs().max() > 1e-6  # the edit did something


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


@pytest.mark.parametrize("kind", list(AT_A_BLOCK))
def test_an_edit_of_the_residual_stream_equals_a_hook(model, family, kind):
    make, by_hand = AT_A_BLOCK[kind]
    tokens = model.tokens(SAME)
    expected = logits_of(model, tokens, (BLOCK[family], "forward", lambda module, args, out: by_hand(out, tokens)))
    same(model.run(tokens, edits=[make()]).logits, expected, model.run(tokens).logits)


def test_every_kind_is_here():
    makes = [make() for make, _ in AT_A_BLOCK.values()]
    assert {type(edit).__name__ for edit in makes} | {"Mask"} == set(KINDS)


# -- inside attention: the mask, and patterns applied by hand to the values ------------------------------------------


def cut_by_hand(model: Model, family: str, tokens: Tokens, cut: Tensor) -> Tensor:
    def hook(module, args, kwargs):
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"] & ~cut}

    return logits_of(model, tokens, (f"{BLOCK[family]}.{ATTENTION[family]}", "forward_pre", hook))


@pytest.mark.parametrize("side", ["left", "right"])
def test_mask_by_pairs_equals_the_models_own_mask(model, family, side):
    tokens = model.tokens(TEXTS, padding_side=side)
    cut = torch.zeros(3, 1, *[tokens.shape[1]] * 2, dtype=torch.bool)
    for row, start in enumerate(tokens.starts):
        last = start + tokens.lengths[row] - 1
        cut[row, 0, last, start] = cut[row, 0, start + 3, start + 2] = True
    edit = Mask("scores.1", [("last", 0), (3, 2)])
    kept = tokens.mask
    same(
        model.run(tokens, edits=[edit]).logits[kept],
        cut_by_hand(model, family, tokens, cut)[kept],
        model.run(tokens).logits[kept],
    )


def test_mask_of_one_head_as_a_tensor(model, family):
    tokens = model.tokens(TEXTS, padding_side="left")
    edges = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)) < 0.4
    edges.fill_diagonal_(False)
    cut = torch.zeros(3, 4, *[tokens.shape[1]] * 2, dtype=torch.bool)
    for row, start in enumerate(tokens.starts):
        own = int(tokens.lengths[row])
        cut[row, 2, start:, start:] = edges[:own, :own]
    by_hand = cut_by_hand(model, family, tokens, cut)[tokens.mask]
    plain = model.run(tokens).logits[tokens.mask]
    same(model.run(tokens, edits=[Mask("scores.1.2", edges)]).logits[tokens.mask], by_hand, plain)
    same(model.run(tokens, edits=[Mask("scores.1.2", cut[:, 2])]).logits[tokens.mask], by_hand, plain)


def values_of(model: Model, family: str) -> tuple[str, callable]:
    """The module that computes values, and how to read them, a head for each query head."""
    attention, d = f"{BLOCK[family]}.{ATTENTION[family]}", model.d_head
    if family == "gpt2":
        return f"{attention}.c_attn", lambda out: out[..., 2 * D :].unflatten(-1, (-1, d)).transpose(1, 2)
    if family == "gpt_neox":
        return f"{attention}.query_key_value", lambda out: out.unflatten(-1, (-1, 3 * d))[..., 2 * d :].transpose(1, 2)
    return f"{attention}.v_proj", lambda out: out.unflatten(-1, (-1, d)).transpose(1, 2).repeat_interleave(2, dim=1)


def attend_by_hand(model: Model, family: str, tokens: Tokens, pattern: Tensor, *more) -> Tensor:
    """The forward pass with a given pattern in layer 1: its values are read, mixed by hand, and put before the output
    projection.
    """
    path, read = values_of(model, family)
    seen = {}

    def store(module, args, out):
        seen["values"] = read(out)

    def replace(module, args, kwargs):
        return (pattern @ seen["values"]).transpose(1, 2).flatten(-2), *args[1:]

    def put(module, args, kwargs):
        return replace(module, args, kwargs), kwargs

    out = f"{BLOCK[family]}.{ATTENTION[family]}.{OUT[family]}"
    return logits_of(model, tokens, (path, "forward", store), (out, "forward_pre", put), *more)


OF_A_PATTERN = {
    "set": (lambda p: Set("pattern.1", p.roll(1, dims=1)), lambda p: p.roll(1, dims=1)),
    "set-one-map": (lambda p: Set("pattern.1", p[0, 0]), lambda p: p[0, 0].expand_as(p)),
    "set-a-map-a-row": (lambda p: Set("pattern.1", p[:, 3]), lambda p: p[:, 3:4].expand_as(p)),
    "scale": (lambda p: Scale("pattern.1", 0.5), lambda p: p / 2),
    "zero": (lambda p: Ablate("pattern.1"), lambda p: 0 * p),
    "resample": (lambda p: Ablate("pattern.1", "resample"), lambda p: p[[2, 0, 1]]),
    "mean": (lambda p: Ablate("pattern.1", "mean", p.mean(0, keepdim=True)), lambda p: p.mean(0).expand_as(p)),
    "call": (lambda p: Call("pattern.1", lambda x: x**2), lambda p: p**2),
    "uniform": (lambda p: Ablate("scores.1"), lambda p: (p > 0).double() / (p > 0).sum(-1, keepdim=True)),
    "hotter": (lambda p: Scale("scores.1", 2.0), lambda p: p**2 / (p**2).sum(-1, keepdim=True)),
    "queries": (
        lambda p: Ablate("pattern.1", positions=[2, -1]),
        lambda p: p.index_fill(2, torch.tensor([2, 6]), 0),
    ),
}


@pytest.mark.parametrize("kind", list(OF_A_PATTERN))
def test_an_edit_of_attention_equals_mixing_the_values_by_hand(model, family, kind):
    make, by_hand = OF_A_PATTERN[kind]
    tokens = model.tokens(SAME)
    plain = model.run(tokens, capture=["pattern.1"])
    pattern = plain["pattern.1"]
    edited = model.run(tokens, edits=[make(pattern)]).logits
    same(edited, attend_by_hand(model, family, tokens, by_hand(pattern)), plain.logits)


def test_freeze_holds_patterns_and_norms_of_another_run(model, family):
    clean, other = model.tokens(SAME), model.tokens(SAME[::-1])
    frozen = model.run(clean, capture=["pattern.1", "attn_norm_scale.1"])
    edit = Freeze.from_run(frozen, "pattern.*", "*_norm_scale.1")
    assert [str(site) for site in edit.patterns] == ["pattern.1", "attn_norm_scale.1"]
    norm = model.hf.get_submodule(f"{BLOCK[family]}.{NORM[family]}")

    def scaled(module, args, out):
        x = args[0] if family == "llama-gqa" else args[0] - args[0].mean(-1, keepdim=True)
        x = x / frozen["attn_norm_scale.1"] * norm.weight
        return x if family == "llama-gqa" else x + norm.bias

    hook = (f"{BLOCK[family]}.{NORM[family]}", "forward", scaled)
    expected = attend_by_hand(model, family, other, frozen["pattern.1"], hook)
    # Llama's own norm computes in float32 whatever the precision; by hand it is float64 here.
    tolerance = 1e-5 if family == "llama-gqa" else 1e-12
    same(model.run(other, edits=[edit]).logits, expected, model.run(other).logits, tolerance)


def test_freezing_everything_of_the_same_run_changes_nothing(model):
    tokens = model.tokens(TEXTS, padding_side="left")
    run = model.run(tokens, capture=["pattern.*", "scores.0", "attn_norm_scale.*", "final_norm_scale", "z.1.2"])
    again = model.run(tokens, edits=[Freeze.from_run(run)]).logits
    torch.testing.assert_close(again[tokens.mask], run.logits[tokens.mask], atol=1e-12, rtol=1e-12)


# -- positions -------------------------------------------------------------------------------------------------------


def test_edits_at_positions_are_the_same_whatever_the_padding(model):
    edits = [
        Ablate("resid_post.0", "mean", MEAN, positions=[1, -2]),
        Ablate("resid_post.1", "noise", std=0.3),
        Mask("scores.1", [(4, 1)]),
        Mask("scores.2.1", torch.ones(30, 30, dtype=torch.bool).tril(-2)),
    ]
    alone = [model.run(text, edits=edits[:1] + edits[2:]).logits[0] for text in TEXTS]
    for side in ("left", "right"):
        tokens = model.tokens(TEXTS, padding_side=side)
        together = model.run(tokens, edits=edits[:1] + edits[2:]).logits
        for row, logits in enumerate(alone):
            torch.testing.assert_close(together[row][tokens.mask[row]], logits, atol=1e-10, rtol=1e-10)
    noisy = [model.run(model.tokens(TEXTS, padding_side=s), edits=edits) for s in ("left", "right")]
    for row in range(3):
        left, right = (run.logits[row][run.tokens.mask[row]] for run in noisy)
        torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-10)


def test_noise_depends_on_seed_site_row_and_position_only():
    model = random_model("gpt2", torch.float64)

    def drawn(texts, **options):
        site = options.pop("site", "resid_post.0")
        tokens = model.tokens(texts)
        run, plain = (
            model.run(tokens, capture=[site], edits=e) for e in ([Ablate(site, "noise", std=1.0, **options)], [])
        )
        return run[site] - plain[site]

    first = drawn(SAME)
    assert torch.allclose(drawn(SAME[:1]), first[:1])
    assert torch.allclose(drawn(["abcd"]), first[:1, :5])
    assert not torch.allclose(first[0], first[1])
    shared = drawn(SAME, shared=True)
    assert torch.allclose(shared[0], shared[2])
    assert not torch.allclose(drawn(SAME, seed=1), first)
    assert not torch.allclose(drawn(SAME, site="resid_post.1"), first)
    assert abs(float(first.std()) - 1) < 0.05


def test_positions_by_name_and_each():
    model = random_model("gpt2", torch.float64)
    plain = model.tokens(SAME)
    tokens = Tokens(plain.ids, plain.mask, plain.keep, {"subject": torch.tensor([1, -2, 3])})
    run = model.run(tokens, capture=["resid_post.1"], edits=[Ablate("resid_post.1", positions="subject")])
    assert (run["resid_post.1"] == 0).all(-1).nonzero().tolist() == [[0, 1], [1, 5], [2, 3]]
    cut = model.run(tokens, capture=["pattern.1"], edits=[Mask("scores.1", [("last", "subject")])])["pattern.1"]
    assert cut[:, 0, -1].eq(0).nonzero().tolist() == [[0, 1], [1, 5], [2, 3]]
    each = [Add("resid_post.0", draw(D), positions="each"), Scale("resid_post.1", 0.5, positions=0)]
    sets = expand_each(each, tokens)
    assert [[edit.positions for edit in own] for own in sets] == [[p, 0] for p in range(7)]
    assert all(own[1] is each[1] for own in sets)
    assert expand_each(each[1:], tokens) == [[each[1]]]
    with pytest.raises(DataError, match=r"rows of one length; these have \[16, 6, 27\]"):
        expand_each(each, model.tokens(TEXTS))
    with pytest.raises(ConfigError, match="'each' stands for many runs"):
        model.run(tokens, edits=each)


def test_generation_under_a_mask_pads_where_it_must(model):
    """The first new token under right padding, which generation moves to the left, is that of each prompt alone."""
    edit = Mask("scores.1", [(4, 1), (3, 2), ("last", 0)])
    together = model.generate(model.tokens(TEXTS), edits=[edit], max_new_tokens=3)
    for row, text in enumerate(TEXTS):
        alone = model.generate(text, edits=[edit], max_new_tokens=3)
        assert together.ids[row].tolist()[: alone.ids.shape[1]] == alone.ids[0].tolist()


# -- gradients, precision, modes -------------------------------------------------------------------------------------

WITH_TENSORS = {
    "set": lambda v: Set("resid_post.0", v),
    "set-places": lambda v: Set("resid_post.0", v.expand(3, 2, D) * 1.0, positions=[1, -1]),
    "add": lambda v: Add("resid_post.0", v, scale=2.0),
    "project": lambda v: Project("resid_post.0", v),
    "mean": lambda v: Ablate("resid_post.0", "mean", v),
    "mean-by-position": lambda v: Ablate("resid_post.0", "mean", v.expand(7, D) * 1.0),
    "freeze": lambda v: Freeze("resid_post.0", {"resid_post.0": v}),
    "call": lambda v: Call("resid_post.0", lambda x: x * v),
}


@pytest.mark.parametrize("kind", list(WITH_TENSORS))
def test_gradients_reach_the_edits_own_tensors(kind):
    model = random_model("gpt2", torch.float64)
    tokens, vector, step = model.tokens(SAME), draw(D), 1e-6 * draw(D, seed=1)

    def value(v: Tensor) -> Tensor:
        return model.run(tokens, edits=[WITH_TENSORS[kind](v)], gradients=True).logits[:, -1, 5].sum()

    (gradient,) = torch.autograd.grad(value(vector.requires_grad_()), vector)
    slope = (value((vector + step).detach()) - value((vector - step).detach())).detach() / 2
    assert slope.item() == pytest.approx(float(gradient @ step), rel=1e-5)


THROUGH = {
    **{name: make for name, (make, _) in AT_A_BLOCK.items() if not name.startswith(("set", "mean", "freeze", "zero"))},
    "mask": lambda: Mask("scores.1", [(3, 1)]),
    "set-one-place": lambda: Set("resid_post.1", draw(D), positions=2),
}


@pytest.mark.parametrize("kind", list(THROUGH))
def test_gradients_flow_through_every_kind(kind):
    """From the logits through the edit to an added vector below it, against finite differences."""
    model = random_model("gpt2", torch.float64)  # Llama's norms compute in float32 whatever the precision
    tokens, vector, step = model.tokens(SAME), draw(D), 1e-6 * draw(D, seed=1)

    def value(v: Tensor) -> Tensor:
        edits = [Add("resid_post.0", v), THROUGH[kind]()]
        return model.run(tokens, edits=edits, gradients=True).logits[:, -1, 5].sum()

    (gradient,) = torch.autograd.grad(value(vector.requires_grad_()), vector)
    slope = (value((vector + step).detach()) - value((vector - step).detach())).detach() / 2
    assert gradient.abs().max() > 0
    assert slope.item() == pytest.approx(float(gradient @ step), rel=1e-4)


EVERYWHERE = [make() for make, _ in AT_A_BLOCK.values()] + [Mask("scores.1", [(3, 1)]), Scale("pattern.1.0", 0.5)]


@pytest.mark.parametrize("edit", EVERYWHERE, ids=lambda edit: edit.label)
def test_modes_of_torch_are_respected(edit, family):
    model = random_model(family, torch.float32)
    tokens = model.tokens(SAME)
    plain = model.run(tokens, edits=[edit])
    with torch.inference_mode():
        inside = model.run(tokens, edits=[edit])
    assert torch.equal(inside.logits, plain.logits)
    assert inside.logits.is_inference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.run(tokens, capture=["resid_post.1", "v.1"], edits=[edit])
    assert low["v.1"].dtype == torch.bfloat16  # autocast was at work
    assert low["resid_post.1"].dtype == torch.float32  # and the edit did not lower the stream
    # Bfloat16 has 8 bits; a dictionary's choice of latents may flip.
    if not isinstance(edit, Splice):
        torch.testing.assert_close(low.logits.float(), plain.logits, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("way", ["whole", "in place", "by block"])
def test_edits_and_captures_work_on_compiled_models(way):
    plain = random_model("gpt2", torch.float64)
    model = load((copy.deepcopy(plain.hf), plain.tokenizer))
    if way == "whole":
        model.hf = torch.compile(model.hf, backend="eager")
    else:
        for module in [model.hf] if way == "in place" else model.hf.transformer.h:
            module.compile(backend="eager")
    tokens = model.tokens(SAME)
    assert torch.equal(model.run(tokens).logits, plain.run(tokens).logits)  # compiled by now, without hooks
    for edit in (Scale("mlp_out.1", 0.3), Mask("scores.1", [(3, 1)]), Add("attn_out.1", draw(D))):
        for _ in range(2):
            ours, theirs = (m.run(tokens, capture=["mlp_in.2"], edits=[edit]) for m in (model, plain))
            assert torch.equal(ours.logits, theirs.logits)
            assert torch.equal(ours["mlp_in.2"], theirs["mlp_in.2"])
    assert torch.equal(model.run(tokens).logits, plain.run(tokens).logits)
    assert torch.compiler.is_compiling() is False
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_an_edit_that_never_happens_is_an_error(monkeypatch):
    model = load((copy.deepcopy(random_model("gpt2").hf), random_model("gpt2").tokenizer))
    block = model.hf.transformer.h[1]
    monkeypatch.setattr(block, "forward", lambda hidden_states, *args, **kwargs: hidden_states)  # no module inside runs
    with pytest.raises(SiteError, match=r"never computed in this run: mlp_out.1"):
        model.run("abc", edits=[Scale("mlp_out.1", 0.5)])


# -- refusals --------------------------------------------------------------------------------------------------------

WHOLE = torch.ones(7, 7, dtype=torch.bool)
BAD = [
    (lambda: Ablate("resid_post.1", "reasmple"), ConfigError, "did you mean 'resample'"),
    (
        lambda: Ablate("resid_post.1", "resample", shift=3),
        DataError,
        "shift 3 in a batch of 3 pairs every row with its",
    ),
    (lambda: Ablate("resid_post.1", "noise"), ConfigError, "kind 'noise' needs std"),
    (lambda: Ablate("resid_post.1", "noise", std=-1.0), DataError, "std is -1.0; expected at least 0"),
    (lambda: Ablate("resid_post.1", "noise", std=float("nan")), DataError, "std is nan; expected a finite number"),
    (lambda: Ablate("scores.1", "noise", std=1.0), ConfigError, "scores.1 is a map over positions"),
    (lambda: Ablate("resid_post.1", "mean", draw(5, D)), ShapeError, "5 positions; the longest row has 7"),
    (lambda: Ablate("pattern.1", "mean", draw(3, 5, 7, 7)), ShapeError, r"\[3, 4, 7, 7\]"),
    (lambda: Scale("resid_post.1", float("inf")), DataError, "factor is inf; expected a finite number"),
    (lambda: Add("resid_post.1", draw(D), scale=float("nan")), DataError, "scale is nan"),
    (lambda: Add("pattern.1", draw(7)), ShapeError, "map of this prompt at pattern.1"),
    (lambda: Project("pattern.1", draw(7)), ConfigError, "no direction to remove"),
    (lambda: Set("pattern.1", draw(2, 7, 7)), ShapeError, r"\[batch, head, query, key\]"),
    (lambda: Set("resid_post.1", draw(2, D), positions=[0, -7]), DataError, "name one position twice"),
    (lambda: Mask("pattern.1", [(1, 0)]), ConfigError, r"edges are cut at scores; write Mask\('scores.1'"),
    (lambda: Mask("scores.1", [(0, 1)]), DataError, r"did you mean \(1, 0\)"),
    (lambda: Mask("scores.1", [(9, 0)]), DataError, "position 9 is beyond row 0, which has 7 tokens"),
    (lambda: Mask("scores.1", [("lst", 0)]), DataError, "'lst' is not a name of these tokens"),
    (lambda: Mask("scores.1", [(1, 0), (1, 1)]), DataError, "query 1 of row 0 would see no key at all"),
    (lambda: Mask("scores.1", WHOLE), DataError, "query 0 of row 0 would see no key"),
    (lambda: Mask("scores.1", WHOLE[:4, :4]), ShapeError, "at least 7 positions"),
    (lambda: Mask("scores.1", WHOLE.float()), DataError, "expected Bool"),
    (lambda: Mask("scores.1.4", [(1, 0)]), SiteError, "head 4 is out of range"),
    (lambda: Freeze("x", {"resid_post.1": draw(3, 6, D)}), ShapeError, r"only \[batch, pos\] = \(3, 7\)"),
    (lambda: Freeze("x", {"resid_mid.9": draw(3, 7, D)}), SiteError, "layer 9 is out of range"),
    (lambda: Freeze("x", {"resid_post.1": draw(3, 7, D) / 0}), DataError, "NaN or infinite"),
    (lambda: Splice("resid_post.1", dictionary(), latents={20: 1.0}), DataError, "latent 20 .* expected 0 to 19"),
    (lambda: Splice("resid_post.1", dictionary(), latents={1: float("nan")}), DataError, r"latents\[1\] is nan"),
    (lambda: Splice("pattern.1", dictionary()), ConfigError, "a dictionary reads activations"),
]


@pytest.mark.parametrize(("make", "error", "says"), BAD)
def test_what_does_not_fit_is_refused_before_the_model_runs(make, error, says):
    model = random_model("gpt2")
    ran = []
    handle = model.hf.register_forward_pre_hook(lambda module, args: ran.append(1))
    try:
        with pytest.raises(error, match=says) as caught:
            model.run(SAME, edits=[make()])
    finally:
        handle.remove()
    assert isinstance(caught.value, HookeError)
    assert not ran


def test_resample_needs_aligned_rows_and_more_than_one():
    model = random_model("gpt2")
    with pytest.raises(DataError, match=r"rows of one length; these have \[16, 6, 27\] tokens"):
        model.run(TEXTS, edits=[Ablate("z.1", "resample")])
    with pytest.raises(DataError, match="batch of 1 .* at least two rows"):
        model.run("abc", edits=[Ablate("z.1", "resample")])


def test_a_window_that_leaves_no_key_is_found_out_and_nothing_is_left_behind():
    model = random_model("mistral-window")
    with pytest.raises(DataError, match="query in column 9 would see no key"):
        model.run(TEXTS[2], edits=[Mask("scores.1", [(9, key) for key in range(4, 10)])])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_a_function_that_changes_the_shape_is_named():
    with pytest.raises(ShapeError, match=r"Call\(<lambda>\) at resid_post.1: the function gave \(3, 1, 32\)"):
        random_model("gpt2").run(SAME, edits=[Call("resid_post.1", lambda x: x[:, :1])])


def test_freeze_from_a_run_that_has_not_what_is_asked_for():
    model = random_model("gpt2")
    run = model.run("abc", capture=["pattern.1"])
    with pytest.raises(SiteError, match="matches 'patern.1'; did you mean 'pattern.1'"):
        Freeze.from_run(run, "patern.1")
    with pytest.raises(DataError, match="capture it without `at`"):
        Freeze.from_run(model.run("abc", capture=["z.1"], at="last"))


def test_which_kinds_are_local():
    odd = {"resample", "resample-2", "call"}
    assert {name for name, (make, _) in AT_A_BLOCK.items() if not make().is_local} == odd
    assert Mask("scores.1", [(1, 0)]).is_local
