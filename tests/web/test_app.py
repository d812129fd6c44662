"""Every route against the index, the model and the dictionary behind it."""

from __future__ import annotations

import numpy as np
import pytest

from hooke.base.errors import ConfigError
from hooke.dictionaries.activations.topk import TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.web import schemas
from hooke.web.session import Session


def test_overview(client, session):
    body = schemas.Overview.model_validate(client.get("/api/overview").json())
    assert (body.model.n_layers, body.model.d_model, body.model.n_vocab) == (2, 16, 258)
    assert (body.dictionary.reads, body.dictionary.activation, body.dictionary.k) == ("resid_post.0", "TopK", 4)
    assert body.n_tokens == session.index.n_tokens and body.corpus == "texts"
    histogram = body.density_histogram
    assert histogram.dead + sum(histogram.counts) == 48 and histogram.dead >= 8
    l0, fvu, kl = body.scores
    assert (fvu.value, fvu.low, fvu.controls, fvu.better) == (0.2, 0.1, {"random": 0.7, "pca": 0.4}, "lower")
    assert l0.value == 4.0 and kl.value is None and kl.reason == "not measured"


def test_table_sorts_pages_and_filters(client, session):
    index = session.index
    body = client.get("/api/latents?sort=density&limit=7&offset=3").json()
    ranked = sorted(session.alive.tolist(), key=lambda i: (-index.density[i], i))
    assert body["total"] == len(session.alive) and [r["index"] for r in body["rows"]] == ranked[3:10]
    ascending = client.get("/api/latents?sort=max&order=asc&alive=false").json()
    assert ascending["total"] == 48 and ascending["rows"][0]["max"] == 0
    dead = ascending["rows"][0]
    assert dead["top_token"] is None and dead["density"] == 0 and len(dead["raised"]) == 3
    maxima = [r["max"] for r in ascending["rows"]]
    assert maxima == sorted(maxima)
    assert {r["index"] for r in client.get("/api/latents?query=1&alive=false").json()["rows"]} == {1, *range(10, 20)}
    text = body["rows"][0]["top_token"]["text"]
    if text.strip():
        found = client.get("/api/latents", params={"query": text}).json()["rows"]
        assert all(r["top_token"]["text"].lower() == text.lower() for r in found) and found
    assert client.get("/api/latents?sort=interest").status_code == 200


def test_table_says_what_each_latent_raises(client, session):
    row = client.get("/api/latents?sort=index&order=asc&limit=1&alive=false").json()["rows"][0]
    weights = session.dictionary.W_dec[0] @ session.model.unembed
    assert row["raised"] == [session.index.vocabulary[i] for i in weights.topk(3).indices.tolist()]


def test_latent_page_agrees_with_the_index(client, session):
    index = session.index
    latent = int(index.n_firing.argmax())
    body = schemas.LatentDetail.model_validate(client.get(f"/api/latents/{latent}").json())
    assert body.density == index.density[latent] and body.n_firing == index.n_firing[latent] and not body.dead
    assert body.max == pytest.approx(index.max_activation[latent], rel=1e-5)
    assert sum(body.activation_histogram.counts) == body.n_firing
    assert [g.name for g in body.groups] == ["top", *(f"quantile {i} of 5" for i in (5, 4, 3, 2, 1))]
    assert body.groups[0].examples[0].tokens[body.groups[0].examples[0].focus].value == body.max
    assert sum(g.share for g in body.groups[1:]) == pytest.approx(1)
    for group in body.groups:
        values = [e.tokens[e.focus].value for e in group.examples]
        assert values == sorted(values, reverse=True)
        assert all(group.low <= v <= group.high for v in values)
    assert len(body.logits.raised) == len(body.logits.lowered) == 10 and sum(body.logits.histogram.counts) == 258
    assert latent not in [s.index for s in body.similar] and len(body.similar) == 10
    intervals = client.get(f"/api/latents/{latent}?groups=intervals&variant=centred").json()
    assert intervals["groups"][1]["name"] == "interval 5 of 5" and intervals["logits"]["variant"] == "centred"


