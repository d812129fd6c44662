"""The CUDA path against the CPU path: same model, same dictionary, same numbers up to float32 rounding.

Runs where there is an accelerator (`make test TESTS='-m gpu'`); elsewhere it says that there is none.
"""

from __future__ import annotations

import pytest
import torch

import hooke
from hooke.dictionaries import Objective, TrainConfig, train
from hooke.evals import evaluate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

TEXTS = ["def area(self):\n    return", "import os\n"]


def test_runs_edits_and_generation_agree():
    cpu, gpu = hooke.load("hooke/stdlib"), hooke.load("hooke/stdlib", device="cuda")
    steer = hooke.Add("resid_post.2", torch.ones(cpu.d_model), scale=0.5, positions="kept")
    names = ["resid_post.*", "pattern.1", "z.3"]
    ours, theirs = (model.run(TEXTS, capture=names, edits=[steer]) for model in (gpu, cpu))
    torch.testing.assert_close(ours.logits.cpu(), theirs.logits, atol=2e-3, rtol=1e-3)
    for site, value in theirs.acts.items():
        torch.testing.assert_close(ours[site].cpu(), value, atol=2e-3, rtol=1e-3)
    texts = [model.generate(TEXTS, edits=[steer], max_new_tokens=8).texts for model in (gpu, cpu)]
    assert texts[0] == texts[1]


def test_harvest_and_training_agree():
    results = []
    for device in ("cpu", "cuda"):
        model = hooke.load("hooke/stdlib", device=device)
        rows = next(hooke.harvest(model, hooke.corpora.stdlib(), "resid_post.2", n_tokens=4096, batch=64))
        x = rows.rows[hooke.Site("resid_post", 2)][:2048]
        dictionary = hooke.Dictionary(256, 512, activation=hooke.TopK(k=8), seed=0).to(device)
        config = TrainConfig(2048 * 20, sample_tokens=2048)
        train(dictionary, [x] * 20, objective=Objective(), config=config)
        results.append((x, dictionary.reconstruct(x.to(device)).detach().cpu()))
    (x, on_cpu), (x_gpu, on_gpu) = results
    torch.testing.assert_close(x_gpu, x, atol=2e-3, rtol=1e-3)
    errors = [float((x - rebuilt).square().mean()) for rebuilt in (on_cpu, on_gpu)]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


def test_evaluation_runs_on_the_model_s_device():
    model = hooke.load("hooke/stdlib", device="cuda")
    dictionary = hooke.Dictionary(256, 512, activation=hooke.TopK(k=8), reads="resid_post.2", seed=0).to("cuda")
    found = evaluate(dictionary, model, n_tokens=1024, n_fit=1024)
    assert found["ce_clean"].value < found["ce_zero"].value
