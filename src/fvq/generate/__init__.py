"""The LlamaGen transformer over image tokens: model, sampling, training."""

from fvq.generate.llamagen import LlamaGen, LlamaGenConfig
from fvq.generate.sampling import SamplingSettings, class_labels, sample_many
from fvq.generate.training import GeneratorTraining, train_generator

__all__ = [
    "GeneratorTraining",
    "LlamaGen",
    "LlamaGenConfig",
    "SamplingSettings",
    "class_labels",
    "sample_many",
    "train_generator",
]
