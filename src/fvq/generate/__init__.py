"""The LlamaGen transformer over image tokens: model and published sizes, training, sampling of few and many images."""

from fvq.generate.decoding import Decoder
from fvq.generate.llamagen import LlamaGen, LlamaGenConfig
from fvq.generate.parts import sample_many, write_samples
from fvq.generate.sampling import SamplingSettings, class_labels
from fvq.generate.settings import GeneratorTraining, Recipe
from fvq.generate.sizes import SIZES, published_config
from fvq.generate.source import TokensInMemory, TokenSource
from fvq.generate.training import train_generator

__all__ = [
    "SIZES",
    "Decoder",
    "GeneratorTraining",
    "LlamaGen",
    "LlamaGenConfig",
    "Recipe",
    "SamplingSettings",
    "TokenSource",
    "TokensInMemory",
    "class_labels",
    "published_config",
    "sample_many",
    "train_generator",
    "write_samples",
]
