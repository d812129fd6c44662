"""Generation under edits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest_model import CONFIGS, TEXTS, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from hooke.base.errors import ConfigError, ModelError
from hooke.model.edits import Ablate, Add, Edit, Project, Scale, Set
from hooke.model.generation.cached import CachedRun
from hooke.model.generation.generate import Generation
from hooke.model.generation.growing import GrowingText
from hooke.model.generation.sampling import Sampling
from hooke.model.model import Model
from hooke.model.plan import available
from hooke.model.sites import MAP_SITES, Site

N_NEW = 5
FAST = ("gpt2", "llama-gqa")  # where every family would say the same


def whole_text(model: Model, prompt: torch.Tensor, new: torch.Tensor, edits: list[Edit]) -> torch.Tensor:
    """Log-probabilities `[new, vocab]` from one forward over prompt and continuation, with nothing cached."""
    width, total = len(prompt), len(prompt) + len(new)
    columns = torch.arange(total)[None]

    def spread(edit: Edit) -> Edit:
        asked = edit.positions
        if isinstance(asked, torch.Tensor):
            mask = torch.cat([asked, torch.zeros(1, len(new), dtype=torch.bool)], dim=1)
        elif isinstance(asked, str | None):
            mask = {
                None: columns >= 0,
                "prompt": columns < width,
                "generated": columns >= width,
                "last": columns == width - 1,
                "kept": columns >= 1,
            }[asked]
        else:
            places = [asked] if isinstance(asked, int) else asked
            mask = torch.isin(columns, torch.tensor([p % width for p in places]))
        changed = {"positions": mask}
        if isinstance(edit, Set) and edit.value.ndim >= 3 and edit.value.shape[:2] == (1, width):
            changed["value"] = torch.cat([edit.value, torch.zeros(1, len(new), *edit.value.shape[2:])], dim=1)
            changed["positions"] = mask & (columns < width)
        return dataclasses.replace(edit, **changed)

    logits = model.run(torch.cat([prompt, new])[None], edits=[spread(edit) for edit in edits]).logits[0]
    return logits[width - 1 : total - 1].log_softmax(-1)


def texts_for(model: Model) -> list[str]:
    """Of several lengths; of one on kernels that give NaN for padding in float64, which transformers' eager ones do."""
    padded = model.hf.config._attn_implementation == "sdpa" or model.family in ("gpt_neo", "gptj")  # float32 masks
    return TEXTS if padded else [text[:6].ljust(6) for text in TEXTS]


def check_rows(model: Model, tokens, found: Generation, edits_of_row) -> None:
    # Float64, but norms and softmaxes are rounded to float32 in most families, and all of attention in two.
    tolerance = 1e-5 if model.family in ("gpt_neo", "gptj") else 1e-6
    for row in range(len(tokens)):
        prompt = tokens.ids[row][tokens.mask[row]]
        expected = whole_text(model, prompt, found.ids[row], edits_of_row(row))
        chosen = expected.gather(-1, found.ids[row][:, None])[:, 0]
        assert torch.allclose(chosen, expected.amax(-1), atol=tolerance, rtol=0)  # greedy; edits may leave ties
        assert torch.allclose(chosen, found.logprobs[row], atol=tolerance, rtol=0)


def feature(model: Model, site: Site) -> tuple[int, ...]:
    whole = model.layout.feature_shape(site.name, model.d_vocab)
    return whole[1:] if site.head is not None else whole


