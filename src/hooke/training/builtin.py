"""The recipe of the built-in model `hooke/stdlib`: a small Llama-shaped language model of Python source.

One command, `hooke train-builtin`, trains the tokenizer and the model on the running interpreter's standard library.
Every batch is a pure function of (seed, step), so a run that was killed goes on from its last checkpoint as if
nothing had happened.

Optimiser: Muon (orthogonalised momentum; torch.optim.Muon) for the matrices inside the blocks, AdamW for the
embedding and the norms; linear warm-up, constant rate, linear decay to zero over the last part of the run. Matrix
products run in bfloat16, weights are float32.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hooke.base.errors import ConfigError
from hooke.base.files import atomic_path
from hooke.data import corpora
from hooke.data.corpora import Corpus

BOS, PAD = "<|endoftext|>", "<|pad|>"
BOS_ID = 0


class BuiltinRecipe(BaseModel):
    """Everything that decides the weights. `steps` x `rows` x `context` tokens are seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab: int = 4096
    d_model: int = 256
    d_mlp: int = 640
    n_layers: int = 6
    n_heads: int = 4
    context: int = 512
    rows: int = 16
    steps: int = 2000
    warmup_steps: int = 100
    decay_share: float = 0.25
    muon_lr: float = 0.02
    adam_lr: float = 4e-3
    weight_decay: float = 0.05
    library_copies: int = 2  # the library's own modules are seen this often for each pass over its tests
    repeat_share: float = (
        0.03  # rows of random tokens repeated with a random period, so that induction is exercised off text
    )
    seed: int = 0

    @property
    def decay_start(self) -> int:
        """First step of the final decay of the learning rate."""
        return round(self.steps * (1 - self.decay_share))


def train_tokenizer(vocab: int, library: Corpus) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the library; id 0 is the document mark (BOS and EOS), id 1 the padding."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[BOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator((document.text for document in library), trainer)
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=BOS, pad_token=PAD, model_max_length=10**9
    )