def test_a_dead_latent_has_a_page(client, session):
    body = schemas.LatentDetail.model_validate(client.get("/api/latents/47").json())
    assert body.dead and body.density == 0 and body.groups == [] and body.mean is None
    assert body.activation_histogram is None and "fired on none" in body.reason
    assert body.neighbours.prev == session.alive[-1] and body.neighbours.next is None
    assert len(body.logits.raised) == 10


def test_arrow_keys_go_round_the_dead(client, session):
    seen, latent = [], int(session.alive[0])
    assert client.get(f"/api/latents/{latent}").json()["neighbours"]["prev"] is None
    while latent is not None and len(seen) < 60:
        seen.append(latent)
        latent = client.get(f"/api/latents/{latent}").json()["neighbours"]["next"]
    assert seen == session.alive.tolist()


def test_try_equals_the_model_and_the_dictionary(post, session):
    text = "class <b>é"
    body = schemas.TryReply.model_validate(post("/api/try", {"text": text, "latents": [3, 47], "top": 4}).json())
    run = session.model.run(text, capture=["resid_post.0"])
    dense = session.dictionary.encode(run["resid_post.0"][0]).dense().detach().numpy()
    assert body.tokens[0].special and body.tokens[0].top == [] and body.latents["3"][0] == 0.0
    assert "".join(t.text for t in body.tokens[1:]) == text
    np.testing.assert_allclose(body.latents["3"][1:], dense[1:, 3], rtol=1e-4, atol=1e-6)
    assert set(body.latents["47"]) == {0.0}
    for token in body.tokens[1:]:
        best = np.sort(dense[token.position])[::-1][:4]
        np.testing.assert_allclose([v.value for v in token.top], best[best > 0], rtol=1e-4)


def test_steer_adds_the_latent_and_controls_its_length(post, session):
    latent = int(session.alive[0])
    request = {"prompt": "def ", "latent": latent, "scale": 30.0, "max_new_tokens": 6, "seed": 3}
    body = schemas.SteerReply.model_validate(post("/api/steer", request).json())
    strength = 30.0 * float(session.index.max_activation[latent])
    assert body.norm == pytest.approx(strength * float(session.dictionary.W_dec[latent].detach().norm()), rel=1e-5)
    plain = session.model.generate("def ", max_new_tokens=6, seed=3)
    assert [t.id for t in body.default.tokens] == plain.ids[0][plain.mask[0]].tolist()
    from hooke.model.edits import Add

    edit = Add("resid_post.0", session.dictionary.W_dec[latent].detach(), scale=strength)
    steered = session.model.generate("def ", edits=[edit], max_new_tokens=6, seed=3)
    assert [t.id for t in body.steered.tokens] == steered.ids[0][steered.mask[0]].tolist()
    assert body.steered != body.default and body.random != body.steered
    run = session.model.run("def ", capture=["resid_post.0"])
    norms = run["resid_post.0"][run.keep].norm(dim=-1)
    assert body.residual_norm == pytest.approx(float(norms.mean()), rel=1e-4)
    assert post("/api/steer", request).json() == body.model_dump()


def test_strength_zero_changes_nothing(post, session):
    request = {"prompt": "def ", "latent": int(session.alive[0]), "scale": 0.0, "max_new_tokens": 5, "temperature": 1.0}
    body = post("/api/steer", request).json()
    assert body["default"] == body["steered"] == body["random"] and body["norm"] == 0


def test_search_by_token(client, session):
    body = schemas.TokenSearch.model_validate(client.get("/api/search/token", params={"text": "d"}).json())
    assert body.token.text == "d" and body.n_occurrences == sum(t == body.token.id for t in session.index.token_id)
    means = [h.mean for h in body.hits]
    assert means == sorted(means, reverse=True) and body.hits[0].max >= body.hits[0].mean