def drawn_edit(draw, model: Model, width: int) -> Edit:
    """Any site, a kind that does not open the causal mask, any positions."""
    site = draw(st.sampled_from(available(model.layout)), label="site")
    if site.name in ("q", "z", "result", "pattern") and draw(st.booleans(), label="one head"):
        site = dataclasses.replace(site, head=draw(st.integers(0, model.n_heads - 1)))
    places = [None, "prompt", "generated", "last", "kept", 0, -2, [1, -1]]
    positions = draw(st.sampled_from(places), label="positions")
    noise = torch.Generator().manual_seed(draw(st.integers(0, 99), label="noise"))
    if site.name in MAP_SITES:
        return Scale(site, draw(st.sampled_from([0.5, 2.0])), positions=positions)
    if site.name.endswith("_scale"):
        return Scale(site, 1.5, positions=positions)
    vector = torch.randn(*feature(model, site), generator=noise, dtype=torch.float64)
    kinds = {
        "add": Add(site, vector, positions=positions),
        "set": Set(site, vector, positions=positions),
        "each": Set(site, vector + torch.randn(1, width, *vector.shape, generator=noise).double(), positions=positions),
        "scale": Scale(site, -0.7, positions=positions),
        "project": Project(site, vector.flatten(0, -2)[0] if vector.ndim > 1 else vector, positions=positions),
        "ablate": Ablate(site, positions=positions),
    }
    return draw(st.sampled_from(list(kinds.values())), label="edit")


@settings(max_examples=12)
@given(data=st.data())
def test_cached_generation_equals_running_the_whole_text_again(data):
    """Several edits in every row of its own, on padded prompts: token by token what one uncached forward gives."""
    model = random_model(data.draw(st.sampled_from(list(CONFIGS)), label="family"), torch.float64)
    tokens = model.tokens(texts_for(model), padding_side=data.draw(st.sampled_from(["left", "right"])))
    edits = [
        [drawn_edit(data.draw, model, int(length)) for _ in range(data.draw(st.integers(0, 3)))]
        for length in tokens.lengths
    ]
    alone = [[one_row(edit, tokens, row) for edit in own] for row, own in enumerate(edits)]
    found = model.generate(tokens, edits=alone, max_new_tokens=N_NEW, stop_at_end=False, logprobs=True)
    check_rows(model, tokens, found, lambda row: edits[row])


def one_row(edit: Edit, tokens, row: int) -> Edit:
    """An edit of the bare prompt as an edit of its padded row: values for every position get their padding."""
    if not isinstance(edit, Set) or edit.value.shape[:2] != (1, int(tokens.lengths[row])):
        return edit
    value = torch.zeros(1, tokens.shape[1], *edit.value.shape[2:], dtype=torch.float64)
    value[:, tokens.mask[row]] = edit.value
    return dataclasses.replace(edit, value=value)


@pytest.mark.parametrize("name", ["embed", "pos_embed", "q_rot", "k_rot", "scores", "pattern", "logits", "resid_mid"])
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "mistral-window", "gemma2", "gpt_neo", "gptj", "falcon-alibi"])
def test_every_kind_of_site_in_one_batch(family, name):
    """One list of edits for all rows, prompt and generated tokens alike."""
    model = random_model(family, torch.float64)
    sites = [site for site in available(model.layout) if site.name == name]
    if not sites:
        pytest.skip("the architecture has no such site")
    site = sites[-1]
    edits = [Scale(site, 0.5), Scale(site, 3.0, positions="last"), Scale(site, 0.1, positions="generated")]
    tokens = model.tokens(texts_for(model))
    found = model.generate(tokens, edits=edits, max_new_tokens=N_NEW, stop_at_end=False, logprobs=True)
    check_rows(model, tokens, found, lambda row: edits)
    plain = model.generate(tokens, max_new_tokens=N_NEW, stop_at_end=False, logprobs=True)
    assert not torch.allclose(plain.logprobs, found.logprobs, atol=1e-5)  # they did something


