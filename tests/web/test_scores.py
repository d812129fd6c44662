from __future__ import annotations

import math
from dataclasses import dataclass

from hooke.base.statistics import Estimate
from hooke.web.scores import scores_of


def test_flat_entries_with_controls_beside_them():
    scores = scores_of(
        {
            "fvu": 0.2,
            "loss_recovered": {"value": math.nan, "reason": "the denominator is too small"},
            "controls": {"random": {"fvu": 0.8}, "pca": {"fvu": {"value": 0.5}}, "n": 3},
            "seed": "text is no score",
        }
    )
    assert [s.name for s in scores] == ["fvu", "loss_recovered"]
    assert scores[0].controls == {"random": 0.8, "pca": 0.5} and scores[0].better == "lower"
    assert scores[1].value is None and "denominator" in scores[1].reason and scores[1].better == "higher"


def test_a_list_of_scores_keeps_its_order_and_labels():
    listed = [{"name": "b", "value": 1, "label": "B", "better": "higher"}, {"name": "a", "value": None}]
    scores = scores_of({"scores": listed})
    assert [(s.name, s.label, s.value) for s in scores] == [("b", "B", 1.0), ("a", "a", None)]
    assert scores[1].reason is not None


def test_the_shape_of_an_evaluation():
    @dataclass
    class Made:
        scores: dict
        controls: dict
        density: list

    half = Estimate(0.5, 0.4, 0.6, 10, 0.95, "count")
    none = Estimate(math.nan, math.nan, math.nan, 0, 0.95, "count", "no tokens")
    scores = scores_of(Made({"zeta": half, "kl_score": none, "fvu": half}, {"pca": {"fvu": half}}, [0.1]))
    assert [s.name for s in scores] == ["fvu", "kl_score", "zeta"]
    assert (scores[0].value, scores[0].low, scores[0].high, scores[0].n) == (0.5, 0.4, 0.6, 10)
    assert scores[0].controls == {"pca": 0.5} and scores[1].value is None and scores[1].reason == "no tokens"


def test_nothing_known():
    assert scores_of({}) == []
