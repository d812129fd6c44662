"""`hooke demo`: the whole road in a few minutes, on the model and the text that every installation has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from hooke.cli.command import Command, Switch, check_k
from hooke.cli.evaluate import show_scores, write_scores
from hooke.cli.features import show_latents
from hooke.cli.serve import PORT, Where, check, page
from hooke.cli.session import Session
from hooke.cli.train import middle

if TYPE_CHECKING:
    from hooke.evals.dictionary import Evaluation

HEADLINE = ("l0", "fvu", "loss_recovered", "dead_share")


class Demo(Command):
    """From nothing to a feature page: open the built-in model, train a dictionary on its middle layer while it
    reads the Python standard library, score it beside its controls, index where every latent fires, print the five
    latents that look most interpretable, and serve the page. No network is used.
    """

    words: ClassVar[str] = "demo"
    not_config: ClassVar[tuple[str, ...]] = ("serve", "open", "port")

    n_tokens: int = Field(1_500_000, ge=10_000, description="Tokens to train on.")
    n_latents: int = Field(4096, ge=64, description="Width of the dictionary.")
    k: int = Field(32, ge=1, description="Active latents a token, on average.")
    score_tokens: int = Field(32_768, ge=1000, description="Held-out tokens to score on.")
    index_tokens: int = Field(400_000, ge=1000, description="Tokens to index for the feature pages.")
    seed: int = Field(0, description="Of everything that is random.")
    run: Path | None = Field(
        None, description="Run folder to make or, after a stop, to go on with; by default below runs/."
    )
    serve: Switch = Field(True, description="Stop before serving the page.")
    open: Switch = Field(False, description="Open the page in the default browser.")
    port: int = Field(PORT, ge=0, le=65535, description="Port of the page; 0 takes any free one.")

    @model_validator(mode="after")
    def _enough_latents(self) -> Demo:
        check_k(self.k, self.n_latents)
        return self

    def execute(self, session: Session) -> None:
        """Train, score, index, show, serve."""
        import hooke
        from hooke.dictionaries.activations import BatchTopK
        from hooke.dictionaries.recipe import train_dictionary
        from hooke.evals.dictionary import evaluate
        from hooke.features.build import build_index
        from hooke.features.index import LatentIndex

        where = Where(port=self.port, open=self.open)
        if self.serve:
            check(where)  # not after minutes of work
        model = hooke.load("hooke/stdlib")
        site, corpus = middle(model), hooke.corpora.stdlib()
        session.say(f"{model.name}: {model.n_layers} layers of width {model.d_model}")
        session.say(f"training {self.n_latents:,} latents at {site} on {self.n_tokens:,} tokens of {corpus.name}")
        with session.run_folder(self.run, resume=self.run is not None) as folder:
            session.sink.progress("train", 0, self.n_tokens, "tokens")
            dictionary = train_dictionary(
                model,
                reads=site,
                activation=BatchTopK(k=self.k),
                n_latents=self.n_latents,
                corpus=corpus,
                n_tokens=self.n_tokens,
                seed=self.seed,
                run=folder,
                sink=session.terminal,
            )
            evaluation = evaluate(
                dictionary,
                model,
                n_tokens=self.score_tokens,
                seed=self.seed,
                sink=session.sink,
            )
            write_scores(folder, evaluation)
            place = folder.path / "index"
            if place.exists():  # the run was stopped after this
                index = LatentIndex.open(place, model)
            else:
                index = build_index(model, dictionary, corpus, place, n_tokens=self.index_tokens, sink=session.sink)
            show_scores(session, evaluation)
            latents = show_latents(session, model, dictionary, index, 5)
            session.results |= headline(evaluation) | {"latents": latents}
        cost = session.cost()
        session.say(f"{cost['seconds']:.0f} s, at most {cost['peak_memory_gb']:.2f} GB of memory")
        if not self.serve:
            session.next = f"hooke serve {folder.path} --open"
            return
        scores = folder.path / "scores.json"
        session.after = page(session, model, folder.path / "dictionary", place, scores, run=folder.path, where=where)


def headline(evaluation: Evaluation) -> dict[str, float | int | str]:
    """The numbers that README quotes: the dictionary's, and the controls' where the claim is a comparison."""
    values = evaluation.values()
    own = {name: values[name] for name in HEADLINE}
    beside = {f"{control}.fvu": values[f"{control}.fvu"] for control in evaluation.controls}
    recovered = {f"{control}.loss_recovered": values[f"{control}.loss_recovered"] for control in evaluation.controls}
    return own | beside | recovered | {"site": evaluation.reads, "n_scored": evaluation.n_tokens}
