"""Edits on disk: the same outputs bit for bit, readable JSON, and files that are broken are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest_model import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from hooke.base.errors import ConfigError, DataError, FormatError
from hooke.base.files import read_json
from hooke.dictionaries.activations.topk import TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.model.edit_files import load_edits, save_edits
from hooke.model.edits import KINDS, Ablate, Add, Call, Edit, Freeze, Mask, Project, Scale, Set, Splice
from hooke.model.sites import Site

D, SAME = 32, ["abcdef", "ghijkl", "mnopqr"]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Dictionary, str]:
    folder = tmp_path_factory.mktemp("files") / "dictionary"
    dictionary = Dictionary(D, 20, activation=TopK(k=4), reads="resid_post.1", seed=3)
    dictionary.save(folder)
    return dictionary, str(folder)


def makes(saved) -> dict[str, object]:
    """Each kind at positions that are drawn."""
    dictionary, folder = saved
    frozen = {Site("pattern", 0): draw(3, 4, 7, 7).softmax(-1), Site("mlp_norm_scale", 1): draw(3, 7, 1).abs()}
    return {
        "set": lambda p: Set("resid_post.1", draw(D, dtype=torch.float64), p),
        "set-places": lambda p: Set(Site("mlp_out", 1), draw(3, 7, D, dtype=torch.bfloat16), p),
        "add": lambda p: Add("blocks.1.hook_resid_post", draw(D), 0.1, p),
        "scale": lambda p: Scale("z.-1.2", 1 / 3, p),
        "project": lambda p: Project("resid_mid.*", draw(D), p),
        "zero": lambda p: Ablate("mlp_post.1", positions=p),
        "mean": lambda p: Ablate("resid_post.1", "mean", draw(9, D), p),
        "resample": lambda p: Ablate("z.1", "resample", positions=p, shift=2),
        "noise": lambda p: Ablate("resid_post.0", "noise", positions=p, std=0.25, seed=5, shared=True),
        "freeze": lambda p: Freeze("pattern.0, norms", frozen, p),
        "mask": lambda p: Mask("scores.1.2", [("last", 0), (3, -6)]),
        "mask-map": lambda p: Mask("scores.*", torch.ones(7, 7, dtype=torch.bool).tril(-2)),
        "splice": lambda p: Splice("resid_post.1", dictionary, "keep", p, {3: 2.5, 7: 0.0}, folder=folder),
    }


POSITIONS = st.one_of(
    st.none(),
    st.integers(-7, 6),
    st.lists(st.integers(0, 6), min_size=1, unique=True),
    st.sampled_from(["last", "prompt", "kept"]),
    st.integers(0, 2**21 - 1).map(lambda bits: torch.tensor([bits >> i & 1 for i in range(21)]).bool().reshape(3, 7)),
)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_read_gives_the_same_outputs_bit_for_bit(saved, tmp_path_factory, data):
    kinds = makes(saved)
    chosen = data.draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3))
    edits = [kinds[name](data.draw(POSITIONS)) for name in chosen]
    path = tmp_path_factory.mktemp("trip") / "edits.json"
    save_edits(path, edits)
    read = load_edits(path, open_dictionary=Dictionary.load)
    model = random_model("gpt2")
    tokens = model.tokens(SAME)
    before, after = (model.run(tokens, edits=own).logits for own in (edits, read))
    assert torch.equal(before, after)
    assert not torch.equal(before, model.run(tokens).logits) or all(_nowhere(edit) for edit in edits)


def _nowhere(edit: Edit) -> bool:
    if isinstance(edit, Ablate) and edit.kind == "resample":
        return True  # at BOS all rows are alike
    positions = getattr(edit, "positions", None)
    return isinstance(positions, torch.Tensor) and not positions[:, 1:].any()


def test_every_kind_but_call_is_tried(saved):
    assert {type(make(None)).__name__ for make in makes(saved).values()} == set(KINDS) - {"Call"}


def test_the_file_is_readable(tmp_path):
    save_edits(tmp_path / "e.json", [Add("resid_post.1", draw(D), positions=[0, -1]), Scale("z.1.3", 0.5)])
    document = json.loads((tmp_path / "e.json").read_text())
    assert document["edits"] == [
        {
            "type": "Add",
            "site": "resid_post.1",
            "vector": {"tensor": "edits.0.vector", "dtype": "float32", "shape": [32]},
            "positions": [0, -1],
        },
        {"type": "Scale", "site": "z.1.3", "factor": 0.5},
    ]
    assert (tmp_path / document["tensors"]["file"]).exists()


def test_a_file_written_by_hand_needs_no_checksum(tmp_path):
    edit = {"type": "Ablate", "site": "mlp_out.1", "positions": "last"}
    text = json.dumps({"format": "hooke.edits", "version": 1, "edits": [edit]})
    (tmp_path / "e.json").write_text(text)
    (read,) = load_edits(tmp_path / "e.json")
    assert (read.kind, read.site, read.positions) == ("zero", "mlp_out.1", "last")


def test_one_list_for_each_row(tmp_path):
    own = [[Scale("mlp_out.1", 0.0)], [], [Add("resid_post.0", draw(D)), Scale("z.1", 0.5)]]
    save_edits(tmp_path / "e.json", own)
    model = random_model("gpt2")
    read = load_edits(tmp_path / "e.json")
    assert torch.equal(model.run(SAME, edits=read).logits, model.run(SAME, edits=own).logits)


def test_saving_again_leaves_one_pair_of_files(tmp_path):
    for value in (1.0, 2.0, 2.0):
        save_edits(tmp_path / "e.json", [Add("resid_post.1", torch.full((D,), value))])
    assert len(list(tmp_path.iterdir())) == 2
    (read,) = load_edits(tmp_path / "e.json")
    assert read.vector[0] == 2
    save_edits(tmp_path / "e.json", [Scale("resid_post.1", 0.5)])
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]


def broken(path: Path, tensors: Path, how: str) -> str:
    """Break one of the files; returns the name that the error must hold."""
    if how in ("cut", "flip", "gone"):
        content = bytearray(tensors.read_bytes())
        content[-3] ^= 1
        if how == "gone":
            tensors.unlink()
        else:
            tensors.write_bytes(content if how == "flip" else content[:-9])
        return tensors.name
    text = path.read_text()
    changes = {
        "json-cut": text[: len(text) // 2],
        "json-flip": text.replace("resid_post.1", "resid_post.2"),
        "version": text.replace('"version": 1', '"version": 9'),
        "format": text.replace("hooke.edits", "hooke.edit"),
    }
    path.write_text(changes[how])
    return path.name


@pytest.mark.parametrize("how", ["cut", "flip", "gone", "json-cut", "json-flip", "version", "format"])
def test_a_broken_file_is_named(tmp_path, how):
    path = tmp_path / "e.json"
    save_edits(path, [Add("resid_post.1", draw(D))])
    name = broken(path, tmp_path / read_json(path)["tensors"]["file"], how)
    with pytest.raises(FormatError, match=name):
        load_edits(path)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"type": "Ad", "site": "z.1"}, "'Ad' is no kind of edit or metric; did you mean 'Add'"),
        ({"type": "Scale", "site": "z.1", "factor": 2, "faktor": 2}, "faktor"),
        ({"type": "Scale"}, "lacks a field"),
        ({"type": "Add", "site": "z.1", "vector": {"tensor": "x", "dtype": "float32", "shape": [2]}}, "'x' is missing"),
        ({"type": "Mask", "site": "scores.1", "edges": [1]}, "lacks a field"),
    ],
)
def test_a_wrong_file_written_by_hand_is_named(tmp_path, edit, says):
    (tmp_path / "e.json").write_text(json.dumps({"format": "hooke.edits", "version": 1, "edits": [edit]}))
    with pytest.raises(FormatError, match=says) as caught:
        load_edits(tmp_path / "e.json")
    assert "e.json" in str(caught.value)


def test_what_cannot_be_saved_says_why_and_writes_nothing(saved, tmp_path):
    dictionary, folder = saved
    other = Dictionary(D, 20, activation=TopK(k=4), reads="resid_post.1", seed=4)
    for edit, says in (
        (Call("z.1", lambda x: x), "holds a function and cannot be saved"),
        (Splice("resid_post.1", dictionary), r"give Splice\(..., folder=...\)"),
        (Splice("resid_post.1", other, folder=folder), "holds another dictionary"),
    ):
        with pytest.raises(DataError, match=says):
            save_edits(tmp_path / "e.json", [edit])
    assert not list(tmp_path.iterdir())


def test_a_spliced_dictionary_that_changed_is_found_out(saved, tmp_path):
    dictionary = saved[0]
    dictionary.save(tmp_path / "d")
    save_edits(tmp_path / "e.json", [Splice("resid_post.1", dictionary, folder=str(tmp_path / "d"))])
    assert read_json(tmp_path / "e.json")["edits"][0]["dictionary"]["folder"] == "d"
    with pytest.raises(ConfigError, match="give open_dictionary=hooke.Dictionary.load"):
        load_edits(tmp_path / "e.json")
    Dictionary(D, 20, activation=TopK(k=4), reads="resid_post.1", seed=4).save(tmp_path / "d")
    with pytest.raises(FormatError, match="is not the dictionary that"):
        load_edits(tmp_path / "e.json", open_dictionary=Dictionary.load)