@pytest.mark.parametrize("name", ["scores", "pattern"])
def test_a_whole_map_belongs_to_the_prompt(name):
    model = random_model("llama-gqa", torch.float64)
    prompt = model.tokens(TEXTS[0])
    width = prompt.shape[1]
    other = model.run(prompt, capture=f"{name}.0", edits=[Scale("resid_pre.0", -1.0)])[f"{name}.0"]
    found = model.generate(prompt, edits=[Set(f"{name}.0", other)], max_new_tokens=3, stop_at_end=False, logprobs=True)
    grown = torch.full((1, other.shape[1], width + 3, width + 3), float(other.min()), dtype=torch.float64)
    grown[..., :width, :width] = other
    again = Set(f"{name}.0", grown, positions=torch.arange(width + 3)[None] < width)
    full = model.run(torch.cat([prompt.ids, found.ids], dim=1), edits=[again]).logits[0, width - 1 : -1].log_softmax(-1)
    assert torch.allclose(full.gather(-1, found.ids.T)[:, 0], found.logprobs[0], atol=1e-6, rtol=0)


def test_plain_generation_equals_hugging_face(model: Model):
    """Greedy, with and without padding; windows shorter than the texts included."""
    for prompts in (TEXTS, [TEXTS[2]]):
        tokens = model.tokens(prompts, padding_side="left")
        ours = model.generate(tokens, max_new_tokens=8, stop_at_end=False).ids
        theirs = model.hf.generate(
            tokens.ids,
            attention_mask=tokens.mask.long(),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=model.tokenizer.pad_token_id,
        )
        assert torch.equal(ours, theirs[:, tokens.shape[1] :])


@pytest.mark.parametrize("family", FAST)
def test_a_row_with_edits_of_its_own_equals_that_prompt_alone(family):
    model = random_model(family)
    noise = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    edits = [
        [Add("resid_post.0", noise[0], scale=2.0)],
        [],
        [Ablate("z.1.2"), Add("embed", noise[1], positions="last")],
    ]
    batch = model.generate(TEXTS, edits=edits, max_new_tokens=6, stop_at_end=False, logprobs=True)
    for row, text in enumerate(TEXTS):
        alone = model.generate(text, edits=edits[row], max_new_tokens=6, stop_at_end=False, logprobs=True)
        assert torch.equal(batch.ids[row], alone.ids[0])
        assert torch.allclose(batch.logprobs[row], alone.logprobs[0], atol=1e-5, rtol=0)


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_sampling_depends_on_prompt_seed_and_place_alone():
    model = random_model("llama", torch.float64)
    options = {"max_new_tokens": 12, "temperature": 1.0, "stop_at_end": False}
    first = model.generate("x = ", seed=1, **options).ids
    assert torch.equal(first, model.generate("x = ", seed=1, **options).ids)
    assert not torch.equal(first, model.generate("x = ", seed=2, **options).ids)
    with_others = model.generate(["x = ", "def", "x = "], seed=1, **options).ids
    assert torch.equal(with_others[:1], first)
    assert not torch.equal(with_others[2:], first)
    by_seed = model.generate(["def", "x = ", "x = "], seeds=[3, 4, 4], **options).ids
    assert torch.equal(by_seed[1], by_seed[2])
    assert torch.equal(by_seed[1:2], model.generate("x = ", seeds=[4], **options).ids)


def test_samples_of_one_prompt():
    """The prompt runs once; the first sample is the one that is drawn alone, and edits go with every sample."""
    model = random_model("gpt2", torch.float64)
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)).double()
    tokens = model.tokens(TEXTS[:2])
    each = torch.randn(*tokens.shape, 32, generator=torch.Generator().manual_seed(2)).double()
    cases = [
        [Set("resid_pre.1", each, positions="prompt"), Scale("k.2", 0.5, positions="generated")],
        [[Add("resid_post.0", vectors[0])], [Add("resid_post.0", vectors[1], positions="generated")]],
    ]
    for edits in cases:
        options = {"edits": edits, "temperature": 1.0, "max_new_tokens": 6, "stop_at_end": False, "logprobs": True}
        three = model.generate(tokens, samples_per_prompt=3, **options)
        one = model.generate(tokens, **options)
        assert torch.equal(three.ids[::3], one.ids)
        assert torch.allclose(three.logprobs[::3], one.logprobs, atol=1e-6, rtol=0)
        assert len({tuple(row) for row in three.ids.tolist()}) == 6
        assert torch.equal(three.prompts.ids[::3], one.prompts.ids)


