"""`hooke train-builtin`: train the shipped model from scratch on the running interpreter's standard library."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from hooke.cli.command import Command, Switch
from hooke.cli.session import Session


class TrainBuiltin(Command):
    """Train the tokenizer and the model `hooke/stdlib` with the shipped recipe; hours on two cores, minutes on an
    accelerator. A killed run goes on from its last checkpoint when the same folder is given again. The model lands in
    FOLDER/work/model with its card: what was measured on the held-out modules.
    """

    words: ClassVar[str] = "train-builtin"

    run: Path = Field(Path("runs/builtin"), description="Run folder; give it again to go on after a stop.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps; by default those of the recipe.")
    d_model: int | None = Field(None, ge=8, description="Width; by default that of the recipe.")
    n_layers: int | None = Field(None, ge=1, description="Blocks; by default those of the recipe.")
    vocab: int | None = Field(None, ge=258, description="Tokens of the byte-level BPE; by default those of the recipe.")
    rows: int | None = Field(None, ge=1, description="Rows a batch; by default those of the recipe.")
    seed: int = Field(0, description="Of weights and batches.")
    device: str = Field("cpu", description="Where to train, for example cuda.")
    compile: Switch = Field(True, description="Run without torch.compile: slower steps, no compiler needed.")

    def execute(self, session: Session) -> None:
        """Train, or go on."""
        import hooke
        from hooke.evals.card import measure, write_card
        from hooke.training.builtin import BuiltinRecipe, train

        asked = {name: getattr(self, name) for name in ("steps", "d_model", "n_layers", "vocab", "rows", "seed")}
        recipe = BuiltinRecipe(**{name: value for name, value in asked.items() if value is not None})
        with session.run_folder(self.run, resume=True) as folder:
            work, last = folder.path / "work", {}
            for last in train(work, recipe, device=self.device, compile=self.compile):
                session.sink.metrics({name: value for name, value in last.items() if name != "step"}, int(last["step"]))
                session.sink.progress("train", int(last["step"]) + 1, recipe.steps, "steps")
            measured = measure(hooke.load(work / "model"), sink=session.sink)
            write_card(work / "model", recipe.model_dump(), measured)
            session.sink.artefact(work / "model", "model")
            session.results |= {
                "steps": recipe.steps,
                "loss": last.get("loss"),
                "model": str(work / "model"),
                **measured,
            }
        session.next = f"hooke models show {self.run / 'work' / 'model'}"
