"""The grammar of sites."""

from __future__ import annotations

import pytest
from conftest_model import random_model
from hypothesis import given
from hypothesis import strategies as st

from hooke.base.errors import HookeError, SiteError
from hooke.model.sites import BLOCK_SITES, HEAD_SITES, Site, parse_pattern

site_strategy = st.one_of(
    st.sampled_from(["embed", "pos_embed", "final_norm", "logits"]).map(Site),
    st.builds(Site, st.sampled_from(BLOCK_SITES), st.integers(0, 99)),
    st.builds(Site, st.sampled_from(sorted(HEAD_SITES)), st.integers(0, 99), st.integers(0, 99)),
)


@given(site_strategy)
def test_round_trip(site):
    assert Site.parse(str(site)) == site


@given(st.text(max_size=30))
def test_any_text_parses_or_gives_a_site_error(text):
    try:
        parse_pattern(text)
    except HookeError as error:
        assert isinstance(error, SiteError)


@pytest.mark.parametrize(
    ("alias", "site"),
    [
        ("blocks.5.hook_resid_pre", "resid_pre.5"),
        ("blocks.5.attn.hook_z", "z.5"),
        ("blocks.0.attn.hook_attn_scores", "scores.0"),
        ("blocks.11.mlp.hook_post", "mlp_post.11"),
        ("hook_embed", "embed"),
    ],
)
def test_transformer_lens_names(alias, site):
    assert str(Site.parse(alias)) == site


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resid_pots.2", "did you mean 'resid_post'"),
        ("resid_post", "needs a layer"),
        ("embed.1", "takes no layer"),
        ("resid_post.2.3", "has no heads"),
        ("z.1.2.3", "too many parts"),
        ("z.x", "not a number"),
        ("z.*", "is a pattern"),
        ("blocks.1.attn.hook_zz", "no counterpart"),
        ("z.1.-1", "heads count from 0"),
    ],
)
def test_errors_say_what_to_do(text, says):
    with pytest.raises(SiteError, match=says.replace(".", r"\.").replace("*", r"\*")):
        Site.parse(text)


def test_order_is_the_order_of_execution():
    model = random_model("gpt2")
    seen = []
    taps = {**model.layout.outside, **{k: t for k, t in model.layout.inside.items() if not t.in_place}}
    sites = [info.site for info in model.sites() if info.site.name in taps]
    run = model.run("x = 1", capture=[str(s) for s in sites])
    seen = [site for site in run.acts]  # filled as the run goes
    assert seen == sorted(sites, key=lambda site: site.order) or {s.order for s in seen} == {s.order for s in sites}
    later = [model.run("x = 1", capture=[site], until=site) for site in sites]
    assert all(site in run for site, run in zip(sites, later, strict=True))


def test_model_resolves_and_refuses():
    model = random_model("llama-gqa")
    assert model.site("resid_post.-1") == Site("resid_post", 2)
    assert model.width("z.0") == 12
    assert [info.shape for info in model.sites() if info.site == Site("k", 0)] == [(None, None, 2, 12)]
    with pytest.raises(SiteError, match="layer 3 is out of range; the model has 3"):
        model.site("resid_post.3")
    with pytest.raises(SiteError, match="head 2 is out of range; the model has 2"):
        model.site("k.0.2")
    with pytest.raises(SiteError, match="positions are rotary"):
        model.site("pos_embed")
    with pytest.raises(SiteError, match="run in parallel"):
        random_model("gpt_neox").site("resid_mid.0")
