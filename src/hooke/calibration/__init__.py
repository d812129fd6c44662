"""Known answers: planted data whose features are known exactly, and the scores that compare a method with them."""

from hooke.calibration.planted import (
    ExactCounts,
    Independent,
    Planted,
    PlantedBatches,
    PlantedSample,
    low_coherence_directions,
    recipe_p,
    variable_complexity,
)
from hooke.calibration.truth import (
    Recovery,
    keep_largest_of_each,
    keep_largest_overall,
    recovery,
    support_f1,
)

__all__ = [
    "ExactCounts",
    "Independent",
    "Planted",
    "PlantedBatches",
    "PlantedSample",
    "Recovery",
    "keep_largest_of_each",
    "keep_largest_overall",
    "low_coherence_directions",
    "recipe_p",
    "recovery",
    "support_f1",
    "variable_complexity",
]
