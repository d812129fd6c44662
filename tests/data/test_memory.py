from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
def test_four_times_the_tokens_need_the_same_memory():
    for row in runpy.run_path(str(BENCHMARK))["main"]():
        assert row["ratio"] <= 1.05, row
