"""From a model and a text to a trained dictionary, in one call: harvest, pool, train, save."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from hooke.base.errors import ConfigError
from hooke.base.progress import SILENT, Sink, TeeSink
from hooke.data.corpora import Corpus
from hooke.data.harvest import harvest
from hooke.data.pool import Pool
from hooke.dictionaries.activations import Activation, settings
from hooke.dictionaries.checkpoints import Checkpoints
from hooke.dictionaries.dictionary import Dictionary
from hooke.dictionaries.objectives import Objective
from hooke.dictionaries.train import TrainConfig, TrainResult, train
from hooke.model.model import Model
from hooke.model.sites import Site
from hooke.runs import RunFolder, RunSink

COMMAND = "train"
ARTEFACT = "dictionary"
_POOL_ROWS = 1 << 16


def train_dictionary(
    model: Model,
    *,
    reads: Site | str,
    activation: Activation,
    n_latents: int,
    corpus: Corpus,
    n_tokens: int = 2_000_000,
    writes: Site | str | None = None,
    context: int = 128,
    batch_size: int = 2048,
    pool_rows: int = _POOL_ROWS,
    objective: Objective | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    run: str | PathLike[str] | RunFolder | None = None,
    resume: bool = True,
    sink: Sink = SILENT,
) -> Dictionary:
    """Train a dictionary on the activations of a model.

    Args:
        model: the model to look into.
        reads: the site whose activations are read.
        activation: `BatchTopK(k)` or `TopK(k)`.
        n_latents: how many latents.
        corpus: the text; gone through again when it is shorter than `n_tokens`.
        n_tokens: kept tokens to train on.
        writes: the site to be rebuilt; `reads` when `None`, another one for a transcoder.
        context, batch_size, pool_rows: tokens in a row of text; rows in a training batch; rows in the shuffling pool.
        objective: the loss; FVU with AuxK when `None`.
        config: how to train; its `n_tokens` is replaced by the one above.
        seed: of the initial directions and of the order of the data.
        run: a run folder, or where to make one. The dictionary is saved in it as `dictionary`, and a killed run goes
            on from its last checkpoint with the same result, bit for bit. `None` keeps everything in memory.
        resume: whether a folder that holds an unfinished run may be taken up.
        sink: hears progress and numbers.

    Returns:
        The dictionary. For a run folder that had finished, the one that it holds.

    Raises:
        SiteError, ConfigError, DataError: before the work, where the settings do not fit the model.
    """
    site, target = model.site(str(reads)), None if writes is None else model.site(str(writes))
    config = dataclasses.replace(config or TrainConfig(n_tokens), n_tokens=n_tokens)
    objective = objective or Objective()
    if pool_rows < batch_size:
        raise ConfigError(f"pool_rows {pool_rows} is below batch_size {batch_size}; the pool must hold a batch")
    stream = harvest(
        model,
        corpus.repeated(),
        [site] if target is None else [site, target],
        n_tokens=n_tokens,
        context=context,
        sink=_Filling(sink, min(pool_rows, n_tokens)),
    )
    dictionary = Dictionary(
        stream.widths[site],
        n_latents,
        activation=activation,
        reads=site,
        writes=target,
        d_out=stream.widths[target or site],
        seed=seed,
    ).to(model.device)
    pool = Pool(stream, batch=batch_size, rows=pool_rows, seed=seed)
    if run is None:
        return train(dictionary, pool, objective=objective, config=config, sink=sink).dictionary
    frozen = stream.describe() | {
        "reads": str(site),
        "writes": str(target or site),
        "activation": settings(activation),
        "n_latents": n_latents,
        "batch_size": batch_size,
        "pool_rows": pool_rows,
        "seed": seed,
        "objective": dataclasses.asdict(objective),
        "train": dataclasses.asdict(config),
    }
    folder = run if isinstance(run, RunFolder) else RunFolder.create(run, command=COMMAND, config=frozen, resume=resume)
    if folder.info.artefact(ARTEFACT) is not None:
        return Dictionary.load(folder.file(ARTEFACT), device=model.device)
    with folder:
        result = _train_in(folder, dictionary, pool, objective, config, sink)
        with folder.artefact(ARTEFACT, "dictionary") as path:
            dictionary.save(path, metadata=frozen | {"training": result.metrics})
        sink.artefact(folder.path / ARTEFACT, "dictionary")
        if not isinstance(run, RunFolder):
            folder.finish(_results(result))
    return dictionary


@dataclasses.dataclass(frozen=True)
class _Filling:
    """Lets the harvest's progress through until the pool is full; from then on training reports its own."""

    sink: Sink
    rows: int

    def progress(self, name: str, done: int, total: int | None, unit: str = "") -> None:
        if done <= self.rows:
            self.sink.progress("fill the pool", done, self.rows, unit)

    def message(self, text: str) -> None:
        self.sink.message(text)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.sink.metrics(values, step)

    def artefact(self, path: Path, kind: str) -> None:
        self.sink.artefact(path, kind)


def _train_in(
    folder: RunFolder, dictionary: Dictionary, pool: Pool, objective: Objective, config: TrainConfig, sink: Sink
) -> TrainResult:
    n_steps = -(-config.n_tokens // pool.batch)
    checkpoints = Checkpoints(folder.path / "checkpoints", every=max(1, min(500, n_steps // 5)))
    newest = checkpoints.newest()
    folder.rewind(0 if newest is None else checkpoints.step_of(newest) + 1)  # those steps will be logged again
    return train(
        dictionary,
        pool,
        objective=objective,
        config=config,
        sink=TeeSink(RunSink(folder), sink),
        checkpoints=checkpoints,
    )


def _results(result: TrainResult) -> dict[str, Any]:
    return dict(result.metrics) | {"steps": result.steps, "tokens": result.tokens, "input_scale": result.input_scale}
