"""`hooke train`: a dictionary on the activations of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from hooke.cli.command import Command, OptionError, check_k
from hooke.cli.session import Session, default_run
from hooke.cli.sources import CORPUS_HELP, open_corpus

if TYPE_CHECKING:
    from hooke.model.model import Model


class Train(Command):
    """Train a dictionary that reads one site of a model. Activations are harvested as they are needed, shuffled in a
    pool, and never written to disk. Give --run to be able to go on after a stop: the result is the same, bit for bit.
    """

    words: ClassVar[str] = "train"

    model: str = Field("hooke/stdlib", description="Built-in name, Hugging Face name, or local folder.")
    reads: str | None = Field(
        None, description="Site to read, such as resid_post.2; by default the middle of the model."
    )
    writes: str | None = Field(None, description="Site to rebuild, for a transcoder; by default the site that is read.")
    activation: Literal["batchtopk", "topk"] = Field("batchtopk", description="How active latents are chosen.")
    k: float = Field(32, gt=0, allow_inf_nan=False, description="Active latents a token (on average, for batchtopk).")
    n_latents: int = Field(4096, ge=1, description="Width of the dictionary.")
    corpus: str = Field("stdlib", description=CORPUS_HELP)
    n_tokens: int = Field(2_000_000, ge=1, description="Tokens to train on; a shorter text is gone through again.")
    context: int = Field(128, ge=2, description="Tokens a row of text, the opening token included.")
    batch_size: int = Field(2048, ge=1, le=65_536, description="Tokens a training step; the pool holds 65,536.")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Of Adam, at its height.")
    seed: int = Field(0, description="Of the first directions and of the order of the data.")
    run: Path | None = Field(None, description="Run folder to make or to go on with; by default below runs/.")

    @model_validator(mode="after")
    def _possible(self) -> Train:
        check_k(self.k, self.n_latents)
        if self.activation == "topk" and self.k != int(self.k):
            raise OptionError(f"--k: topk keeps a whole number of latents, got {self.k}")
        return self

    def execute(self, session: Session) -> None:
        """Train, save, and report the last numbers of the training."""
        import hooke
        from hooke.dictionaries.activations import ACTIVATIONS
        from hooke.dictionaries.recipe import train_dictionary
        from hooke.dictionaries.train import TrainConfig
        from hooke.runs.folder import RunFolder

        model = hooke.load(self.model)
        run = self.run or default_run(self.words)
        finished = (run / "run.json").is_file() and RunFolder.open(run).info.status == "finished"
        session.sink.progress("train", 0, self.n_tokens, "tokens")
        train_dictionary(
            model,
            reads=self.reads or middle(model),
            writes=self.writes,
            activation=ACTIVATIONS[self.activation](k=int(self.k) if self.k == int(self.k) else self.k),
            n_latents=self.n_latents,
            corpus=open_corpus(self.corpus),
            n_tokens=self.n_tokens,
            context=self.context,
            batch_size=self.batch_size,
            config=TrainConfig(self.n_tokens, learning_rate=self.learning_rate),
            seed=self.seed,
            run=run,
            sink=session.sink,
        )
        if finished:
            session.say(f"{run} was finished already: nothing was trained; to train again, give another --run")
            session.results["run"] = str(run)
        else:
            session.made = run
        session.results |= (RunFolder.open(run).info.results or {}) | session.cost()
        session.next = f"hooke eval {run}"


def middle(model: Model) -> str:
    """The residual stream after the block in the middle."""
    return f"resid_post.{max(0, model.n_layers // 2 - 1)}"
