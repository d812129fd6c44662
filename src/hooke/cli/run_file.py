"""`hooke run`: replay a saved experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import tyro
from pydantic import Field
from rich.table import Table
from rich.text import Text

from hooke.cli.command import Command
from hooke.cli.render import number
from hooke.cli.session import Session

if TYPE_CHECKING:
    from hooke.model.experiment import Experiment, Outcome

SHOWN_EXAMPLES = 8
TOLERANCE = 1e-3  # of the largest number: other machines add up in another order


class RunFile(Command):
    """Replay an experiment that was saved: its edits on its inputs, read by its metric. Beside every number stands the
    metric without edits. Exit code 1 when the numbers are not those that the file says to expect.
    """

    words: ClassVar[str] = "run"

    file: tyro.conf.Positional[Path] = Field(description="Experiment, as Experiment.save wrote it (JSON).")
    model: str | None = Field(None, description="Another model than the experiment names.")
    run: Path | None = Field(None, description="Run folder to make; by default below runs/.")

    def execute(self, session: Session) -> None:
        """Replay, print the table, leave `outcome.json` and the experiment with its outcome."""
        import torch

        import hooke
        from hooke.dictionaries.dictionary import Dictionary
        from hooke.model.experiment import Experiment

        experiment = Experiment.load(self.file, open_dictionary=Dictionary.load)
        model = hooke.load(self.model or experiment.model, dtype=getattr(torch, experiment.dtype or "float32"))
        with session.run_folder(self.run) as folder:
            outcome = experiment.replay(model, sink=session.sink)
            difference = experiment.difference(outcome)
            plain = {
                "model": model.name,
                "metric": experiment.metric.label,
                "baseline": outcome.baseline,
                "values": dict(zip(experiment.edit_sets, outcome.values, strict=True)),
                "difference": difference,
                "notes": outcome.notes,
            }
            with folder.artefact("outcome.json", "outcome") as path:
                from hooke.base.files import write_json

                write_json(path, plain)
            session.results |= plain
        session.show("", outcome_table(experiment, outcome), "")
        for note in outcome.notes:
            session.say(f"note  {note}")
        if difference is not None:
            differs = not difference <= TOLERANCE
            what = "differ from" if differs else "are"
            session.say(f"      the numbers {what} those kept in {self.file} (largest difference {difference:.1e})")
            session.exit_code = int(differs)


def outcome_table(experiment: Experiment, outcome: Outcome) -> Table:
    """The metric without edits and under each edit set: the mean, and the first examples."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    n_examples = len(outcome.baseline)
    shown = min(n_examples, SHOWN_EXAMPLES)
    table.add_column(experiment.metric.label)
    table.add_column("mean", justify="right", style="bold")
    for example in range(shown):
        table.add_column(f"{example}", justify="right")
    if shown < n_examples:
        table.add_column(f"(of {n_examples})")
    rows = {"no edits": outcome.baseline, **dict(zip(experiment.edit_sets, outcome.values, strict=True))}
    for name, values in rows.items():
        cells = [number(float(values.mean())), *(number(float(value)) for value in values[:shown])]
        table.add_row(Text(name), *cells)
    return table
