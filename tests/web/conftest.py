"""A session on the tiny model of the features tests, and a client whose Host header is the server's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "features"))

from tiny import TEXTS, tiny_dictionary, tiny_model  # noqa: E402

from hooke.data.corpora import texts  # noqa: E402
from hooke.features.build import build_index  # noqa: E402
from hooke.web.app import create_app  # noqa: E402
from hooke.web.session import Session  # noqa: E402

EVALUATION = {
    "fvu": {"value": 0.2, "low": 0.1, "high": 0.3, "n": 500, "controls": {"random": 0.7, "pca": 0.4}},
    "l0": 4.0,
    "kl_score": {"value": "NaN", "reason": "not measured"},
}


@pytest.fixture(scope="session")
def session(tmp_path_factory) -> Session:
    folder = tmp_path_factory.mktemp("web")
    tiny_dictionary().save(folder / "dictionary")
    index = build_index(tiny_model(), tiny_dictionary(), texts(TEXTS), folder / "index", n_tokens=10_000, context=24)
    return Session(tiny_model(), tiny_dictionary(), index, evaluation=EVALUATION, dictionary_path=folder / "dictionary")


@pytest.fixture(scope="session")
def client(session):
    from starlette.testclient import TestClient

    with TestClient(create_app(session, port=7333), base_url="http://127.0.0.1:7333") as client:
        yield client


@pytest.fixture
def post(client, session):
    """POST with everything that our own page sends."""

    def _post(path, body, **headers):
        given = {"X-Hooke-Token": session.token, "Origin": "http://127.0.0.1:7333", **headers}
        return client.post(path, json=body, headers={k: v for k, v in given.items() if v is not None})

    return _post