def test_samples_follow_the_distribution():
    draws = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, -1)
    counts = torch.bincount(Sampling(temperature=1.0).choose(logits, draws), minlength=4) / 4000
    assert torch.allclose(counts, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03)  # 3.8 standard errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"top_p": 0.79}, [0.5, 0.3, 0, 0]),
        ({"top_p": 0.81}, [0.5, 0.3, 0.15, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 3}, [0.5, 0.3, 0.15, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"min_p": 0.29}, [0.5, 0.3, 0.15, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.6, "min_p": 0.5}, [0.5, 0.3, 0, 0]),
    ],
)
def test_what_is_left_to_draw_from(options, expected):
    logits = torch.log(torch.tensor([[0.15, 0.5, 0.05, 0.3]], dtype=torch.float64))
    found = Sampling(**{"temperature": 1.0, **options}).probabilities(logits)[0, [1, 3, 0, 2]]
    wanted = torch.tensor(expected, dtype=torch.float64)
    assert torch.allclose(found, wanted / wanted.sum(), atol=1e-12)


def test_a_tiny_temperature_takes_the_most_likely():
    logits = torch.tensor([[1e4, 0.0, 9999.0]])
    assert Sampling(temperature=1e-4).probabilities(logits).tolist() == [[1.0, 0.0, 0.0]]


# -- where a row ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [True, False])
def test_a_row_ends_at_the_end_token_and_the_others_go_on(stop):
    model = random_model("gpt2")
    end = model.tokenizer.eos_token_id
    with _said(model, {1: [None, end]}):
        found = model.generate(TEXTS, max_new_tokens=5, stop_at_end=stop, logprobs=True)
    assert found.ids[1, 1] == end
    if stop:
        assert found.mask[1].tolist() == [True, True, False, False, False]
        assert found.ids[1, 2:].tolist() == [model.tokenizer.pad_token_id] * 3
        assert found.texts[1] == model.text.decode([int(found.ids[1, 0])])
        assert torch.equal(found.logprobs.isnan(), ~found.mask)
    else:
        assert found.mask.all()
    assert found.mask[0].all()
    assert found.mask[2].all()


class _said:  # noqa: N801  # reads as a sentence
    """Rows say these ids, a step each; None leaves the choice to the model. Nobody says the end token by chance."""

    def __init__(self, model: Model, words: dict[int, list[int | None]]) -> None:
        self.model, self.words, self.step = model, words, 0

    def __enter__(self):
        self.handle = self.model.hf.lm_head.register_forward_hook(self.push)

    def __exit__(self, *_):
        self.handle.remove()

    def push(self, module, args, out):
        out = out.clone()
        out[..., self.model.tokenizer.eos_token_id] = -1e9
        for row, ids in self.words.items():
            if self.step < len(ids) and ids[self.step] is not None:
                out[row, :, ids[self.step]] = 1e9
        self.step += 1
        return out


def _bytes(model: Model, text: str | bytes) -> list[int]:
    alphabet = model.tokenizer(text if isinstance(text, str) else text.decode(), add_special_tokens=False)
    return alphabet["input_ids"]


def test_stop_strings_and_ids():
    model = random_model("gpt2")
    ids = [_bytes(model, word) for word in ("a\n\nb", "a\nUse:", "abcdef")]
    with _said(model, dict(enumerate(ids))):
        found = model.generate(TEXTS, max_new_tokens=6, stop=["\n\n", "User:"], stop_ids=_bytes(model, "d"))
    assert found.texts == ["a", "a\nUse:", "abc"]
    assert found.mask.sum(dim=1).tolist() == [3, 6, 4]
    with _said(model, dict(enumerate(ids))):
        one = model.generate(TEXTS, max_new_tokens=6, stop="a")
    assert one.texts == ["", "", ""]
    assert one.ids.shape[1] == 1


