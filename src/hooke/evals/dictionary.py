"""Score a dictionary inside its model, beside its controls, on text that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError, ShapeError
from hooke.base.progress import SILENT, Sink
from hooke.base.statistics import Estimate
from hooke.data import corpora
from hooke.data.corpora import Corpus
from hooke.data.harvest import harvest
from hooke.data.packing import Packed, pack_mixed
from hooke.dictionaries.dictionary import Dictionary
from hooke.dictionaries.latents import Latents
from hooke.dictionaries.metrics import ReconstructionMetrics
from hooke.evals.controls import MeanBaseline, PrincipalComponents, random_dictionary
from hooke.evals.spliced import SplicedLosses, document_groups, kept_rows
from hooke.model.model import Model
from hooke.model.sites import Site

Scores = dict[str, Estimate]
LANGUAGE_SCORES = ("ce", "ce_increase", "loss_recovered", "loss_recovered_mean", "kl", "kl_score")


@runtime_checkable
class Coder(Protocol):
    """A dictionary, or a control in its place."""

    def encode(self, x: Tensor) -> Latents:
        """Codes of rows."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Rows rebuilt."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a dictionary and of its controls on the same tokens.

    Args:
        scores: by name, each with interval and n. `loss_recovered` is against zero ablation, `loss_recovered_mean`
            against mean ablation; `kl` is KL(clean || spliced) in nats; `ce_*` are next-token losses in nats.
        controls: the same scores of "random", "pca" and "mean" (see `evals.controls`).
        density: for each latent, the share of tokens on which it is active.
        reads, writes: the sites.
        corpus: name of the text.
        n_tokens: kept tokens scored.
        n_fit: kept tokens, before those, on which the controls were fitted.
        seed: of the random control.
        notes: what a reader must know to compare the numbers.
    """

    scores: Scores
    controls: Mapping[str, Scores]
    density: Float[Tensor, " latent"]
    reads: str
    writes: str
    corpus: str
    n_tokens: int
    n_fit: int
    seed: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Estimate:
        """One score of the dictionary."""
        return self.scores[name]

    def values(self) -> dict[str, float]:
        """The scores as plain numbers; those of a control under `control.score`."""
        own = {name: estimate.value for name, estimate in self.scores.items()}
        return own | {
            f"{control}.{name}": estimate.value
            for control, scores in self.controls.items()
            for name, estimate in scores.items()
        }

    def rows(self) -> list[dict[str, Estimate | str | None]]:
        """A table: one row a score, with the dictionary and each control side by side."""
        return [
            {"score": name, "dictionary": estimate} | {control: s.get(name) for control, s in self.controls.items()}
            for name, estimate in self.scores.items()
        ]

    def __str__(self) -> str:
        names = ["dictionary", *self.controls]
        head = f"{'':20s}" + "".join(f"{name:>12s}" for name in names)
        lines = [f"{self.reads} -> {self.writes} on {self.corpus}: {self.n_tokens} tokens", head]
        for row in self.rows():
            cells = [row[name] for name in names]
            shown = [f"{cell.value:12.4f}" if isinstance(cell, Estimate) else f"{'-':>12s}" for cell in cells]
            lines.append(f"{row['score']:20s}" + "".join(shown))
        return "\n".join(lines)


@torch.no_grad()
def evaluate(
    dictionary: Dictionary,
    model: Model,
    *,
    corpus: Corpus | None = None,
    n_tokens: int = 32_768,
    n_fit: int = 8192,
    context: int = 128,
    batch: int = 16,
    seed: int = 0,
    sink: Sink = SILENT,
) -> Evaluation:
    """Score a dictionary and its controls on text.

    The rows of the text are mixed (see `pack_mixed`), so that both parts come from many documents. The first `n_fit`
    kept tokens fit the controls: the mean; as many principal components as the dictionary has active latents there; a
    random dictionary of the same shape and k. The next `n_tokens` score all of them alike: reconstruction, and the
    model's next-token loss with each in place of the activation.

    Args:
        dictionary: with `reads` (and `writes`) set to sites of the model.
        model: the model.
        corpus: the text; the held-out part of the standard library when `None`.
        n_tokens, n_fit: kept tokens (BOS, EOS and padding do not count); the last batch may go beyond.
        context, batch: tokens in a row of text, rows in a forward pass.
        seed: of the order of the rows and of the random control.
        sink: hears progress.

    Raises:
        ConfigError: the dictionary does not know its site, or the text is too short.
        ShapeError: the site has another width.
    """
    reads, writes = _sites(dictionary, model)
    corpus = corpora.stdlib("heldout") if corpus is None else corpus
    batches = pack_mixed(corpus, model, context=context, batch=batch, seed=seed)
    x_fit, y_fit = _fit_rows(model, batches, reads, writes, n_fit)
    l0 = float(dictionary.encode(x_fit).l0().double().mean())
    coders: dict[str, Coder] = {
        "dictionary": dictionary,
        "random": random_dictionary(dictionary, x_fit, y_fit, seed=seed),
        "pca": PrincipalComponents.fit(x_fit, y_fit, min(max(1, round(l0)), dictionary.d_in)),
        "mean": MeanBaseline.fit(y_fit),
    }
    metrics = {name: ReconstructionMetrics() for name in coders}
    spliced, done = SplicedLosses(), 0
    for packed in batches:
        run = model.run(packed.tokens, capture=[reads, writes])
        x, y = kept_rows(run[reads], packed.tokens), kept_rows(run[writes], packed.tokens)
        groups, replacements = document_groups(packed), {"zero": torch.zeros_like(y)}
        for name, coder in coders.items():
            replacements[name] = coder.reconstruct(x)
            metrics[name].update(y, replacements[name], coder.encode(x), groups=groups)
        spliced.update(model, packed, run.logits, writes, replacements, run[writes])
        done += len(x)
        sink.progress("evaluate", min(done, n_tokens), n_tokens, "tokens")
        if done >= n_tokens:
            break
    if done < n_tokens:
        raise ConfigError(
            f"corpus {corpus.name!r} has {done} tokens after the first {len(x_fit)}; {n_tokens} were asked for"
        )
    scores = {name: metrics[name].scores() | _language_scores(spliced, name) for name in coders}
    shared = {"ce_clean": spliced.loss("clean"), "ce_zero": spliced.loss("zero"), "ce_mean": spliced.loss("mean")}
    return Evaluation(
        scores=scores.pop("dictionary") | shared,
        controls=scores,
        density=metrics["dictionary"].density(),
        reads=str(reads),
        writes=str(writes),
        corpus=corpus.name,
        n_tokens=done,
        n_fit=len(x_fit),
        seed=seed,
        notes=(
            "BOS, EOS and padding are neither replaced nor scored",
            "the random control has the gain that suits it best; PCA has as many components as the dictionary's L0",
        ),
    )


@torch.no_grad()
def score_rows(coder: Coder, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"] | None = None) -> Scores:
    """Reconstruction scores of a dictionary (or a control) on rows of activations, without a model."""
    metrics = ReconstructionMetrics()
    latents = coder.encode(x)
    metrics.update(x if y is None else y, coder.reconstruct(x), latents)
    return metrics.scores()


def _language_scores(spliced: SplicedLosses, name: str) -> Scores:
    found = (
        spliced.loss(name),
        spliced.difference(name, "clean"),
        spliced.recovered(name, "zero"),
        spliced.recovered(name, "mean"),
        spliced.kl(name),
        spliced.kl_score(name, "zero"),
    )
    return dict(zip(LANGUAGE_SCORES, found, strict=True))


def _sites(dictionary: Dictionary, model: Model) -> tuple[Site, Site]:
    if dictionary.reads is None or dictionary.writes is None:
        raise ConfigError("the dictionary does not know which site it reads; make it with reads='resid_post.2', say")
    reads, writes = model.site(str(dictionary.reads)), model.site(str(dictionary.writes))
    for site, width in ((reads, dictionary.d_in), (writes, dictionary.d_out)):
        found = harvest(model, corpora.texts([]), site).widths[site]  # heads side by side, as in training
        if found != width:
            raise ShapeError(f"the dictionary has width {width} for {site}, but there the model has {found}")
    return reads, writes


def _fit_rows(model: Model, batches: Iterator[Packed], reads: Site, writes: Site, n_fit: int) -> tuple[Tensor, Tensor]:
    last = max((reads, writes), key=lambda site: site.order)
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for packed in batches:
        run = model.run(packed.tokens, capture=[reads, writes], until=last)
        xs.append(kept_rows(run[reads], packed.tokens))
        ys.append(kept_rows(run[writes], packed.tokens))
        if sum(map(len, xs)) >= n_fit:
            break
    return torch.cat(xs), torch.cat(ys)
