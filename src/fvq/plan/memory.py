"""What training takes of one GPU's memory, part by part."""

from dataclasses import dataclass

import torch
from torch import nn

from fvq.generate.llamagen import LlamaGen, LlamaGenConfig
from fvq.plan.compute import Costs, perceptual_network, plain
from fvq.plan.tracing import Cost, Search
from fvq.tokenizer.config import TokenizerConfig
from fvq.tokenizer.discriminator import PatchDiscriminator
from fvq.tokenizer.settings import TokenizerTraining
from fvq.tokenizer.tokenizer import Tokenizer

SPARED = 0.1
"""Share of a GPU's memory left to its context, the allocator's gaps and the operations' own workspace."""
_MINIMA_BYTES = 2**28  # of a search's tile, and its bounds as many (fvq.quantize.shortlist)
_CHUNK = 2**18  # codes that a search rounds at once
_LOGITS = 2**26  # that exist at once (fvq.generate.loss)


@dataclass(frozen=True)
class Weights:
    """Bytes of a module's parameters and buffers, and how many of them learn."""

    all: int
    trained: int

    def __add__(self, other: "Weights") -> "Weights":
        return Weights(self.all + other.all, self.trained + other.trained)


@dataclass(frozen=True)
class Memory:
    """Bytes, all parts at once: an upper bound, for gradients grow while activations go.

    ``activations`` are the tensors that autograd saves, weights cast to bfloat16 included. There are no master weights:
    the weights themselves are float32. ``quantizer`` is what does not grow with the batch: the mapped codebook and what
    the projector saves. Neither compiled blocks, which save less, nor sharding (``train_generator.sharding``) count.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations_constant: float
    activations_per_image: float
    quantizer: float
    search: Search
    vocabulary: int
    tokens: int

    def search_bytes(self, images: int) -> float:
        """Of the search among the codes: both sides in float32 and rounded, a tile of groups' minima with bounds."""
        search, tokens = self.search, self.search.tokens * images
        chunk = min(search.codes, _CHUNK)
        minima = min(_MINIMA_BYTES, 4 * tokens * search.codes / 8)
        return 8 * tokens * search.dim + 2 * search.codes * search.dim + 8 * chunk * search.dim + 2 * minima

    def logits_bytes(self, images: int) -> float:
        """Of the logits that exist at once, float32, with their gradient in bfloat16."""
        return 6 * min(images * self.tokens, max(256, _LOGITS // self.vocabulary)) * self.vocabulary

    def total(self, images: int) -> float:
        """At ``images`` of a batch at once on the GPU."""
        fixed = self.weights + self.gradients + self.optimizer + self.average + self.quantizer
        activations = self.activations_constant + self.activations_per_image * images
        return fixed + activations + self.search_bytes(images) + (self.logits_bytes(images) if self.vocabulary else 0)

    def largest_batch(self, device_bytes: float) -> int:
        """Images at once that fit with ``SPARED`` left free; 0 where none does."""
        limit = device_bytes * (1 - SPARED)
        low, high = 0, 1
        while self.total(high) <= limit:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.total(middle) <= limit else (low, middle)
        return low


def tokenizer_memory(costs: Costs, config: TokenizerConfig, settings: TokenizerTraining) -> Memory:
    """Of training a tokenizer, at its greatest: with the discriminator where there is one."""
    step = costs.tokenizer_step(config, settings)
    quantizer = costs.quantizer(config, settings)
    own = quantizer.saved_constant - costs.quantizer(plain(config), settings).saved_constant
    tokenizer = tokenizer_weights(config)
    networks = tokenizer + discriminator_weights(settings) + _perceptual_weights(settings)
    mapped = 4 * config.codebook_size * config.code_dim if quantizer.search.codes else 0
    return Memory(
        weights=networks.all,
        gradients=networks.trained,
        optimizer=2 * networks.trained,
        average=tokenizer.all if settings.ema_decay is not None else 0,
        activations_constant=step.saved_constant - own,
        activations_per_image=step.saved_per_image,
        quantizer=own + mapped,
        search=step.search,
        vocabulary=0,
        tokens=config.tokens,
    )


def generator_memory(step: Cost, config: LlamaGenConfig) -> Memory:
    """Of training a generator whose step costs ``step``."""
    weights = generator_weights(config)
    return Memory(
        weights=weights.all,
        gradients=weights.trained,
        optimizer=2 * weights.trained,
        average=0,
        activations_constant=step.saved_constant,
        activations_per_image=step.saved_per_image,
        quantizer=0,
        search=Search(),
        vocabulary=config.vocabulary_size,
        tokens=config.tokens,
    )


def tokenizer_weights(config: TokenizerConfig) -> Weights:
    """Of a tokenizer, its quantizer included."""
    with torch.device("meta"):
        return _weights(Tokenizer(config))


def generator_weights(config: LlamaGenConfig) -> Weights:
    """Of a generator."""
    with torch.device("meta"):
        return _weights(LlamaGen(config))


def discriminator_weights(settings: TokenizerTraining) -> Weights:
    """Of the discriminator, where the settings have one."""
    if not settings.adversarial_weight:
        return Weights(0, 0)
    with torch.device("meta"):
        return _weights(PatchDiscriminator())


def _perceptual_weights(settings: TokenizerTraining) -> Weights:
    if not settings.perceptual_weight:
        return Weights(0, 0)
    with torch.device("meta"):
        return _weights(perceptual_network())


def _weights(module: nn.Module) -> Weights:
    tensors = [*module.parameters(), *module.buffers()]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return Weights(sum(tensor.nbytes for tensor in tensors), sum(parameter.nbytes for parameter in trained))
