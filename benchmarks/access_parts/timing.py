"""Turn-by-turn timing: every side once a turn, the order reversed on every other turn, ratios within a turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Side = Callable[[], float]  # does the work once; the seconds that it took


def timed(work: Callable[[], object], now: Callable[[], float] = time.perf_counter) -> Side:
    """A side from a function: the seconds that it takes by a clock."""

    def side() -> float:
        start = now()
        work()
        return now() - start

    return side


@dataclass(frozen=True)
class Turns:
    """Seconds of each side, a turn each."""

    seconds: Mapping[str, list[float]]

    def row(self, name: str, ours: str, against: str, **target: float) -> dict:
        """A row of the benchmark. `at_most` bounds ours / against; `at_least` bounds against / ours ("times as fast").

        `ours` and `against` are median milliseconds; the ratio is the median of the turns' own ratios, `spread` its
        quartiles.
        """
        a, b = self.seconds[ours], self.seconds[against]
        faster = "at_least" in target
        ratios = [y / x if faster else x / y for x, y in zip(a, b, strict=True)]
        ratio = statistics.median(ratios)
        bound = target.get("at_least", target.get("at_most", math.nan))
        holds = None if math.isnan(bound) else ratio >= bound if faster else ratio <= bound
        return {
            "name": name,
            "ours": 1e3 * statistics.median(a),
            "against": 1e3 * statistics.median(b),
            "ratio": ratio,
            "spread": quartiles(ratios),
            "turns": len(ratios),
            "target": bound,
            "holds": holds,
        }


def take_turns(sides: Mapping[str, Side], turns: int, warm_up: int = 1) -> Turns:
    """Run all sides turn by turn: A B C, C B A, A B C, ..."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-warm_up, turns):
        for name in list(sides) if turn % 2 else reversed(list(sides)):
            spent = sides[name]()
            if turn >= 0:
                seconds[name].append(spent)
    return Turns(seconds)


def quartiles(values: list[float]) -> list[float]:
    """First and third quartile; of a single value, that value twice."""
    if len(values) == 1:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def missing(name: str, reason: str, bound: float = math.nan) -> dict:
    """A row that could not be measured, with the reason."""
    nan = math.nan
    numbers = {"ours": nan, "against": nan, "ratio": nan, "spread": [nan, nan], "turns": 0}
    return {"name": f"{name}: not measured ({reason})", **numbers, "target": bound, "holds": None, "reason": reason}
