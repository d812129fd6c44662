from __future__ import annotations

import pytest
import torch
from data_fixtures import tiny_corpus, tiny_model

from hooke.base.errors import ConfigError, DataError, SiteError
from hooke.base.progress import RecordingSink
from hooke.data.corpora import texts
from hooke.data.harvest import harvest
from hooke.model.sites import Site

SITES = ["resid_post.1", "mlp_post.0", "z.0", "z.1.2"]


def joined(chunks, site):
    return torch.cat([chunk.rows[site] for chunk in chunks])


def test_rows_are_what_hugging_face_computes_at_the_kept_positions(model, corpus):
    chunks = list(harvest(model, corpus, ["resid_post.0", "resid_post.1"], context=16, batch=1))
    texts_seen = [document.text for document in corpus]
    row = 0
    for chunk in chunks:
        for i in range(0, len(chunk), 15):
            doc, pos = int(chunk.doc[i]), int(chunk.pos[i])
            ids = model.tokenizer(texts_seen[doc], add_special_tokens=False)["input_ids"][pos : pos + 15]
            with torch.no_grad():
                hidden = model.hf.model(torch.tensor([[0, *ids]]), output_hidden_states=True).hidden_states
            part = slice(i, i + len(ids))
            assert torch.equal(chunk.rows[Site("resid_post", 0)][part], hidden[1][0, 1:])
            assert chunk.token_id[part].tolist() == ids
            assert chunk.pos[part].tolist() == list(range(pos, pos + len(ids)))
            row += len(ids)
    assert row == sum(len(text) for text in texts_seen) == sum(map(len, chunks))


def test_many_sites_in_one_pass_equal_each_alone(model, corpus):
    together = list(harvest(model, corpus, SITES, context=12, batch=3))
    for name in SITES:
        alone = list(harvest(model, corpus, name, context=12, batch=3))
        assert torch.equal(joined(together, Site.parse(name)), joined(alone, Site.parse(name)))


def test_heads_lie_side_by_side(model, corpus):
    source = harvest(model, corpus, ["z.1", "z.1.2"], context=12, batch=3)
    assert source.widths == {Site("z", 1): 16, Site("z", 1, 2): 4}
    chunk = next(source)
    assert torch.equal(chunk.rows[Site("z", 1)][:, 8:12], chunk.rows[Site("z", 1, 2)])


def test_patterns_and_aliases_name_sites(model, corpus):
    sites = harvest(model, corpus, ["resid_post.*", "blocks.1.hook_resid_post", "resid_post.-1"]).settings.sites
    assert sites == (Site("resid_post", 0), Site("resid_post", 1))


def test_layers_after_the_last_site_do_not_run(model, corpus):
    calls = []
    handle = model.hf.model.layers[1].register_forward_pre_hook(lambda *_: calls.append(1))
    next(harvest(model, corpus, "mlp_out.0"))
    assert calls == []
    next(harvest(model, corpus, "mlp_out.1"))
    handle.remove()
    assert calls == [1]


@pytest.mark.parametrize("n_tokens", [1, 14, 15, 16, 333])
def test_gives_exactly_the_number_asked_for(model, corpus, n_tokens):
    chunks = list(harvest(model, corpus, SITES, n_tokens=n_tokens, context=16, batch=3))
    assert sum(map(len, chunks)) == n_tokens
    full = list(harvest(model, corpus, SITES, context=16, batch=3))
    tokens = torch.cat([chunk.token_id for chunk in full])
    assert torch.equal(torch.cat([chunk.token_id for chunk in chunks]), tokens[:n_tokens])


def test_starts_again_at_a_cursor_bit_for_bit(model, corpus):
    source = harvest(model, corpus, SITES, n_tokens=300, context=10, batch=3)
    chunks = list(source)
    for i, chunk in enumerate(chunks):
        again = list(source.at(chunk.cursor))
        assert len(again) == len(chunks) - i
        for a, b in zip(again, chunks[i:], strict=True):
            assert all(torch.equal(a.rows[site], b.rows[site]) for site in b.rows)
            assert torch.equal(a.pos, b.pos) and torch.equal(a.doc, b.doc)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_a_cast_of_the_exact_value(model, corpus, dtype):
    exact = joined(list(harvest(model, corpus, "resid_post.1")), Site("resid_post", 1))
    cast = joined(list(harvest(model, corpus, "resid_post.1", dtype=dtype)), Site("resid_post", 1))
    assert cast.dtype == dtype and torch.equal(cast, exact.to(dtype))


def test_a_corpus_that_ends_early_is_said(model, corpus):
    sink = RecordingSink()
    n = sum(len(document.text) for document in corpus)
    assert sum(map(len, harvest(model, corpus, "embed", n_tokens=n + 5, sink=sink))) == n
    assert f"ended after {n} of the {n + 5} tokens" in sink.of("message")[0][0]
    assert sink.of("progress")[-1] == ("harvest", n, n + 5, "tokens")


def spoiled(value, token):
    """A model of its own whose embedding of one token is `value`."""
    tiny_model.cache_clear()
    model = tiny_model()
    tiny_model.cache_clear()
    (token_id,) = model.tokenizer(token, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.hf.model.embed_tokens.weight[token_id, 3] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_names_document_and_token(value):
    corpus = texts(["aaaa", "bbbbbbbbbbQbb"], name="c")
    with pytest.raises(DataError, match=r"'embed' is NaN or infinite at document 'c-1', token 10"):
        list(harvest(spoiled(value, "Q"), corpus, "embed", context=8, batch=2))


def test_overflow_of_half_precision_is_refused_not_written_as_infinity():
    corpus = texts(["bbQ"], name="c")
    model = spoiled(1e5, "Q")
    with pytest.raises(DataError, match=r"reaches 1e\+05 at document 'c-0', token 2, beyond what float16 can hold"):
        list(harvest(model, corpus, "embed", dtype=torch.float16))
    (chunk,) = harvest(model, corpus, "embed", dtype=torch.bfloat16)
    assert chunk.rows[Site("embed")][2, 3] == torch.tensor(1e5, dtype=torch.bfloat16)


def test_large_finite_values_are_no_error():
    model = spoiled(3e38, "Q")  # two of them overflow the sum that the quick check uses
    (chunk,) = harvest(model, texts(["QQ"]), "embed")
    assert float(chunk.rows[Site("embed")].max()) == pytest.approx(3e38)


def test_refusals(model, corpus):
    with pytest.raises(SiteError, match="pairs of positions"):
        harvest(model, corpus, "pattern.0")
    with pytest.raises(SiteError, match="out of range"):
        harvest(model, corpus, "resid_post.7")
    with pytest.raises(SiteError, match="no site was named"):
        harvest(model, corpus, [])
    with pytest.raises(ConfigError, match="float64"):
        harvest(model, corpus, "embed", dtype=torch.float64)
    with pytest.raises(DataError, match="is empty"):
        next(harvest(model, texts([]), "embed"))


def test_describe_is_what_decides_the_rows():
    described = harvest(tiny_model(), tiny_corpus(), "z.0", n_tokens=5, dtype=torch.float16).describe()
    assert described["sites"] == [{"site": "z.0", "width": 16}]
    assert described["dtype"] == "float16" and described["model"]["weights"] == tiny_model().identity["weights"]
