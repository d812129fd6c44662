"""`evaluate` against an independent float64 reference that hooks the Hugging Face module by hand."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import t as student

import hooke
from hooke.data import corpora
from hooke.data.packing import pack_mixed
from hooke.dictionaries import BatchTopK, Dictionary
from hooke.evals import evaluate

TEXTS = corpora.texts([f"class A{i}:\n    def f(self, x):\n        return x + {i}\n" * (3 + i) for i in range(12)])
SIZES = {"n_tokens": 900, "n_fit": 500, "context": 48, "batch": 4, "seed": 3}


@pytest.fixture(scope="module")
def case():
    """A model, a dictionary with random weights whose threshold suits the site, and its evaluation."""
    model = hooke.load("hooke/stdlib")
    made = Dictionary(256, 512, activation=BatchTopK(12), reads="resid_post.2", seed=1)
    rows = next(hooke.harvest(model, TEXTS, "resid_post.2", n_tokens=800, batch=64)).rows[hooke.Site("resid_post", 2)]
    with torch.no_grad():
        made.b_dec.copy_(rows.mean(0) + 0.05)
        made.W_dec.mul_(0.7)
    made.calibrate(rows)
    return model, made, evaluate(made, model, corpus=TEXTS, **SIZES)


def run(model, tokens, rows=None):
    """Activations after block 2 and log-probabilities of the plain module, with rows written at kept places."""
    seen = []

    def hook(module, args, out):
        seen.append(out.clone())
        if rows is None:
            return None
        out = out.clone()
        out[tokens.keep] = rows.to(out)
        return out

    handle = model.hf.model.layers[2].register_forward_hook(hook)
    with torch.no_grad():
        logits = model.hf(**model.arguments(tokens), use_cache=False).logits
    handle.remove()
    return seen[0][tokens.keep].double(), logits[:, :-1].double().log_softmax(-1)[tokens.keep[:, 1:]]


def encode(made, x):
    pre = (x - made.b_dec.detach().double()) @ made.encoder.detach().double().T + made.b_enc.detach().double()
    return pre * (pre > float(made.threshold))


def reference(model, made):
    """Every score, computed densely; names as in `Evaluation.values`."""
    batches = pack_mixed(TEXTS, model, context=SIZES["context"], batch=SIZES["batch"], seed=SIZES["seed"])
    fit = []
    while sum(map(len, fit)) < SIZES["n_fit"]:
        fit.append(run(model, next(batches).tokens)[0])
    fit = torch.cat(fit)
    k = round(float((encode(made, fit) > 0).sum(1).double().mean()))
    mean = fit.mean(0)
    basis = torch.linalg.svd(fit - mean, full_matrices=False).Vh[:k]
    names = ("dictionary", "pca", "mean", "zero")
    rebuilt, nats, divergence = ({name: [] for name in names} for _ in range(3))
    xs, clean, active, docs = [], [], [], []
    while sum(map(len, xs)) < SIZES["n_tokens"]:
        packed = next(batches)
        tokens = packed.tokens
        x, before = run(model, tokens)
        codes = encode(made, x)
        target = tokens.ids[:, 1:][tokens.keep[:, 1:]]
        xs.append(x)
        active.append(codes > 0)
        docs.append(packed.doc[tokens.keep.nonzero()[:, 0]])
        clean.append(-before.gather(1, target[:, None])[:, 0])
        versions = {
            "dictionary": codes @ made.W_dec.detach().double() + made.b_dec.detach().double(),
            "pca": (x - mean) @ basis.T @ basis + mean,
            "mean": mean.expand_as(x),
            "zero": torch.zeros_like(x),
        }
        for name, rows in versions.items():
            after = run(model, tokens, rows)[1]
            rebuilt[name].append(rows)
            nats[name].append(-after.gather(1, target[:, None])[:, 0])
            divergence[name].append((before.exp() * (before - after)).sum(1))
    x, active, docs = torch.cat(xs), torch.cat(active), torch.cat(docs)
    ce = {name: float(torch.cat(part).mean()) for name, part in nats.items()} | {
        "clean": float(torch.cat(clean).mean())
    }
    kl = {name: float(torch.cat(part).mean()) for name, part in divergence.items()}
    centred = float((x - x.mean(0)).square().sum())
    scores = {"l0": float(active.sum(1).double().mean()), "dead_share": float((~active.any(0)).double().mean())}
    for name in ("dictionary", "pca", "mean"):
        prefix, y = ("" if name == "dictionary" else f"{name}."), torch.cat(rebuilt[name])
        scores |= {
            f"{prefix}fvu": float((x - y).square().sum()) / centred,
            f"{prefix}cosine": float(torch.cosine_similarity(x, y).mean()),
            f"{prefix}gamma": float(y.square().sum() / (x * y).sum()),
            f"{prefix}ce": ce[name],
            f"{prefix}loss_recovered": (ce["zero"] - ce[name]) / (ce["zero"] - ce["clean"]),
            f"{prefix}kl": kl[name],
            f"{prefix}kl_score": 1 - kl[name] / kl["zero"],
        }
    scores |= {"ce_clean": ce["clean"], "ce_zero": ce["zero"], "ce_mean": ce["mean"]}
    return scores, x, torch.cat(rebuilt["dictionary"]), docs


def test_every_score_equals_the_reference(case):
    model, made, found = case
    expected, *_ = reference(model, made)
    ours = found.values()
    assert 0.05 < expected["fvu"] < 1.5 and expected["kl"] > 0.1  # nothing trivial
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name


def test_intervals_leave_out_whole_documents(case):
    model, made, found = case
    _, x, rebuilt, docs = reference(model, made)
    left = []
    for doc in docs.unique():
        rest = docs != doc
        centred = (x[rest] - x[rest].mean(0)).square().sum()
        left.append(float((x[rest] - rebuilt[rest]).square().sum() / centred))
    left = torch.tensor(left, dtype=torch.float64)
    n = len(left)
    error = float(((n - 1) / n * (left - left.mean()).square().sum()).sqrt())
    half = float(student.ppf(0.975, n - 1)) * error
    assert found["fvu"].high - found["fvu"].value == pytest.approx(half, rel=1e-3)
    assert found["fvu"].method == f"delete-a-group jackknife, {n} groups"
