"""A row's generator with the frozen tokenizer that it learned from, for the stages that draw images."""

import torch

from fvq.generate.llamagen import LlamaGen
from fvq.generate.pairing import load_pair
from fvq.tokenizer import Tokenizer
from pipeline.run import Run


def load_generator_and_tokenizer(run: Run) -> tuple[LlamaGen, Tokenizer]:
    """Both on the run's device, the generator in the precision that images are drawn in."""
    model, tokenizer = load_pair(
        run.input("train_generator", "generator.safetensors", run.name),
        run.input("freeze_codebook", "tokenizer.safetensors", run.parameters.generators[run.name].tokenizer),
    )
    return model.to(run.device, getattr(torch, run.parameters.sample.precision)), tokenizer.to(run.device)
