"""Vision-language models: images in, sites of the text model, and edits at image tokens only."""

from __future__ import annotations

import functools

import pytest
import torch
from conftest_model import _LLAMA, _SMALL, byte_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    LlavaConfig,
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from hooke.base.errors import DataError, ModelError
from hooke.model.edits import Add, Set
from hooke.model.load import load
from hooke.model.model import Model
from hooke.model.tokens import Tokens

IMAGE = 250  # the id that stands for a piece of an image
_TEXT = {**_SMALL, **_LLAMA, "num_key_value_heads": 2}
_TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
_QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1}
_ROPE = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [1, 1, 2]}
_MARKS = {"image_token_id": IMAGE, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
_GEMMA = {"head_dim": 12, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}

VISION_CONFIGS: dict[str, PretrainedConfig] = {
    "llava": LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_TOWER, "image_size": 8, "projection_dim": 16},
        text_config={"model_type": "llama", **_TEXT},
        image_token_index=IMAGE,
    ),
    "llava-qwen2": LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", **_TOWER, "image_size": 8},
        text_config={"model_type": "qwen2", **_TEXT},
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
    ),
    "qwen2_vl": Qwen2VLConfig(
        vision_config={**_QWEN_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        text_config={**_TEXT, "rope_parameters": _ROPE},
        **_MARKS,
    ),
    "qwen2_5_vl": Qwen2_5_VLConfig(
        vision_config={
            **_QWEN_TOWER,
            "hidden_size": 16,
            "out_hidden_size": 32,
            "intermediate_size": 24,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },  # fmt: skip
        text_config={**_TEXT, "rope_parameters": _ROPE},
        **_MARKS,
    ),
    "qwen3_vl": Qwen3VLConfig(
        vision_config={
            **_QWEN_TOWER,
            "hidden_size": 16,
            "out_hidden_size": 32,
            "intermediate_size": 24,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },  # fmt: skip
        text_config={**_TEXT, "head_dim": 8, "rope_parameters": {**_ROPE, "mrope_interleaved": True}},
        **_MARKS,
    ),
    "gemma3": Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **_TOWER, "image_size": 16, "vision_use_head": False},
        text_config={**_TEXT, **_GEMMA, "num_hidden_layers": 4},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    ),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@functools.cache
def random_vision_model(name: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Model:
    torch.manual_seed(len(name))
    hf = AutoModelForImageTextToText.from_config(VISION_CONFIGS[name], attn_implementation=attention)
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return load((hf.to(dtype), byte_tokenizer()))


@pytest.fixture(params=list(VISION_CONFIGS))
def name(request):
    return request.param


def pictures(name: str, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Pixels of n images, each of four image tokens, as the family's processor lays them out."""
    draw = torch.Generator().manual_seed(seed)
    if name.startswith("qwen"):
        grid = torch.tensor([[1, 4, 4], [1, 2, 8]])[[i % 2 for i in range(n)]]
        pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 4 * 4, generator=draw)
        return {"pixel_values": pixels, "image_grid_thw": grid}
    size = 16 if name == "gemma3" else 8
    return {"pixel_values": torch.randn(n, 3, size, size, generator=draw)}


def prompt(name: str, rows: list[list[int]], side: str = "right") -> Tokens:
    """Rows in which -1 stands for a whole image; the images are numbered through."""
    n_images = sum(row.count(-1) for row in rows)
    spread = [[i for token in row for i in ([IMAGE] * 4 if token == -1 else [token])] for row in rows]
    tokens = Tokens.from_ids(spread, special_ids=[0, 1], pad_id=1, padding_side=side)
    encoding = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long()}
    encoding |= pictures(name, n_images) if n_images else {}
    kinds = (tokens.ids == IMAGE).long()
    if n_images:
        encoding |= {"token_type_ids": kinds} if name == "gemma3" else {}
        encoding |= {"mm_token_type_ids": kinds} if name.startswith("qwen") else {}
    return Tokens.from_encoding(encoding, special_ids=[0, 1])


ONE = [[0, 20, -1, 30, 31, 32]]
ROWS = [[0, 20, -1, 30, 31], [0, 40, 41], [0, -1, 50, -1, 51, 52]]


@pytest.mark.parametrize(("dtype", "attention"), [*((dtype, "sdpa") for dtype in DTYPES), (torch.float32, "eager")])
@pytest.mark.parametrize("side", ["left", "right"])
def test_images_in_equal_hugging_face(name, dtype, attention, side):
    model = random_vision_model(name, dtype, attention)
    # In float64 transformers itself gives NaN where padding has all keys masked.
    tokens = prompt(name, ONE if dtype == torch.float64 else ROWS, side)
    given = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), **tokens.media}
    with torch.no_grad():
        expected = model.hf(**given, use_cache=False, output_hidden_states=True)
    run = model.run(tokens, capture=["embed", "resid_pre.*", "resid_post.*", "z.0", "mlp_post.1", "final_norm"])
    assert torch.equal(run.logits, expected.logits)
    assert torch.isfinite(run.logits).all()
    assert torch.equal(run["embed"], expected.hidden_states[0])
    assert torch.equal(run["resid_pre.0"], run["embed"])
    for layer in range(model.n_layers - 1):
        assert torch.equal(run[f"resid_post.{layer}"], expected.hidden_states[layer + 1])
    assert torch.equal(run["final_norm"], expected.hidden_states[-1])
    other = tokens.media | {"pixel_values": tokens.media["pixel_values"] + 1.0}
    with torch.no_grad():
        assert not torch.equal(model.hf(**given | other, use_cache=False).logits, run.logits)  # the image matters