def test_ends_of_the_generation_config_count_where_it_knows_the_tokenizer():
    model = random_model("llama-gqa")
    config, other = model.hf.generation_config, _bytes(model, "q")[0]
    before = config.eos_token_id
    try:
        for named, length in (([0, other], 2), ([5, other], 4), (other, 4)):
            config.eos_token_id = named
            with _said(model, {0: [*_bytes(model, "aqaa")]}):
                assert model.generate("x", max_new_tokens=4).ids.shape[1] == length
    finally:
        config.eos_token_id = before


# -- streaming ---------------------------------------------------------------------------------------------------------


def test_streaming_sees_every_step():
    model = random_model("gpt2")
    steps = []
    found = model.generate(TEXTS, max_new_tokens=4, on_token=lambda step, ids: steps.append((step, ids.tolist())))
    assert [s for s, _ in steps] == list(range(found.ids.shape[1]))
    assert torch.tensor([ids for _, ids in steps]).T.tolist() == found.ids.tolist()
    streamed = list(model.stream(TEXTS, max_new_tokens=4))
    assert torch.equal(torch.stack([step.ids for step in streamed], dim=1), found.ids)
    assert torch.equal(torch.stack([step.live for step in streamed], dim=1), found.mask)


@pytest.mark.parametrize("seed", range(3))
def test_pieces_joined_are_the_texts(seed):
    """Random bytes: half characters, nonsense, and stop strings that begin and do not go on."""
    model = random_model("llama-gqa")
    for options in ({}, {"stop": ["e", "ab"]}, {"stop": [chr(233), "\n\n"]}):
        settings = {"temperature": 1.5, "seed": seed, "max_new_tokens": 25, "samples_per_prompt": 3, **options}
        steps = list(model.stream(TEXTS, **settings))
        pieces = ["".join(row) for row in zip(*(step.pieces for step in steps), strict=True)]
        assert pieces == model.generate(TEXTS, **settings).texts


def test_a_character_and_a_stop_string_come_whole():
    model = random_model("gpt2")
    ids = _bytes(model, "é!\nUs.\nUser: no")
    text = GrowingText(model.text, ["\nUser:"])
    pieces = [text.add(i) for i in ids]
    assert pieces == ["", "é", "!", "", "", "", "\nUs.", *[""] * (len(ids) - 7)]
    assert text.stopped
    assert text.text == "é!\nUs."
    held = GrowingText(model.text, ["\nUser:"])
    assert [held.add(i) for i in ids[:5]] == ["", "é", "!", "", ""]
    assert held.end() == "\nU"
    half = GrowingText(model.text)
    assert half.add(ids[0]) + half.end() == "\ufffd"


@pytest.mark.parametrize("edit", [Scale("resid_post.1", 0.0), Scale("pattern.1", 0.0)])
def test_between_two_steps_the_model_is_as_it_was(edit):
    """Other runs, plain ones too, do not see the edits of a stream; two streams do not see each other's."""
    model = random_model("llama-gqa", torch.float64)
    ids = model.tokens(TEXTS[0]).ids
    plain = model.hf(ids).logits
    expected = [model.generate(TEXTS[0], edits=edits, max_new_tokens=6).ids for edits in ([edit], [])]
    found = [[], []]
    streams = [model.stream(TEXTS[0], edits=edits, max_new_tokens=6) for edits in ([edit], [])]
    for both in zip(*streams, strict=True):
        assert torch.allclose(model.hf(ids).logits, plain, atol=1e-12, rtol=0)
        for place, step in enumerate(both):
            found[place].append(step.ids)
    assert [torch.equal(torch.stack(got, dim=1), want) for got, want in zip(found, expected, strict=True)] == [True] * 2


def test_leaving_a_stream_takes_its_hooks_off():
    model = random_model("gpt2")
    for step in model.stream(TEXTS, edits=[Scale("resid_post.*", 0.5)], max_new_tokens=9):
        if step.index == 1:
            break
    del step
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


# -- positions after padding -------------------------------------------------------------------------------------------


