"""The page "Coming from TransformerLens or nnsight": its table names sites, its blocks run and agree with hooke's."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import hooke
from hooke.model.load import builtin_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from access_parts import peer_page, peers  # noqa: E402

TEXT = peer_page.PAGE.read_text()
ROUND = "text\n```nnsight\nanswer = 1\n```\n\n```python\nanswer = 2\n```\n"


def models() -> dict[str, hooke.Model]:
    """A model for each kind of name in the table, by its heading."""
    llama = hooke.load("hooke/stdlib")
    small = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=4096, bos_token_id=None, eos_token_id=None)
    gpt2 = hooke.load((GPT2LMHeadModel(small), llama.tokenizer))
    return {"TransformerLens": llama, "nnsight, GPT-2": gpt2, "nnsight, Llama": llama}


def test_names_in_the_table_are_the_sites_beside_them() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line[:1] == "|"]
    start = next(i for i, row in enumerate(rows) if row[0] == "hooke")
    table = rows[start : next(i for i, row in enumerate(rows) if row[0] == "they have")]
    found = 0
    for heading, model in models().items():
        column = table[0].index(heading)
        for row in table[2:]:
            names = [n for n in re.findall(r"`(.+?)`", row[column]) if not n.startswith((".", "attn.c_attn"))]
            for site, name in zip(re.findall(r"`(.+?)`", row[0]), names, strict=False):
                assert str(hooke.Site.parse(name) if "hook_" in name else model.site(name)) == site
                found += 1
    assert found > 50


def test_a_program_keeps_the_lines_of_the_page() -> None:
    assert peer_page.program(ROUND, "nnsight") == "\n\nanswer = 1\n_keep(0, globals())\n"
    assert peer_page.program(ROUND, "python") == "\n" * 6 + "answer = 2\n_keep(0, globals())\n"


@pytest.mark.parametrize("theirs", [{}, {0: torch.zeros(2)}, {0: torch.ones(3)}], ids=["none", "shape", "value"])
def test_answers_that_do_not_agree_are_found(monkeypatch: pytest.MonkeyPatch, theirs: dict) -> None:
    sides = {"nnsight": theirs, "transformer_lens": {}, "python": {0: torch.zeros(3)}}
    monkeypatch.setattr(peer_page, "answers", lambda text, language, python, model: sides[language])
    if 0 in theirs and len(theirs[0]) == 3:
        assert peer_page.compare(ROUND, Path(), Path()) == [peer_page.Compared("nnsight", 7, 1.0)]
    else:
        with pytest.raises(peers.PeerError, match="line 3: nnsight answers"):
            peer_page.compare(ROUND, Path(), Path())


@pytest.mark.slow
def test_the_blocks_of_all_packages_run_and_agree() -> None:
    python = Path(os.environ.get("HOOKE_PEERS", peers.default_folder())) / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment with the peers: {python} does not exist; `hooke bench access` makes it")
    rows = peer_page.compare(TEXT, python, builtin_folder("hooke/stdlib"))
    assert {row.package for row in rows} == set(peers.PACKAGES)
    assert max(row.difference for row in rows) <= peer_page.AGREE