@pytest.mark.parametrize("dtype", DTYPES)
def test_text_alone_equals_hugging_face(name, dtype):
    model = random_vision_model(name, dtype)
    for texts, side in ((["x = 1", "def f():"], "left"), (["x = 1", "def f():"], "right"), ("x = 1", "right")):
        if dtype == torch.float64 and not isinstance(texts, str):
            continue  # as above
        tokens = model.tokens(texts, padding_side=side)
        with torch.no_grad():
            expected = model.hf(**model.arguments(tokens), use_cache=False).logits
        run = model.run(tokens, capture=["embed", "resid_pre.0"])
        assert torch.equal(run.logits, expected)
        assert not run.tokens.image.any()
        assert torch.equal(run["embed"], run["resid_pre.0"])


def test_captured_sites_equal_recomputation(name):
    model = random_vision_model(name)
    run = model.run(prompt(name, ONE), capture=[str(info.site) for info in model.sites()])
    language = model.hf.model.language_model
    for layer in range(model.n_layers):
        at = {site.name: value for site, value in run.acts.items() if site.layer == layer}
        block = language.layers[layer]
        tol = {"atol": 5e-6, "rtol": 1e-5}
        torch.testing.assert_close(at["resid_mid"], at["resid_pre"] + at["attn_out"], **tol)
        torch.testing.assert_close(at["resid_post"], at["resid_mid"] + at["mlp_out"], **tol)
        assert torch.equal(at["attn_in"], block.input_layernorm(at["resid_pre"]))
        assert torch.equal(at["q"].flatten(-2), block.self_attn.q_proj(at["attn_in"]))
        groups = model.n_heads // model.n_kv_heads
        keys, values = (at[part].repeat_interleave(groups, dim=2) for part in ("k_rot", "v"))
        scores = torch.einsum("bqhd,bkhd->bhqk", at["q_rot"], keys) * block.self_attn.scaling
        seen = at["pattern"] > 0
        torch.testing.assert_close(at["scores"][seen], scores[seen], **tol)
        torch.testing.assert_close(at["z"], torch.einsum("bhqk,bkhd->bqhd", at["pattern"], values), **tol)
        torch.testing.assert_close(block.self_attn.o_proj(at["z"].flatten(-2)), at["result"].sum(-2), **tol)
    both_ways = run["pattern.1"][0, :, 2:6, 2:6].triu(1).sum() > 0  # among the tokens of the image
    assert both_ways == (name == "gemma3")