def test_masks_and_per_position_values_follow_the_prompts_when_they_are_padded_anew():
    model = random_model("llama")
    noise = torch.randn(32, generator=torch.Generator().manual_seed(0))
    right, left = (model.tokens(TEXTS, padding_side=side) for side in ("right", "left"))
    plain = model.generate(left, max_new_tokens=5, stop_at_end=False).ids
    own = model.run(right, capture=["resid_pre.1"])["resid_pre.1"]
    assert torch.equal(
        model.generate(right, edits=[Set("resid_pre.1", own)], max_new_tokens=5, stop_at_end=False).ids, plain
    )
    mask = torch.zeros_like(right.mask).scatter(1, right.columns([1, -1]), True)
    by_mask = Add("resid_post.0", noise, scale=4.0, positions=mask)
    by_number = Add("resid_post.0", noise, scale=4.0, positions=[1, -1])
    ours, theirs = (
        model.generate(right, edits=[edit], max_new_tokens=5, stop_at_end=False).ids for edit in (by_mask, by_number)
    )
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)


def test_chunks_appended_at_once_equal_one_by_one(model: Model):
    """Also where a window is shorter than the chunk."""
    tokens = model.tokens(TEXTS, padding_side="left")
    new = torch.randint(2, 250, (3, 9), generator=torch.Generator().manual_seed(0))
    runs = [CachedRun(model, tokens, [Scale("resid_post.0", 1.5), Scale("v.1", 0.5, positions="generated")])] * 2
    with runs[0] as run:
        run.start()
        together = run.rows(torch.arange(3))
        singly = torch.cat([run.extend(new[:, i : i + 1]) for i in range(9)], dim=1)
    with together:
        at_once = together.extend(new)
    assert torch.allclose(at_once, singly, atol=2e-4, rtol=1e-5)  # float32, weights of size one


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": "x" * 30}, "31 prompt tokens . 40 new ones exceed the context of 64"),
        ({"temperature": -1.0}, "temperature -1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p 0"),
        ({"min_p": 2.0}, "min_p 2"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"stop": ["a", ""]}, "empty stop string"),
        ({"seeds": [1, 2]}, "2 seeds; expected one for each of 1 prompts x 1 samples"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
    ],
)
def test_refusals(options, words):
    model = random_model("gpt2")
    with pytest.raises(ConfigError, match=words):
        model.generate(options.pop("prompts", "x"), **options)
    if "temprature" not in options:
        return
    with pytest.raises(ConfigError, match=words):  # before the first step, not at it
        model.stream("x", **options)


def test_padding_that_a_kernel_cannot_take_is_refused():
    model = random_model("llama-gqa", torch.float64, "eager")
    with pytest.raises(ModelError, match="logits after prompt . are NaN.*'sdpa' or in float32"):
        model.generate(TEXTS, max_new_tokens=2)
    model.generate(["abc", "abd"], max_new_tokens=2)


def test_edits_of_one_row_where_one_tensor_serves_all_rows():
    """GPT-2 adds one row of position embeddings to all rows of a batch without padding."""
    model = random_model("gpt2", torch.float64)
    edits = [[], [Scale("pos_embed", 3.0, positions="prompt")], [Add("pos_embed", torch.ones(32).double())]]
    batch = model.generate(["abc"] * 3, edits=edits, max_new_tokens=4, logprobs=True, stop_at_end=False)
    for row, own in enumerate(edits):
        alone = model.generate("abc", edits=own, max_new_tokens=4, logprobs=True, stop_at_end=False)
        assert torch.allclose(batch.logprobs[row], alone.logprobs[0], atol=1e-9, rtol=0)
    assert not torch.allclose(batch.logprobs[0], batch.logprobs[1], atol=1e-3)


def test_a_model_without_a_next_token_is_refused():
    model = random_model("gpt2")
    encoder = Model(model.hf, model.tokenizer, "an encoder")
    encoder.layout = dataclasses.replace(model.layout, causal=False)
    with pytest.raises(ModelError, match="reads in both directions"):
        encoder.generate("x")
