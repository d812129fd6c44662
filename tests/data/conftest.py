"""Fixtures of the data tests; what they are made of is in `data_fixtures.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from data_fixtures import tiny_corpus, tiny_model  # noqa: E402


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def corpus():
    return tiny_corpus()
