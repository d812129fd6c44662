"""`hooke features`: index where every latent fires, and show some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import tyro
from pydantic import Field

from hooke.cli.command import Command
from hooke.cli.session import Session
from hooke.cli.sources import CORPUS_HELP, find_dictionary, model_of, open_corpus

if TYPE_CHECKING:
    from hooke.dictionaries.dictionary import Dictionary
    from hooke.features.index import LatentIndex
    from hooke.model.model import Model


class Features(Command):
    """Run text through model and dictionary, and index where every latent fires: examples, histograms, search. Prints
    the latents that look most interpretable; the page shows them all.
    """

    words: ClassVar[str] = "features"

    dictionary: tyro.conf.Positional[Path] = Field(description="Dictionary, or run folder that holds one.")
    model: str | None = Field(None, description="By default the model that the dictionary was trained on.")
    corpus: str = Field("stdlib", description=CORPUS_HELP)
    n_tokens: int = Field(300_000, ge=1, description="Tokens to index.")
    context: int = Field(128, ge=2, description="Tokens a row, the opening token included.")
    memory_mb: int = Field(128, ge=1, description="Budget of the sort's buffers.")
    show: int = Field(5, ge=0, description="Latents to print.")
    run: Path | None = Field(None, description="Run folder to make; by default below runs/.")

    def execute(self, session: Session) -> None:
        """Build the index and print the most interpretable-looking latents."""
        import hooke
        from hooke.dictionaries.dictionary import Dictionary
        from hooke.features.build import build_index

        source = find_dictionary(self.dictionary)
        dictionary, model = Dictionary.load(source), hooke.load(self.model or model_of(source))
        with session.run_folder(self.run) as folder:
            index = build_index(
                model,
                dictionary,
                open_corpus(self.corpus),
                folder.path / "index",
                n_tokens=self.n_tokens,
                context=self.context,
                memory_mb=self.memory_mb,
                sink=session.sink,
            )
            session.results |= {
                "n_tokens": index.n_tokens,
                "n_latents": index.n_latents,
                "never_fired": int((index.n_firing == 0).sum()),
                "latents": show_latents(session, model, dictionary, index, self.show),
            }
        session.next = f"hooke serve {self.dictionary} --index {folder.path}"


def show_latents(
    session: Session, model: Model, dictionary: Dictionary, index: LatentIndex, n: int, n_examples: int = 4
) -> list[int]:
    """Print the `n` latents that look most interpretable, with examples; gives their numbers."""
    from hooke.cli.render import latent_card
    from hooke.features.interest import interpretable
    from hooke.features.logits import logit_weights

    chosen = [found.latent for found in interpretable(index, n)]
    for latent in chosen:
        weights = logit_weights(model, dictionary, latent, 5)
        card = latent_card(
            latent,
            [index.example(latent, int(at), before=12, after=5) for at in index.top(latent, n_examples).at],
            density=float(index.density[latent]),
            raised=index.strings(weights.raised),
            lowered=index.strings(weights.lowered),
            colour=session.console.is_terminal,
        )
        session.show(card)
    return chosen
