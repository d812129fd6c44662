"""Hooks, threads and runs within runs: nothing disturbs anything else, and nothing is left behind."""

from __future__ import annotations

import gc
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest_model import TEXTS, random_model

from hooke.model import attention, capture
from hooke.model.edits import Ablate, Add, Call, Scale
from hooke.model.model import Model
from hooke.model.sites import Site

FAMILIES = ("gpt2", "llama-gqa", "gptj")  # gptj: attention that is watched from inside
V = torch.randn(32, generator=torch.Generator().manual_seed(0))
EDITS = [Add("resid_post.0", V), Scale("pattern.1", 0.5), Ablate("z.2.1", positions="last")]


def clean(model: Model) -> bool:
    """No hook, route, changed configuration or context variable of a run is there."""
    hooks = [m for m in model.hf.modules() if m._forward_hooks or m._forward_pre_hooks]
    configs = {id(m.config) for m in model.hf.modules() if hasattr(m, "config")}
    kernels = {m.config._attn_implementation for m in model.hf.modules() if hasattr(m, "config")}
    state = (capture._RUN.get(), capture._LISTENING.get(), dict(attention._ROUTES.get()), dict(attention._KERNELS))
    return not hooks and len(configs) == 1 and kernels <= {"sdpa", "eager"} and state == (None, (), {}, {})


def everything(model: Model, edits=()):
    run = model.run(TEXTS, capture=["resid_post.*", "pattern.*", "result.1"], edits=edits)
    return [run.logits, *run.acts.values()]


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_within_an_edit_of_another_run(family):
    """The same model and another one, with maps and edits of their own, from inside a forward pass."""
    model, other = random_model(family), random_model("llama")
    expected, plain, steered = everything(model, EDITS), everything(other), everything(model)
    seen = []

    def nested(x):
        seen.append((everything(other), everything(model), model.generate("ab", max_new_tokens=2).ids))
        return x

    for name in ("resid_pre.1", "pattern.1", "q.2"):
        found = everything(model, [*EDITS, Call(name, nested)])
        assert same(found, expected)
        inner_other, inner, ids = seen.pop()
        assert same(inner_other, plain)
        assert same(inner, steered)
        assert torch.equal(ids, model.generate("ab", max_new_tokens=2).ids)
        assert seen == []
    assert clean(model)
    assert clean(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_listening_sees_the_last_run_of_its_own_model(family):
    model, other = random_model(family), random_model("llama")
    expected = model.run(TEXTS, capture=["resid_post.1", "pattern.0"], edits=EDITS)
    with model.capture("resid_post.1", "pattern.0") as acts:
        other.run("abc")
        assert not acts
        model.generate("ab", edits=EDITS, max_new_tokens=2)
        assert acts[Site("resid_post", 1)].shape == (1, 1, 32)  # the last pass of the generation
        found = model.run(TEXTS, edits=EDITS)
    assert torch.equal(found.logits, expected.logits)
    assert all(torch.equal(acts[site], expected[site]) for site in expected.acts)
    assert clean(model)


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_threads_with_different_edits_on_one_model(family, times):
    model = random_model(family)
    sets = [EDITS, [Scale("scores.1", 0.1), Add("embed", V), Ablate("pattern.0.2")]]
    expected = [everything(model, edits) for edits in sets]
    texts = [model.generate(TEXTS, edits=edits, max_new_tokens=3).ids for edits in sets]

    def work(which: int) -> bool:
        torch.set_num_threads(1)  # as in the main thread: the number of threads changes how sums are rounded
        for _ in range(times):
            assert same(everything(model, sets[which]), expected[which])
        return torch.equal(model.generate(TEXTS, edits=sets[which], max_new_tokens=3).ids, texts[which])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [0, 1])) == [True, True]
    assert clean(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exception_leaves_nothing_behind(family):
    model = random_model(family)
    plain = model.run(TEXTS).logits

    def fail(x):
        raise ZeroDivisionError

    for name in ("embed", "resid_mid.1", "q.1", "pattern.1", "scores.2", "result.0", "logits"):
        if not model.layout.has(name.split(".")[0], 1 if "." in name else None):
            continue
        edits = [*EDITS, Call(name, fail)]
        for call in (
            lambda edits=edits: model.run(TEXTS, edits=edits),
            lambda edits=edits: model.generate(TEXTS, edits=edits, max_new_tokens=2),
            lambda edits=edits: list(model.stream(TEXTS, edits=edits, max_new_tokens=2)),
            lambda edits=edits: model.score(TEXTS, ["ab"], edits=edits),
            lambda edits=edits: model.gradients(TEXTS, lambda run: run.logits.sum((1, 2)), "embed", edits=edits),
        ):
            with pytest.raises(ZeroDivisionError):
                call()
            assert clean(model)
            assert torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), model.capture("pattern.*"):
        fail(None)
    assert clean(model)
    assert torch.equal(model.run(TEXTS).logits, plain)


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_runs_leak_nothing(times):
    """Edits, maps, derived sites, generation and gradients; at most 8 MiB more, where one run holds about 1 MiB."""
    model = random_model("llama-gqa")

    def once(n: int) -> None:
        model.run("abcdef", capture=["resid_post.1", "pattern.1"], edits=EDITS)
        if n % 20 == 0:
            model.generate("ab", edits=EDITS, max_new_tokens=2)
            model.gradients("ab", lambda run: run.logits.sum((1, 2)), ["result.0", "pattern.1"])

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    for n in range(40):  # caches and allocators fill
        once(n)
    before, size = tensors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(times):
        once(n)
    assert tensors() <= before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size <= 8 * 1024
    assert clean(model)


def test_inference_mode_outside_stays_on():
    model = random_model("gpt2")
    expected, ids = everything(model, EDITS), model.generate(TEXTS, edits=EDITS, max_new_tokens=3).ids
    with torch.inference_mode():
        assert same(everything(model, EDITS), expected)
        assert torch.equal(model.generate(TEXTS, edits=EDITS, max_new_tokens=3).ids, ids)
        assert model.run(TEXTS).logits.is_inference()
        for _ in model.stream(TEXTS, max_new_tokens=2):
            assert torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()
