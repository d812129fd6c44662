"""Evaluations: scores with their controls."""

from hooke.evals.controls import MeanBaseline, PrincipalComponents, random_dictionary
from hooke.evals.dictionary import Evaluation, evaluate, score_rows

__all__ = ["Evaluation", "MeanBaseline", "PrincipalComponents", "evaluate", "random_dictionary", "score_rows"]
