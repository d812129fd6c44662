"""The model: a Hugging Face model in place, with sites, capture, edits, runs and generation."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hooke.base.errors import DataError, ModelError, SiteError
from hooke.model import gradients as differentiation
from hooke.model.capture import StopRun, applied, check_captured
from hooke.model.edits import Edit, Positions
from hooke.model.families import layout_for
from hooke.model.generation import continuations as scoring
from hooke.model.generation import generate as generation
from hooke.model.media import plane_positions
from hooke.model.memory import capture_bytes, refuse_if_too_large
from hooke.model.plan import Edits, Plan, available, columns_of, make_plan, resolve
from hooke.model.run import Run
from hooke.model.sites import MAP_SITES, Site
from hooke.model.sweep import sweep as sweeping
from hooke.model.text import TokenText
from hooke.model.tokens import Tokens
from hooke.model.weights.views import Weights

# An encoding is what a tokenizer or processor of transformers returns, as tensors.
Inputs = str | Sequence[str] | Tokens | Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class SiteInfo:
    """A site with the shape of its tensor, in words and in numbers (None where it depends on the input)."""

    site: Site
    words: str
    shape: tuple[int | None, ...]


_WORDS = {
    **dict.fromkeys(("q", "k", "v", "q_rot", "k_rot", "z"), "head d_head"),
    **dict.fromkeys(("mlp_pre", "mlp_gate", "mlp_pre_linear", "mlp_post"), "d_mlp"),
    **dict.fromkeys(("attn_norm_scale", "attn_post_norm_scale", "mlp_norm_scale", "mlp_post_norm_scale"), "1"),
    "final_norm_scale": "1",
    "result": "head d_model",
    "router_logits": "expert",
    "expert_out": "choice d_model",
    "logits": "vocab",
}


class Model:
    """A language model that can be looked into. Made by `hooke.load`.

    The Hugging Face module `hf` stays as it is: no weight is copied, folded or replaced, and a run without edits
    gives its logits bit for bit.
    """

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.layout = layout_for(hf)
        self.notes: tuple[str, ...] = ()  # what is not as it was asked for, in words
        head = hf.get_output_embeddings() if self.layout.has("logits", None) else None
        self.d_vocab: int = (head or hf.get_input_embeddings()).weight.shape[0]

    # -- facts ---------------------------------------------------------------------------------------------------------

    family = property(lambda self: self.layout.family, doc="Name of the architecture's family.")
    n_layers = property(lambda self: self.layout.n_layers, doc="Number of blocks.")
    d_model = property(lambda self: self.layout.d_model, doc="Width of the residual stream.")
    n_heads = property(lambda self: self.layout.n_heads, doc="Query heads per layer.")
    n_kv_heads = property(lambda self: self.layout.n_kv_heads, doc="Key-value heads per layer.")
    d_head = property(lambda self: self.layout.d_head, doc="Width of a head.")
    d_mlp = property(lambda self: self.layout.d_mlp, doc="Neurons per layer.")
    dtype = property(lambda self: self.hf.dtype, doc="Precision of the weights.")

    @property
    def device(self) -> torch.device:
        """Where tokens go in; a model may be spread over devices from there."""
        embedding = self.hf.get_input_embeddings()
        # Weights that accelerate keeps on disk are moved for each pass.
        hook = getattr(embedding, "_hf_hook", None) if embedding.weight.is_meta else None
        return embedding.weight.device if hook is None else torch.device(hook.execution_device)

    @functools.cached_property
    def identity(self) -> Mapping[str, str]:
        """What makes this model this model: stored with everything made from it, and compared before anything is
        re-used.

        `weights` is a SHA-256 over the name, dtype, shape and all bytes of every parameter and buffer.

        Raises:
            ModelError: where some of the weights are not in memory.
        """
        digest = hashlib.sha256()
        for name, weight in sorted(self.hf.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            for plain in _plain(weight.detach()):
                if plain.is_meta:
                    raise ModelError(f"weights of {self.name} are not in memory ({name}); load it without offloading")
                digest.update(plain.cpu().contiguous().flatten().view(torch.uint8).numpy())
        words = "\n".join(f"{k}\t{v}" for k, v in sorted(self.tokenizer.get_vocab().items()))
        return {
            "name": self.name,
            "architecture": type(self.hf).__name__,
            "weights": digest.hexdigest(),
            "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
        }

    @property
    def special_ids(self) -> list[int]:
        """Ids of special tokens: never part of training or statistics."""
        return sorted(set(self.tokenizer.all_special_ids))

    @property
    def unembed(self) -> Float[Tensor, "d_model vocab"]:
        """W_U, raw: the matrix after the final norm, nothing folded.

        Raises:
            ModelError: for a model without a head over the vocabulary.
        """
        if not self.layout.has("logits", None):
            raise ModelError(f"{self.name} has no unembedding: {self.layout.why_absent('logits')}")
        weight = self.hf.get_output_embeddings().weight.detach()
        if weight.is_meta:
            raise ModelError(f"the unembedding of {self.name} is not in memory; load it without offloading")
        return weight.T

    @property
    def final_norm_gain(self) -> Float[Tensor, " d_model"]:
        """Gain of the final norm, as the model multiplies it (Gemma's 1 + weight).

        Raises:
            ModelError: for a model without one.
        """
        return self.weights.final_norm_gain

    @functools.cached_property
    def weights(self) -> Weights:
        """Weights under the names of the field, raw; `.folded()` rewrites them."""
        return Weights(self)

    @property
    def final_norm_centres(self) -> bool:
        """Whether the final norm subtracts the mean (LayerNorm) or not (RMSNorm)."""
        return isinstance(self._final_norm, torch.nn.LayerNorm)

    @property
    def _final_norm(self) -> torch.nn.Module:
        if not self.layout.has("final_norm", None):
            raise ModelError(f"{self.name} has no final norm: {self.layout.why_absent('final_norm')}")
        return self.hf.get_submodule(self.layout.outside["final_norm"].path)

    @functools.cached_property
    def forward_parameters(self) -> frozenset[str]:
        """Names of the arguments that the Hugging Face forward knows."""
        return frozenset(inspect.signature(self.hf.forward).parameters)

    # -- sites ---------------------------------------------------------------------------------------------------------

    def site(self, asked: Site | str) -> Site:
        """One site of this model, negative layers worked out.

        Raises:
            SiteError: for a name, layer or head that this model does not have, or a pattern of several sites.
        """
        found = resolve(self.layout, asked)
        if len(found) > 1:
            raise SiteError(f"{asked!r} is a pattern; one site was expected, for example {str(found[0])!r}")
        return found[0]

    def sites(self) -> list[SiteInfo]:
        """Every site with its shape, in order of execution."""
        return [self._info(site) for site in available(self.layout)]

    def width(self, asked: Site | str) -> int:
        """Size of a site's last dimension.

        Raises:
            SiteError: as `site`, and for attention maps, whose size depends on the input.
        """
        site = self.site(asked)
        width = self._info(site).shape[-1]
        if width is None:
            raise DataError(f"site {site} is a map over positions; it has no fixed width")
        return width

    def _info(self, site: Site) -> SiteInfo:
        if site.name in MAP_SITES:
            return SiteInfo(site, "batch head pos pos", (None, self.n_heads, None, None))
        feature = self.layout.feature_shape(site.name, self.d_vocab)
        return SiteInfo(site, f"batch pos {_WORDS.get(site.name, 'd_model')}", (None, None, *feature))

    # -- text ----------------------------------------------------------------------------------------------------------

    def tokens(
        self,
        text: str | Sequence[str],
        *,
        bos: bool = True,
        padding_side: Literal["left", "right"] = "right",
        max_length: int | None = None,
    ) -> Tokens:
        """Tokenise one text or several, padded on one side.

        Args:
            bos: put the tokenizer's BOS first, where it has one; in an encoder, the special tokens around a text.
            max_length: keep at most this many tokens of each text.

        Raises:
            DataError: for an empty batch, or a text without tokens where no BOS is added.
        """
        texts = [text] if isinstance(text, str) else list(text)
        for row, given in enumerate(texts):
            if not isinstance(given, str):
                raise DataError(f"text {row} is of type {type(given).__name__}; give rows of ids to `model.batch`")
        around = bos and not self.layout.causal and self.tokenizer.cls_token_id is not None
        first = [self.tokenizer.bos_token_id] if bos and not around and self.tokenizer.bos_token_id is not None else []
        rows = [first + self.tokenizer(t, add_special_tokens=around)["input_ids"] for t in texts]
        return self.batch([row[:max_length] for row in rows], padding_side=padding_side)

    def batch(self, rows: Sequence[Sequence[int]], *, padding_side: Literal["left", "right"] = "right") -> Tokens:
        """Rows of ids as `Tokens`, padded on one side, special tokens marked, on the model's device."""
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        built = Tokens.from_ids(rows, special_ids=self.special_ids, pad_id=pad, padding_side=padding_side)
        return self._checked(built)

    @functools.cached_property
    def text(self) -> TokenText:
        """How token ids read: for display and for whole texts."""
        return TokenText(self.tokenizer, self.hf.get_input_embeddings().weight.shape[0])

    def token_strings(self, ids: Int[Tensor, " pos"] | Sequence[int]) -> list[str]:
        """The text of each token in turn; joined, they give the whole text. See `TokenText.pieces`."""
        return self.text.pieces([int(i) for i in ids])

    def as_tokens(self, inputs: Inputs) -> Tokens:
        """Whatever `run` takes, as `Tokens` on the model's device."""
        if isinstance(inputs, Tokens):
            return self._checked(inputs)
        if isinstance(inputs, Tensor):
            return self._checked(Tokens.from_ids(inputs, special_ids=self.special_ids))
        if isinstance(inputs, Mapping):
            return self._checked(Tokens.from_encoding(inputs, special_ids=self.special_ids))
        return self.tokens(inputs)

    def _checked(self, tokens: Tokens) -> Tokens:
        low, high = int(tokens.ids.min()), int(tokens.ids.max())
        n_ids = self.hf.get_input_embeddings().weight.shape[0]  # toys may read more tokens than they predict
        if low < 0 or high >= n_ids:
            raise DataError(f"token id {low if low < 0 else high} is outside the vocabulary, 0 to {n_ids - 1}")
        if self.context is not None and int(tokens.lengths.max()) > self.context:
            raise DataError(f"a row has {int(tokens.lengths.max())} tokens; {self.name} takes at most {self.context}")
        if self.layout.image_token is not None and tokens.image is None:
            image = (tokens.ids == self.layout.image_token) & tokens.mask
            tokens = dataclasses.replace(tokens, image=image, keep=tokens.keep & ~image)
        return tokens.to(self.device)

    @property
    def context(self) -> int | None:
        """Most tokens in a row; None where the architecture sets no limit."""
        limit = getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else limit - self._first_position

    @property
    def _first_position(self) -> int:
        """Position id of a row's first token: RoBERTa and its like count from behind the id of padding."""
        embeddings = getattr(self.hf.base_model, "embeddings", None)
        return embeddings.padding_idx + 1 if hasattr(embeddings, "create_position_ids_from_input_ids") else 0

    # -- running -------------------------------------------------------------------------------------------------------

    def plan(
        self,
        tokens: Tokens,
        *,
        capture: Sequence[Site | str] | Site | str = (),
        edits: Edits = (),
        until: Site | str | None = None,
    ) -> Plan:
        """Check captures and edits against the model and the tokens; raises before anything runs."""
        return make_plan(self.layout, self.d_vocab, tokens, capture=capture, edits=edits, until=until)

    def capture_bytes(self, inputs: Inputs, capture: Sequence[Site | str] | Site | str, *, at: Positions = None) -> int:
        """Memory that a capture would hold, in bytes, without running anything."""
        tokens = self.as_tokens(inputs)
        kept = None if at is None else columns_of(tokens, at, "capture").shape[1]
        sites = self.plan(tokens, capture=capture).captures
        return capture_bytes(self.layout, self.d_vocab, sites, tokens.shape, self.dtype, kept)

    def run(
        self,
        inputs: Inputs,
        *,
        capture: Sequence[Site | str] | Site | str = (),
        edits: Edits = (),
        until: Site | str | None = None,
        at: Positions = None,
        offload: bool = False,
        memory: int | None = None,
        gradients: bool = False,
    ) -> Run:
        """Run the model once.

        Args:
            inputs: text or texts (BOS added), `Tokens`, ids `[batch, pos]`, or what a processor returns (images too).
            capture: sites or patterns to read.
            edits: changes, applied in order; or one list of changes for each row.
            until: stop after this site is computed; later layers cost nothing and `logits` is None.
            at: keep these positions only of what is captured, `[batch, position, ...]`: an int, ints, "last" or a name.
            offload: move what is captured to main memory at once.
            memory: most bytes that the capture may hold; None stands for what is free.
            gradients: record the graph, so that captured tensors and logits can be differentiated.

        Raises:
            SiteError, ShapeError, DataError, ConfigError: before the model runs, for anything that does not fit.
        """
        tokens = self.as_tokens(inputs)
        plan = self.plan(tokens, capture=capture, edits=edits, until=until)
        columns = None if at is None else columns_of(tokens, at, "capture")
        plan = dataclasses.replace(plan, at=columns, offload=offload)
        if plan.captures:
            kept = None if columns is None else columns.shape[1]
            needed = capture_bytes(self.layout, self.d_vocab, plan.captures, tokens.shape, self.dtype, kept)
            refuse_if_too_large(needed, memory, torch.device("cpu") if offload else self.device)
        logits = None
        grad = torch.set_grad_enabled(gradients)
        with grad, applied(self.hf, self.layout, plan, tokens) as progress, suppress(StopRun):
            logits = getattr(self.hf(**self.arguments(tokens), use_cache=False), "logits", None)
        check_captured(plan, progress)
        maps = sorted({s.layer for s in plan.sites if s.name in MAP_SITES})
        kernel = self.hf.config._attn_implementation
        layers = ", ".join(map(str, maps))
        notes = (f"layers {layers} ran attention step by step for their maps, not {kernel}",) if maps else ()
        names = [capture] if isinstance(capture, str) else [name for name in capture if isinstance(name, str)]
        spelt = {name: found[0] for name in names if len(found := resolve(self.layout, name)) == 1}
        return Run(tokens, logits, progress.acts, notes, spelt)

    def arguments(self, tokens: Tokens, *, cached: int = 0) -> dict[str, Tensor | int]:
        """Keyword arguments for the Hugging Face forward; the mask only where there is padding, and positions also
        where they are a site, so that every row has its own.

        Positions of images are for the model itself to work out: some lie in the plane.

        Args:
            cached: how many columns at the left are in the KV cache already.
        """
        given: dict[str, Tensor | int] = {"input_ids": tokens.ids[:, cached:]}
        if not cached:
            given |= tokens.media
        if tokens.is_padded:
            given["attention_mask"] = tokens.mask.long()
        if tokens.is_padded or self.layout.has("pos_embed", None):
            in_plane = any(name.startswith("pixel_values") for name in tokens.media)
            # Some architectures work them out from the mask.
            if "position_ids" in self.forward_parameters and not in_plane:
                given["position_ids"] = tokens.position_ids[:, cached:] + self._first_position
        plane = plane_positions(self.hf, tokens.ids, tokens.mask, tokens.media) if cached and tokens.media else None
        return given if plane is None else given | {"position_ids": plane[..., cached:]}

    @contextmanager
    def capture(self, *sites: Site | str) -> Iterator[dict[Site, Tensor]]:
        """Read sites of whatever this thread runs with the model while the block lasts; the last run counts.

        Example:
            with model.capture("resid_post.*") as acts:
                model.hf(input_ids)
            acts[Site("resid_post", 2)]
        """
        found = tuple(dict.fromkeys(site for asked in sites for site in resolve(self.layout, asked)))
        with applied(self.hf, self.layout, Plan(captures=found), None) as progress:
            yield progress.acts

    def sweep(
        self,
        inputs: Inputs,
        edit_sets: Sequence[Sequence[Edit] | Edit],
        metric: sweeping.MetricFunction,
        **options: object,
    ) -> sweeping.Sweep:
        """The metric under many edit sets, planned together. Options: see `hooke.model.sweep.sweep.sweep`."""
        return sweeping.sweep(self, inputs, edit_sets, metric, **options)

    def plan_sweep(
        self,
        inputs: Inputs,
        edit_sets: Sequence[Sequence[Edit] | Edit],
        metric: sweeping.MetricFunction,
        **options: object,
    ) -> sweeping.SweepPlan:
        """What a sweep would do and cost; nothing runs. Print it, or stream its results."""
        return sweeping.plan_sweep(self, inputs, edit_sets, metric, **options)

    def generate(self, prompts: Inputs, **options: object) -> generation.Generation:
        """Continue prompts under edits, with a KV cache. Options: see `hooke.model.generation.generate.generate`."""
        return generation.generate(self, prompts, **options)

    def stream(self, prompts: Inputs, **options: object) -> Iterator[generation.Step]:
        """Generate step by step. Options: see `hooke.model.generation.generate.stream`."""
        return generation.stream(self, prompts, **options)

    def score(self, prompts: Inputs, continuations: Sequence[scoring.Choices], *, edits: Edits = ()) -> scoring.Scores:
        """Log-probabilities of given continuations under edits. See `hooke.model.generation.continuations.score`."""
        return scoring.score(self, prompts, continuations, edits=edits)

    def gradients(
        self,
        inputs: Inputs,
        metric: differentiation.RunMetric,
        sites: Sequence[Site | str] | Site | str,
        **options: object,
    ) -> differentiation.Gradients:
        """Gradients of a metric at sites. Options: see `hooke.model.gradients.gradients`."""
        return differentiation.gradients(self, inputs, metric, sites, **options)

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.hf.parameters())
        precision = str(self.dtype).removeprefix("torch.")
        return (
            f"Model({self.name!r}: {self.family}, {self.n_layers} layers, d_model {self.d_model}, "
            f"{self.n_heads} heads, {n / 1e6:.1f} M parameters, {precision} on {self.device})"
        )


def _plain(weight: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a weight is made of; quantised ones have several."""
    if hasattr(weight, "__tensor_flatten__"):
        for name in sorted(weight.__tensor_flatten__()[0]):
            yield from _plain(getattr(weight, name))
    else:
        yield weight


def check_pair(hf: object, tokenizer: object) -> None:
    """Raise where a (model, tokenizer) pair is not what `load` can take."""
    if not isinstance(hf, PreTrainedModel):
        raise ModelError(f"expected a transformers model first, got {type(hf).__name__}")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(f"expected a transformers tokenizer second, got {type(tokenizer).__name__}")
