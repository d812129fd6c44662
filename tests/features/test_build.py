"""The built index against running model and dictionary by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hooke.base.errors import ConfigError, DataError, ShapeError, SiteError
from hooke.base.progress import RecordingSink
from hooke.data.corpora import texts
from hooke.data.packing import pack
from hooke.dictionaries.activations.topk import TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.features.build import build_index
from hooke.features.index import LatentIndex

TEXTS = [
    "def area(self):\n    return self.width * self.height\n" * 3,
    "<script>alert('x')</script> and é and 🙂 and &amp;",
    "import numpy as np\n\nclass Foo:\n    pass\n",
    "x = 1",
]


def test_equals_model_and_dictionary_run_by_hand(model, dictionary, index):
    dense, ids, docs, pos = [], [], [], []
    for packed in pack(texts(TEXTS), model, context=24, batch=3):
        run = model.run(packed.tokens, capture=["resid_post.0"])
        for row, doc in enumerate(packed.doc_ids):
            keep = run.keep[row]
            dense.append(dictionary.encode(run["resid_post.0"][row][keep]).dense().detach().numpy())
            ids += packed.tokens.ids[row][keep].tolist()
            pos += keep.nonzero()[:, 0].tolist()
            docs += [doc] * int(keep.sum())
    dense = np.concatenate(dense)
    assert index.n_tokens == len(dense) == sum(len(text.encode()) for text in TEXTS)
    assert index.token_id.tolist() == ids and index.pos.tolist() == pos
    assert [index.document(int(d)) for d in index.doc] == docs
    for latent in range(index.n_latents):
        np.testing.assert_allclose(index.activations(latent, 0, index.n_tokens), dense[:, latent], atol=2e-6)
    assert index.top(45).at.size == 0 and index.density[45] == 0


def test_bos_never_enters(model, index):
    assert not np.isin(np.asarray(index.token_id), model.special_ids).any()
    assert index.pos.min() == 1


def test_text_comes_back_with_its_place_in_the_document(index):
    for number, text in enumerate(TEXTS):
        first = int(np.flatnonzero(index.doc == number)[-1])
        example = index.example(0, first)
        assert text.encode()[example.start :] == example.text.encode()  # one token a byte; the last row of the document
    shown = "".join(index.strings(index.token_id[index.doc == 1]))
    assert shown == TEXTS[1]


def test_without_the_model_single_tokens_are_shown(index, model):
    bare = LatentIndex.open(index.path)
    assert bare.strings(index.token_id[:8]) == list(TEXTS[0][:8])
    assert bare.vocabulary[int(index.token_id[0])] == "d" and len(bare.vocabulary) == model.d_vocab


def test_manifest_says_what_it_is(index, model, dictionary):
    manifest = json.loads((index.path / "manifest.json").read_text())
    assert manifest["model"] == dict(model.identity) and manifest["dictionary"]["reads"] == "resid_post.0"
    assert manifest["n_documents"] == 4 and manifest["context"] == 24 and manifest["corpus"] == "texts"
    assert manifest["n_entries"] == len(index.at) == len(index.ids) == index.n_firing.sum()


def test_n_tokens_stops_at_the_row_that_reaches_it(model, dictionary, tmp_path):
    sink = RecordingSink()
    made = build_index(model, dictionary, texts(TEXTS), tmp_path / "i", n_tokens=30, context=24, sink=sink)
    assert made.n_tokens == 46 and made.manifest["n_rows"] == 2
    assert sink.of("progress")[-1] == ("index", 30, 30, "tokens") and sink.of("artefact") == [
        (made.path, "latent-index")
    ]


def test_a_taken_path_is_refused_and_kept(model, dictionary, index):
    with pytest.raises(ConfigError, match="exists already"):
        build_index(model, dictionary, texts(TEXTS), index.path, n_tokens=30)
    index.verify()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"reads": None}, ConfigError, "which site"),
        ({"reads": "resid_post.9"}, SiteError, "9"),
        ({"d_in": 8}, ShapeError, "has 16"),
    ],
)
def test_a_dictionary_that_does_not_fit(model, tmp_path, change, error, words):
    options = {"d_in": 16, "reads": "resid_post.0", **change}
    misfit = Dictionary(options["d_in"], 48, activation=TopK(4), reads=options["reads"])
    with pytest.raises(error, match=words):
        build_index(model, misfit, texts(TEXTS), tmp_path / "i", n_tokens=30)
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_leave_nothing_behind(model, tmp_path):
    broken = Dictionary(16, 8, activation=TopK(8), reads="resid_post.0")
    with torch.no_grad():
        broken.encoder.fill_(torch.inf)
    with pytest.raises(DataError):
        build_index(model, broken, texts(TEXTS), tmp_path / "i", n_tokens=30)
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_refused(index, model):
    class Other:
        pass

    altered = json.loads((index.path / "manifest.json").read_text())
    assert altered["model"]["weights"] == model.identity["weights"]
    with torch.no_grad():
        weight = model.hf.transformer.wte.weight
        weight[0, 0] += 1
        cached = model.__dict__.pop("identity")
    try:
        with pytest.raises(ConfigError, match="does not have"):
            LatentIndex.open(index.path, model)
    finally:
        with torch.no_grad():
            weight[0, 0] -= 1
        model.__dict__["identity"] = cached


def test_sites_with_heads_are_read_flat(model, tmp_path):
    heads = Dictionary(16, 12, activation=TopK(2), reads="z.1")
    made = build_index(model, heads, texts(TEXTS), tmp_path / "z", n_tokens=30, context=24)
    run = model.run(TEXTS[0][:23], capture=["z.1"])
    codes = heads.encode(run["z.1"].flatten(2)[run.keep]).dense().detach().numpy()
    for latent in range(12):
        np.testing.assert_allclose(made.activations(latent, 0, 23), codes[:, latent], atol=2e-6)