def test_search_by_text(client):
    body = schemas.TextSearch.model_validate(client.get("/api/search/text", params={"q": "<script>"}).json())
    assert len(body.hits) == 1 and body.complete
    shown = "".join(t.text for t in body.hits[0].example.tokens)
    assert "<script>" in shown and body.hits[0].latents
    assert client.get("/api/search/text", params={"q": "n.mpy", "regex": "1"}).json()["hits"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/latents/48", 404, "latent 48 does not exist"),
        ("/api/latents/-1", 404, "does not exist"),
        ("/api/latents/one", 422, "index"),
        ("/api/latents?sort=fame", 422, "sort"),
        ("/api/latents?limit=100000", 422, "limit"),
        ("/api/nothing", 404, "nothing at"),
        ("/api/search/token?text=nowhere", 422, "no token reads"),
        ("/api/search/text?q=(a%2B)%2B&regex=1", 422, "run for ever"),
        ("/api/search/text?q=(&regex=1", 422, "not a regular expression"),
        ("/api/search/text?q=", 422, "1 to 200 characters"),
        ("/api/search/text", 422, "q"),
        ("/api/latents/48/export", 404, "latent 48"),
        ("/static/%2e%2e/app.py", 404, "nothing"),
    ],
)
def test_refusals_say_why(client, path, status, words):
    answer = client.get(path)
    assert answer.status_code == status and words in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/try", {"text": ""}, 422, "empty"),
        ("/api/try", {"text": "x", "latents": [48]}, 422, "latent 48"),
        ("/api/try", {"text": "x" * 100}, 422, "at most 64"),
        ("/api/try", {"text": "x", "top": -1}, 422, "top"),
        ("/api/try", {"text": "x", "eval": "1"}, 422, "eval"),
        ("/api/steer", {"prompt": "x", "latent": 48}, 404, "latent 48"),
        ("/api/steer", {"prompt": "x", "latent": 47}, 409, "never fired"),
        ("/api/steer", {"prompt": "x", "latent": 0, "max_new_tokens": 100}, 422, "and 100 new ones; at most 64 fit"),
        ("/api/steer", {"prompt": "x" * 100, "latent": 0}, 422, "the prompt is too long: "),
        ("/api/steer", {"prompt": "x", "latent": 0, "temperature": 1e-300}, 422, "at least 0.01"),
        ("/api/steer", None, 422, "the body: "),
        ("/api/steer", {"prompt": "x", "latent": 0, "temperature": -1}, 422, "temperature"),
    ],
)
def test_refused_work_says_why(post, path, body, status, words):
    answer = post(path, body)
    assert answer.status_code == status and words in answer.json()["error"]


def test_two_requests_at_once_take_turns(session, monkeypatch):
    import threading
    from concurrent.futures import ThreadPoolExecutor

    import httpx

    from hooke.web import live
    from hooke.web.server import running

    busy, overlaps = threading.Lock(), []

    def slow(_session, _request, real=live.try_text):
        overlaps.append(not busy.acquire(blocking=False))
        try:
            return real(_session, _request)
        finally:
            busy.release()

    monkeypatch.setattr(live, "try_text", slow)
    with running(session) as url, ThreadPoolExecutor(4) as pool:
        headers = {"X-Hooke-Token": session.token}
        jobs = [pool.submit(httpx.post, f"{url}api/try", json={"text": "x"}, headers=headers) for _ in range(8)]
        assert [job.result().status_code for job in jobs] == [200] * 8
    assert overlaps == [False] * 8


