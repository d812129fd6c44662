"""Dictionaries: sparse decompositions of activations, how to train them, and how to score them."""

from hooke.dictionaries.activations import Activation, BatchTopK, TopK
from hooke.dictionaries.checkpoints import Checkpoints
from hooke.dictionaries.dictionary import Dictionary, Latent
from hooke.dictionaries.folds import fold_decoder_norm_, fold_input_scale_, fold_pre_bias_
from hooke.dictionaries.initialise import geometric_median
from hooke.dictionaries.latents import Latents
from hooke.dictionaries.metrics import ReconstructionMetrics
from hooke.dictionaries.objectives import AuxK, MultiTopK, Objective
from hooke.dictionaries.recipe import train_dictionary
from hooke.dictionaries.train import TrainConfig, TrainResult, train

__all__ = [
    "Activation",
    "AuxK",
    "BatchTopK",
    "Checkpoints",
    "Dictionary",
    "Latent",
    "Latents",
    "MultiTopK",
    "Objective",
    "ReconstructionMetrics",
    "TopK",
    "TrainConfig",
    "TrainResult",
    "fold_decoder_norm_",
    "fold_input_scale_",
    "fold_pre_bias_",
    "geometric_median",
    "train",
    "train_dictionary",
]