def test_deepstack_adds_to_the_stream_between_blocks():
    """Qwen 3 VL adds features of the image tower after its first blocks: an output is not the next input."""
    model = random_vision_model("qwen3_vl")
    run = model.run(prompt("qwen3_vl", ONE), capture=["resid_pre.*", "resid_post.*"])
    gap = (run["resid_pre.1"] - run["resid_post.0"]).abs().amax(-1)[0]
    assert (gap[2:6] > 0).all() and (gap[[0, 1, 6, 7, 8]] == 0).all()
    assert torch.equal(run["resid_pre.2"], run["resid_post.1"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_writing_back_changes_nothing(name, dtype):
    model = random_vision_model(name, dtype)
    tokens = prompt(name, ONE)
    run = model.run(tokens, capture=[str(i.site) for i in model.sites() if i.site.name not in ("scores", "pattern")])
    edits = [Set(site, value) for site, value in run.acts.items()]
    assert torch.equal(model.run(tokens, edits=edits).logits, run.logits)
    for edit in edits if dtype == torch.float32 else []:
        assert torch.equal(model.run(tokens, edits=[edit]).logits, run.logits), edit.site


def test_image_positions_edit_image_tokens_only(name):
    model = random_vision_model(name)
    tokens = model.as_tokens(prompt(name, ROWS))
    assert torch.equal(tokens.image, tokens.ids == IMAGE)
    assert not (tokens.image & tokens.keep).any()
    push = Add("resid_post.1", torch.ones(model.d_model), positions=tokens.image)
    plain, edited = (model.run(tokens, edits=edits, capture="resid_post.1") for edits in ([], [push]))
    moved = (edited["resid_post.1"] - plain["resid_post.1"]).abs().amax(-1) > 0
    assert torch.equal(moved, tokens.image)
    assert torch.equal(edited.logits[1], plain.logits[1])  # the row without an image
    embedded = model.run(tokens, edits=[Add("embed", torch.ones(model.d_model), positions=tokens.image)])
    assert not torch.equal(embedded.logits[0], plain.logits[0])  # an edit that acts, where the placeholder was
    assert torch.equal(embedded.logits[1], plain.logits[1])


def test_padding_does_not_matter(name):
    model = random_vision_model(name)
    sites = ["resid_post.*", "z.1"]
    for side in ("left", "right"):
        run = model.run(prompt(name, ROWS, side), capture=sites)
        for row in range(len(ROWS)):
            own = run.tokens.rows([row])
            mask = own.mask[0]
            cut = {k: v[:, mask] if v.shape[:2] == own.shape else v for k, v in own.media.items()}
            alone = model.run({"input_ids": own.ids[:, mask], **cut}, capture=sites)
            torch.testing.assert_close(run.logits[row][mask], alone.logits[0], atol=2e-5, rtol=1e-4)
            for site in alone.acts:
                torch.testing.assert_close(run[site][row][mask], alone[site][0], atol=2e-5, rtol=1e-4)


def test_generation_from_images_equals_hugging_face(name):
    model = random_vision_model(name)
    tokens = model.as_tokens(prompt(name, ROWS, "left"))
    given = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), **tokens.media}
    expected = model.hf.generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=1)
    for side in ("left", "right"):
        ours = model.generate(prompt(name, ROWS, side), max_new_tokens=6, stop_at_end=False)
        assert torch.equal(ours.ids, expected[:, tokens.shape[1] :])
    push = Add("resid_post.1", 2 * torch.ones(model.d_model), positions=tokens.image)
    steered = model.generate(tokens, max_new_tokens=6, stop_at_end=False, edits=[push]).ids
    assert not torch.equal(steered[[0, 2]], ours.ids[[0, 2]])
    assert torch.equal(steered[1], ours.ids[1])  # the row without an image


def test_sweeps_with_images_equal_single_runs(name):
    model = random_vision_model(name)
    tokens = model.as_tokens(prompt(name, ROWS))
    push = torch.ones(model.d_model)
    sets = [[Add(f"{s}.{n}", push, positions=p)] for s in ("resid_pre", "mlp_out") for n in (0, 1) for p in (0, 1, -1)]
    swept = model.sweep(tokens, sets, lambda run: run.logits[:, 1, 7])
    one_by_one = torch.stack([model.run(tokens, edits=edits).logits[:, 1, 7] for edits in sets])
    torch.testing.assert_close(swept.values, one_by_one, atol=1e-5, rtol=1e-5)


def test_rows_take_their_images_along(name):
    model = random_vision_model(name)
    tokens = model.as_tokens(prompt(name, ROWS))
    whole = model.run(tokens)
    for index in ([2, 0], [0, 0, 1], [1], slice(1, 3)):
        rows = list(range(3))[index] if isinstance(index, slice) else index
        part = model.run(tokens.rows(index))
        mask = part.tokens.mask
        torch.testing.assert_close(part.logits[mask], whole.logits[rows][mask], atol=2e-5, rtol=1e-4)
        assert torch.equal(part.tokens.image, tokens.image[rows])
    left = tokens.padded("left")
    assert torch.equal(left.ids, prompt(name, ROWS, "left").ids)
    assert torch.equal(left.image, left.ids == IMAGE)
    assert torch.equal(left.padded("right").ids, tokens.ids)
    torch.testing.assert_close(model.run(left).logits[left.mask], whole.logits[tokens.mask], atol=2e-5, rtol=1e-4)


def test_encodings_that_cannot_be_used():
    with pytest.raises(DataError, match="no input_ids among 'pixel_values'"):
        Tokens.from_encoding({"pixel_values": torch.zeros(1)})
    with pytest.raises(DataError, match="return_tensors='pt'"):
        Tokens.from_encoding({"input_ids": [[0, 1]]})
    tokens = random_vision_model("llava").as_tokens(prompt("llava", ROWS))
    video = {"pixel_values_videos": torch.zeros(7, 3)}
    with pytest.raises(DataError, match="which entries of 'pixel_values_videos'"):
        type(tokens)(tokens.ids, tokens.mask, tokens.keep, media=video).rows([0])
    twice = {"pixel_values": torch.zeros(5, 3, 8, 8)}
    with pytest.raises(DataError, match="5 images do not fit 12 image tokens"):
        type(tokens)(tokens.ids, tokens.mask, tokens.keep, media=twice, image=tokens.image).rows([0])


def test_a_text_part_without_a_map_is_named():
    from hooke.model.families import layout_of

    config = LlavaConfig(text_config={"model_type": "gpt2"}, vision_config={"model_type": "clip_vision_model"})
    with pytest.raises(ModelError, match="text part of this 'llava' model is 'gpt2'"):
        layout_of(config)