def test_code_of_a_panel_gives_its_numbers(client, post, session):
    latent = int(session.alive[0])
    body = client.get(f"/api/latents/{latent}").json()
    code = body["code"].replace("import hooke\n", "").replace(f"model = hooke.load({session.model.name!r})\n", "")
    space = {"model": session.model}
    exec(code, space)
    assert space["index"].density[latent] == body["density"]
    tried = post("/api/try", {"text": "x = 1", "top": 1}).json()
    code = tried["code"].replace("import hooke\n", "").replace(f"model = hooke.load({session.model.name!r})\n", "")
    exec(code, space)
    assert float(space["codes"].values[0].detach().max()) == pytest.approx(
        tried["tokens"][1]["top"][0]["value"], rel=1e-4
    )


def test_openapi_is_made_from_the_schemas(client):
    found = client.get("/api/openapi.json").json()
    assert {"Overview", "LatentPage", "LatentDetail", "TryRequest", "SteerReply", "Problem"} <= set(
        found["components"]["schemas"]
    )
    assert set(found["paths"]) == {
        "/api/overview",
        "/api/latents",
        "/api/latents/{index}",
        "/api/latents/{index}/export",
        "/api/search/token",
        "/api/search/text",
        "/api/try",
        "/api/steer",
    }


def test_sessions_do_not_mix_dictionaries(session):
    other = Dictionary(16, 48, activation=TopK(4), reads="resid_post.0", seed=9)
    with pytest.raises(ConfigError, match="another dictionary"):
        Session(session.model, other, session.index)


def test_no_number_is_nan(client):
    for path in ("/api/overview", "/api/latents?alive=false", "/api/latents/47", "/api/latents/0"):
        answer = client.get(path)
        assert answer.status_code == 200 and "NaN" not in answer.text and "Infinity" not in answer.text


@pytest.mark.parametrize("pattern", ["$", "^", "Q*"])
def test_a_pattern_that_only_matches_nothing_has_no_passages(client, pattern):
    answer = client.get("/api/search/text", params={"q": pattern, "regex": True})
    assert answer.status_code == 200
    assert (answer.json()["hits"], answer.json()["complete"]) == ([], True)


def test_a_broken_body_is_said_to_be_one(client, session):
    answer = client.post(
        "/api/try", content=b"{", headers={"X-Hooke-Token": session.token, "Content-Type": "application/json"}
    )
    assert answer.status_code == 422 and answer.json()["error"].startswith("the body is not JSON: ")


def test_the_run_folder_may_be_text(session, tmp_path):
    from hooke.web import latents

    named = Session(session.model, session.dictionary, session.index, run_path=str(tmp_path / "my-run"))
    body = latents.overview(named)
    assert (body.dictionary.name, body.run) == ("my-run", str(tmp_path / "my-run"))


def test_the_default_is_written_once_while_the_slider_moves(post, session, monkeypatch):
    real, edits = type(session.model).generate, []
    monkeypatch.setattr(type(session.model), "generate", lambda *a, **k: edits.append(len(k["edits"])) or real(*a, **k))
    body = {"prompt": "slide", "latent": int(session.alive[0]), "max_new_tokens": 4}
    first, second = (post("/api/steer", {**body, "scale": scale}).json() for scale in (1, 2))
    assert edits == [0, 1, 1, 1, 1] and first["default"] == second["default"]
    post("/api/steer", {**body, "seed": 1})
    assert edits[5:] == [0, 1, 1]


def test_steering_stops_where_its_reader_has_gone(session):
    import asyncio
    import time

    from hooke.web import app, live

    request = schemas.SteerRequest(prompt="gone", latent=int(session.alive[0]), max_new_tokens=50)
    written = []

    class Left:
        async def is_disconnected(self):
            return bool(written)

    def work(check):
        def slowly():
            written.append(1)
            for _ in range(6000):  # until the watch has noticed, which ends the work
                check()
                time.sleep(0.01)
            pytest.fail("nobody noticed in a minute")

        return live.steer(session, request, slowly)

    with pytest.raises(app.Gone):
        asyncio.run(app.ModelQueue().run(Left(), work))
    assert len(written) == 1  # of 50 tokens
