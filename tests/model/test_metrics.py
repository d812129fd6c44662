"""Metrics: closed forms, the narrow contract of the sweep engine, refusals, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from conftest_model import TEXTS, VOCAB, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from hooke.base.errors import ConfigError, DataError, HookeError, ShapeError
from hooke.model.edits import Ablate, Scale
from hooke.model.metrics import (
    KL,
    NLL,
    Logit,
    LogitDifference,
    LogProbability,
    Metric,
    Probability,
    single_tokens,
)
from hooke.model.plan import columns_of
from hooke.model.run import Run
from hooke.model.tokens import Tokens

ANSWERS, WRONGS = torch.tensor([5, 6, 7]), torch.tensor([9, 9, 5])
SETS = torch.tensor([[5, 6], [7, -1], [8, 9]])


@pytest.fixture(scope="module")
def run() -> Run:
    model = random_model("gpt2", torch.float64)
    return model.run(model.tokens(TEXTS, padding_side="left"))


def last(run: Run) -> torch.Tensor:
    return run.logits[torch.arange(3), run.tokens.columns([-1])[:, 0]]


def test_closed_forms(run):
    at, rows = last(run), torch.arange(3)
    p = torch.exp(at) / torch.exp(at).sum(-1, keepdim=True)
    assert torch.equal(Logit(ANSWERS)(run), at[rows, ANSWERS])
    assert torch.equal(LogitDifference(ANSWERS, WRONGS)(run), at[rows, ANSWERS] - at[rows, WRONGS])
    assert torch.equal(LogitDifference(5, 9)(run), at[:, 5] - at[:, 9])
    torch.testing.assert_close(Probability(ANSWERS)(run), p[rows, ANSWERS])
    torch.testing.assert_close(LogProbability([5, 6, 7])(run), p[rows, ANSWERS].log())
    torch.testing.assert_close(NLL(ANSWERS)(run), -p[rows, ANSWERS].log())


def test_sets_of_tokens_average_logits_and_sum_probabilities(run):
    at = last(run)
    p = at.softmax(-1)
    mean = torch.stack([(at[0, 5] + at[0, 6]) / 2, at[1, 7], (at[2, 8] + at[2, 9]) / 2])
    torch.testing.assert_close(Logit(SETS)(run), mean)
    torch.testing.assert_close(LogitDifference(SETS, 3)(run), mean - at[:, 3])
    joint = torch.stack([p[0, 5] + p[0, 6], p[1, 7], p[2, 8] + p[2, 9]])
    torch.testing.assert_close(Probability(SETS)(run), joint)
    torch.testing.assert_close(LogProbability(SETS)(run), joint.log())


def test_several_positions_are_averaged(run):
    apart = [Logit(ANSWERS, positions=p)(run) for p in (0, -2)]
    torch.testing.assert_close(Logit(ANSWERS, positions=[0, -2])(run), sum(apart) / 2)


def test_nll_of_text_is_the_cross_entropy():
    model = random_model("gpt2", torch.float64)
    tokens = model.tokens(["abcdefgh", "ijklmnop"])
    run = model.run(tokens)
    loss = cross_entropy(run.logits[:, :-1].flatten(0, 1), tokens.ids[:, 1:].flatten())
    torch.testing.assert_close(NLL.of_text(tokens)(run).mean(), loss)
    with pytest.raises(DataError, match=r"rows of one length.*\[16, 6, 27\]"):
        NLL.of_text(model.tokens(TEXTS))


def test_nll_leaves_out_what_is_not_given(run):
    targets = torch.tensor([[5, -1], [6, 7], [-1, 8]])
    alone = torch.stack([NLL(i, positions=p)(run) for i, p in [(5, 0), (6, 0), (7, -1), (8, -1)]])
    expected = torch.stack([alone[0, 0], (alone[1, 1] + alone[2, 1]) / 2, alone[3, 2]])
    torch.testing.assert_close(NLL(targets, positions=[0, -1])(run), expected)


def test_kl_is_that_of_torch_and_zero_against_itself(run):
    model = random_model("gpt2", torch.float64)
    other = model.run(run.tokens, edits=[Scale("resid_post.1", 0.5)])
    metric = KL.from_run(run)
    p, q = last(run).log_softmax(-1), last(other).log_softmax(-1)
    torch.testing.assert_close(metric(other), (p.exp() * (p - q)).sum(-1))
    assert torch.equal(metric(run), torch.zeros(3, dtype=torch.float64))
    assert (metric(other) > 1e-4).all()


def test_kl_counts_what_the_reference_rules_out_as_nothing():
    reference = torch.tensor([[0.0, 0.0, -math.inf]])
    value = KL(reference).score(torch.tensor([[[0.0, 0.0, 0.0]]]), torch.tensor([0]))
    assert value.item() == pytest.approx(math.log(3 / 2))


EVERY = {
    "logit": Logit(ANSWERS),
    "logit-difference": LogitDifference(ANSWERS, WRONGS),
    "sets": LogitDifference(SETS, WRONGS),
    "probability": Probability(SETS),
    "log-probability": LogProbability(ANSWERS),
    "nll": NLL(ANSWERS, positions=(1, -1)),
}


@given(name=st.sampled_from(sorted(EVERY)), rows=st.lists(st.integers(0, 2), min_size=1, max_size=7))
@settings(max_examples=40)
def test_scores_of_any_entries_are_those_of_their_examples(run, name, rows):
    metric, entry = EVERY[name], torch.tensor(rows)
    columns = columns_of(run.tokens, metric.positions, "test")
    logits = run.logits[torch.arange(3)[:, None], columns]
    vocab = metric.vocab(3)
    if vocab is not None:
        logits = logits.gather(-1, vocab[:, None].expand(-1, columns.shape[1], -1))
        assert logits.shape[-1] <= 3
    assert torch.equal(metric.score(logits[entry], entry), metric(run)[entry])


def test_what_a_logit_difference_reads_is_two_tokens():
    assert torch.equal(LogitDifference(ANSWERS, WRONGS).vocab(3), torch.stack([ANSWERS, WRONGS], dim=1))


@pytest.mark.parametrize("name", [*EVERY, "kl"])
def test_gradients_equal_finite_differences(run, name):
    metric = EVERY[name] if name in EVERY else KL.from_run(run)
    torch.manual_seed(0)
    logits = (run.logits + 0.5 * torch.randn_like(run.logits)).requires_grad_()

    def value(at: torch.Tensor) -> torch.Tensor:
        return metric(Run(run.tokens, at)).sum()

    (gradient,) = torch.autograd.grad(value(logits), logits)
    step = torch.randn_like(logits) * 1e-5
    slope = (value(logits.detach() + step) - value(logits.detach() - step)) / 2
    assert gradient.abs().max() > 0
    assert float(slope) == pytest.approx(float((gradient * step).sum()), rel=1e-6)


BAD = [
    (lambda run: Logit(VOCAB), DataError, "token id 300; the vocabulary is 0 to 299"),
    (lambda run: LogitDifference(5, -2), DataError, "wrongs has token id -2"),
    (lambda run: Logit([5, 6]), DataError, "token is for 2 examples; the batch has 3"),
    (lambda run: Logit(5, positions=40), DataError, "position 40 is beyond row 0"),
    (lambda run: Logit(5, positions="lst"), ConfigError, "positions 'lst' is not known"),
    (lambda run: Logit(torch.tensor([0.5])), DataError, "expected whole numbers"),
    (lambda run: NLL(torch.zeros(3, 2).long()), ShapeError, "2 targets a row for 1 positions"),
    (lambda run: KL(run.logits[:, 0, :7]), ShapeError, "the reference has shape"),
]


@pytest.mark.parametrize(("make", "error", "says"), BAD)
def test_what_does_not_fit_is_refused(run, make, error, says):
    with pytest.raises(error, match=says) as caught:
        make(run)(run)
    assert isinstance(caught.value, HookeError)


def test_a_run_without_logits_is_refused():
    run = random_model("gpt2").run("abc", until="resid_post.0")
    for make in (Logit(5), KL.from_run):
        with pytest.raises(DataError, match="leave out `until`"):
            make(run)


def test_undefined_is_nan_with_a_warning(run):
    nothing = torch.tensor([[5], [-1], [6]])
    for metric in (Logit(nothing), LogitDifference(5, nothing), Probability(nothing), NLL(nothing)):
        with pytest.warns(UserWarning, match="undefined .NaN. for 1 of 3"):
            values = metric(run)
        assert values.isnan().tolist() == [False, True, False]


def test_half_precision_logits_are_scored_in_float32():
    run = random_model("gpt2", torch.bfloat16).run("abc", edits=[Ablate("attn_out.1")])
    assert Logit(5)(run).dtype == torch.float32
    exact = run.logits[:, -1].double().log_softmax(-1)[:, 5]
    assert float(LogProbability(5)(run)) == pytest.approx(float(exact), abs=1e-5)


def test_answers_are_single_tokens():
    model = random_model("gpt2")
    assert single_tokens(model, ["a", "b"]).tolist() == model.tokenizer("ab", add_special_tokens=False)["input_ids"]
    with pytest.raises(DataError, match="'ab' is 2 tokens .'a' 'b'."):
        single_tokens(model, "ab")


def test_a_named_position():
    model = random_model("gpt2")
    tokens = model.tokens(TEXTS)
    named = Tokens(tokens.ids, tokens.mask, tokens.keep, {"subject": torch.tensor([1, -2, 4])})
    run = model.run(named)
    expected = [run.logits[i, c, 5] for i, c in enumerate([1, 4, 4])]
    assert torch.equal(Logit(5, positions="subject")(run), torch.stack(expected))


def test_a_metric_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Metric()
