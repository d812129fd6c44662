"""Fixtures of the model tests; the models themselves are in `conftest_model.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest_model import CONFIGS, random_model  # noqa: E402


@pytest.fixture(params=list(CONFIGS))
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return random_model(family)
