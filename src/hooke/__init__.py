"""hooke: a microscope for language models.

The names below are the public API; the room that holds each is its table of contents. They are imported on first use,
so that `import hooke` and `hooke --help` are fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hooke.base.errors import HookeError as HookeError
    from hooke.data import corpora as corpora
    from hooke.data.harvest import harvest as harvest
    from hooke.data.pool import Pool as Pool
    from hooke.data.store import Store as Store
    from hooke.model.edits import Ablate as Ablate
    from hooke.model.edits import Add as Add
    from hooke.model.edits import Call as Call
    from hooke.model.edits import Freeze as Freeze
    from hooke.model.edits import Mask as Mask
    from hooke.model.edits import Project as Project
    from hooke.model.edits import Scale as Scale
    from hooke.model.edits import Set as Set
    from hooke.model.edits import Splice as Splice
    from hooke.model.experiment import Experiment as Experiment
    from hooke.model.load import load as load
    from hooke.model.metrics import KL as KL
    from hooke.model.metrics import NLL as NLL
    from hooke.model.metrics import Logit as Logit
    from hooke.model.metrics import LogitDifference as LogitDifference
    from hooke.model.metrics import LogProbability as LogProbability
    from hooke.model.metrics import Metric as Metric
    from hooke.model.metrics import Probability as Probability
    from hooke.model.model import Model as Model
    from hooke.model.run import Run as Run
    from hooke.model.sites import Site as Site
    from hooke.model.tokens import Tokens as Tokens
    from hooke.model.toy.make import toy as toy

_HOME = {
    "HookeError": "base.errors",
    "load": "model.load",
    "Model": "model.model",
    "Run": "model.run",
    "Site": "model.sites",
    "Tokens": "model.tokens",
    "Set": "model.edits",
    "Add": "model.edits",
    "Scale": "model.edits",
    "Project": "model.edits",
    "Ablate": "model.edits",
    "Splice": "model.edits",
    "Mask": "model.edits",
    "Freeze": "model.edits",
    "Call": "model.edits",
    "Metric": "model.metrics",
    "Logit": "model.metrics",
    "LogitDifference": "model.metrics",
    "LogProbability": "model.metrics",
    "Probability": "model.metrics",
    "NLL": "model.metrics",
    "KL": "model.metrics",
    "Experiment": "model.experiment",
    "toy": "model.toy.make",
    "corpora": "data.corpora",
    "harvest": "data.harvest",
    "Store": "data.store",
    "Pool": "data.pool",
    "Dictionary": "dictionaries.dictionary",
    "TopK": "dictionaries.activations.topk",
    "BatchTopK": "dictionaries.activations.batchtopk",
    "train_dictionary": "dictionaries.recipe",
    "LatentIndex": "features.index",
    "build_index": "features.build",
    "evaluate": "evals.dictionary",
    "RunFolder": "runs.folder",
}

_MODULES = {"corpora"}  # exported whole

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'hooke' has no attribute {name!r}; it has {', '.join(__all__)}")
    module = importlib.import_module(f"hooke.{_HOME[name]}")
    found = module if name in _MODULES else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
