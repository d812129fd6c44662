"""`hooke eval`: the scores of a dictionary, each beside its controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro
from pydantic import Field

from hooke.cli.command import Command
from hooke.cli.session import Session
from hooke.cli.sources import CORPUS_HELP, find_dictionary, model_of, open_corpus

if TYPE_CHECKING:
    from hooke.evals.dictionary import Evaluation
    from hooke.runs.folder import RunFolder

SHOWN = ("l0", "dead_share", "fvu", "cosine", "gamma", "loss_recovered", "ce", "ce_increase", "kl", "kl_score")


class Evaluate(Command):
    """Score a dictionary inside its model on text that it was not trained on: reconstruction, and the model's loss
    with the reconstruction in place of the activation. Beside it, on the same tokens: a random dictionary of the same
    shape, as many principal components as the dictionary has active latents, and the mean.
    """

    words: ClassVar[str] = "eval"

    dictionary: tyro.conf.Positional[Path] = Field(description="Dictionary, or run folder that holds one.")
    model: str | None = Field(None, description="By default the model that the dictionary was trained on.")
    corpus: str = Field("stdlib:heldout", description=CORPUS_HELP)
    n_tokens: int = Field(32_768, ge=1, description="Tokens to score.")
    n_fit: int = Field(8192, ge=2, description="Tokens before those, on which the controls are fitted.")
    context: int = Field(128, ge=2, description="Tokens a row of text, the opening token included.")
    seed: int = Field(0, description="Of the random control.")
    run: Path | None = Field(None, description="Run folder to make; by default below runs/.")

    def execute(self, session: Session) -> None:
        """Evaluate, print the table, leave `scores.json`."""
        import hooke
        from hooke.dictionaries.dictionary import Dictionary
        from hooke.evals.dictionary import evaluate

        source = find_dictionary(self.dictionary)
        dictionary, model = Dictionary.load(source), hooke.load(self.model or model_of(source))
        with session.run_folder(self.run) as folder:
            evaluation = evaluate(
                dictionary,
                model,
                corpus=open_corpus(self.corpus),
                n_tokens=self.n_tokens,
                n_fit=self.n_fit,
                context=self.context,
                seed=self.seed,
                sink=session.sink,
            )
            write_scores(folder, evaluation)
            session.results |= evaluation.values()
        show_scores(session, evaluation)
        session.next = f"hooke features {self.dictionary}"


def write_scores(folder: RunFolder, evaluation: Evaluation) -> None:
    """Leave the scores, with intervals and controls, as `scores.json` in a run folder."""
    from hooke.base.files import write_json

    plain = {name: getattr(evaluation, name) for name in ("reads", "writes", "corpus", "n_tokens", "n_fit", "seed")}
    with folder.artefact("scores.json", "evaluation") as path:
        scores: dict[str, Any] = {"scores": evaluation.scores, "controls": dict(evaluation.controls)}
        write_json(path, plain | {"notes": evaluation.notes} | scores)


def show_scores(session: Session, evaluation: Evaluation) -> None:
    """Print the main scores beside their controls."""
    from hooke.cli.render import scores_table

    columns = ["dictionary", *evaluation.controls]
    coders = {"dictionary": evaluation.scores, **evaluation.controls}
    rows = {
        name: {column: scores[name].value for column, scores in coders.items() if name in scores}
        for name in SHOWN
        if name in evaluation.scores
    }
    session.say(f"\n{evaluation.reads} on {evaluation.n_tokens:,} tokens of {evaluation.corpus}")
    session.show(scores_table(rows, columns))
    session.say()