def new_model(recipe: BuiltinRecipe) -> LlamaForCausalLM:
    """The untrained model, seeded."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab,
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_mlp,
            num_hidden_layers=recipe.n_layers,
            num_attention_heads=recipe.n_heads,
            num_key_value_heads=recipe.n_heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=BOS_ID,
            eos_token_id=BOS_ID,
            pad_token_id=1,
        )
    )


class Batches:
    """Rows of BOS + `context` tokens; the batch of a step depends on the seed and the step alone.

    One pass goes over the training modules `library_copies` times and over the training tests once, in an order and
    with a cut drawn for that pass. A share of the rows is replaced by BOS + random tokens repeated with a random
    period.
    """

    def __init__(
        self, recipe: BuiltinRecipe, tokenizer: PreTrainedTokenizerFast, library: Corpus, everything: Corpus
    ) -> None:
        self.recipe = recipe
        modules = [document.text for document in library]
        tests = sorted({document.text for document in everything} - set(modules))
        core = tokenizer.backend_tokenizer

        def encode(texts: list[str]) -> list[np.ndarray]:
            rows = core.encode_batch(texts, add_special_tokens=False)
            return [np.array([BOS_ID, *row.ids], dtype=np.int32) for row in rows]

        self.documents = encode(modules) * recipe.library_copies + encode(tests)
        self.n_tokens = sum(map(len, self.documents))
        self.steps_per_pass = self.n_tokens // recipe.context // recipe.rows - 1  # a pass starts at a random cut
        if self.steps_per_pass < 1:
            raise ConfigError(
                f"{self.n_tokens} tokens of text are too few for one batch of {recipe.rows} x {recipe.context}; "
                "lower rows or context, or give more text"
            )
        self._pass: tuple[int, np.ndarray, np.ndarray] | None = None

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `[rows, context + 1]` and, for the loss, labels of the same shape (-100 where nothing is to be
        learnt).
        """
        number, place = divmod(step, self.steps_per_pass)
        stream, order = self._open_pass(number)
        rows, length = self.recipe.rows, self.recipe.context
        starts = order[place * rows : (place + 1) * rows]
        tokens = np.zeros((rows, length + 1), dtype=np.int64)
        tokens[:, 1:] = np.stack([stream[s : s + length] for s in starts])
        labels = tokens.copy()
        draw = np.random.default_rng((self.recipe.seed, 1, step))
        for row in np.flatnonzero(draw.random(rows) < self.recipe.repeat_share):
            period = int(draw.integers(8, length // 2))
            tokens[row, 1:] = np.resize(draw.permutation(np.arange(2, self.recipe.vocab))[:period], length)
            labels[row] = tokens[row]
            labels[row, : period + 2] = -100  # the first copy cannot be predicted
        return torch.from_numpy(tokens), torch.from_numpy(labels)

    def _open_pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if self._pass is None or self._pass[0] != number:
            draw = np.random.default_rng((self.recipe.seed, 0, number))
            stream = np.concatenate([self.documents[i] for i in draw.permutation(len(self.documents))])
            length = self.recipe.context
            cut = int(draw.integers(0, length))
            starts = np.arange(cut, len(stream) - length, length)
            self._pass = (number, stream, draw.permutation(starts))
        return self._pass[1], self._pass[2]


def learning_rate(recipe: BuiltinRecipe, step: int) -> float:
    """Factor on both learning rates at a step: linear warm-up, constant, linear decay to zero."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    left = (recipe.steps - step) / max(1, recipe.steps - recipe.decay_start)
    return warm * min(1.0, left)


def _optimisers(model: LlamaForCausalLM, recipe: BuiltinRecipe) -> list[torch.optim.Optimizer]:
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = set(map(id, inner))
    outer = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(inner, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, momentum=0.95),
        torch.optim.AdamW(outer, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def train(
    folder: Path,
    recipe: BuiltinRecipe,
    *,
    library: Corpus | None = None,
    everything: Corpus | None = None,
    device: str = "cpu",
    compile: bool = True,
    checkpoint_every: int = 100,
) -> Iterator[dict[str, float]]:
    """Train in `folder`, or go on from its last checkpoint; yields the metrics of every step.

    It ends with the tokenizer, the float32 checkpoint, and `model/` in the Hugging Face layout (float16 weights).

    Args:
        library: text that the tokenizer is made from and that is seen `library_copies` times a pass; by default the
            training modules of the standard library.
        everything: `library` and what else is seen, once a pass; by default the library's tests besides.
        compile: fuse the step with torch.compile; needs a C++ compiler on a CPU.

    Raises:
        ConfigError: where there is too little text for one batch.
        FloatingPointError: where the loss is no number any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = corpora.stdlib("train") if library is None else library
    everything = corpora.stdlib("train", tests=True) if everything is None else everything
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(recipe.vocab, library).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    batches = Batches(recipe, tokenizer, library, everything)
    model = new_model(recipe).to(device)
    optimisers = _optimisers(model, recipe)
    rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    first = _restore(folder / "checkpoint.pt", model, optimisers)

    def loss_of(tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
            logits = model.lm_head(hidden)
        return F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    loss_fn = torch.compile(loss_of) if compile else loss_of
    for step in range(first, recipe.steps):
        began = time.perf_counter()
        for optimiser, full in zip(optimisers, rates, strict=True):
            for group, rate in zip(optimiser.param_groups, full, strict=True):
                group["lr"] = rate * learning_rate(recipe, step)
        tokens, labels = (tensor.to(device) for tensor in batches[step])
        loss = loss_fn(tokens, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower muon_lr or adam_lr")
        if (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps:
            _save(folder / "checkpoint.pt", model, optimisers, step + 1)
        yield {"step": step, "loss": loss.item(), "seconds": time.perf_counter() - began}
    export(model, tokenizer, recipe, folder / "model")


def _save(path: Path, model: LlamaForCausalLM, optimisers: list[torch.optim.Optimizer], step: int) -> None:
    with atomic_path(path) as temporary:
        states = [optimiser.state_dict() for optimiser in optimisers]
        torch.save({"model": model.state_dict(), "optimisers": states, "step": step}, temporary)


def _restore(path: Path, model: LlamaForCausalLM, optimisers: list[torch.optim.Optimizer]) -> int:
    """Load the last checkpoint where there is one; returns the step to go on with."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return state["step"]


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: BuiltinRecipe, folder: Path) -> None:
    """Write the model in the Hugging Face layout, weights in float16, the tied embedding once, the recipe beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {k: v.to(torch.float16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "recipe.json").write_text(json.dumps(recipe.model_dump(), indent=2) + "\n")
