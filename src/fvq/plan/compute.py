"""What the computations of a study cost: a training step, tokens, samples and figures of each row."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from fvq.config import Parameters, PublishedExtractor
from fvq.evaluate.networks.classifier import ImageClassifier, ImageClassifierConfig
from fvq.evaluate.networks.lpips_network import Trunk
from fvq.evaluate.reconstruction import LPIPS_TRUNKS
from fvq.generate.llamagen import LlamaGen, LlamaGenConfig
from fvq.generate.loss import linear_cross_entropy
from fvq.plan.tracing import Cost, place, trace, weightless
from fvq.plan.work import Work
from fvq.tokenizer.config import Architecture, TokenizerConfig
from fvq.tokenizer.settings import TokenizerTraining
from fvq.tokenizer.step import Descent, TokenizerStep
from fvq.tokenizer.tokenizer import Tokenizer


class Costs:
    """Costs by what they depend on: of what several rows share, such as encoder and decoder, each is found once."""

    def __init__(self) -> None:
        self._known: dict[str, Cost] = {}

    def tokenizer_step(self, config: TokenizerConfig, settings: TokenizerTraining) -> Cost:
        """A step of ``TokenizerStep`` on one part of a batch, forward, backward and the discriminator's own step.

        The networks are counted around plain VQ of two codes, whose share the row's own quantizer replaces.
        """
        small = plain(config)
        networks = self._once(f"step of {small}, {settings}", lambda: _tokenizer_step(small, settings))
        return networks - self.quantizer(small, settings) + self.quantizer(config, settings)

    def discriminator(self, config: TokenizerConfig, settings: TokenizerTraining) -> Work:
        """For each image, what of a step is the discriminator's: its pass in the loss, and its own step."""
        if not settings.adversarial_weight:
            return Work()
        key = f"discriminator at {config.image_size}, {settings}"
        return self._once(key, lambda: _discriminator(config, settings)).per_image

    def quantizer(self, config: TokenizerConfig, settings: TokenizerTraining) -> Cost:
        """Forward and backward of the quantizer and the projections to it and from it.

        Mapping the codebook is the constant part; an image's is its search.
        """
        alone, bfloat16 = _without_networks(config), settings.precision == "bfloat16"
        return self._once(f"quantizer of {alone}, {bfloat16}", lambda: self._quantizer(alone, bfloat16=bfloat16))

    def encode(self, config: TokenizerConfig) -> Cost:
        """Images to tokens, by the frozen tokenizer."""
        small, frozen = plain(config), _without_networks(config).model_copy(update={"frozen": True})
        encoder = self._once(f"encoder of {small}", lambda: _encoder(small))
        return encoder + self._once(f"search of {frozen}", lambda: self._search(frozen))

    def decode(self, config: TokenizerConfig) -> Cost:
        """The decoder's latents to images; the projection to them is less than a thousandth."""
        small = plain(config)
        return self._once(f"decoder of {small}", lambda: _decoder(small))

    def generator_step(self, config: LlamaGenConfig, *, bfloat16: bool) -> Cost:
        """A step of a generator on one part of a batch, forward and backward."""
        return self._once(
            f"step of {config}, {bfloat16}", lambda: _by_depth(config, partial(_generator_step, bfloat16=bfloat16))
        )

    def sample(self, config: LlamaGenConfig, *, guided: bool, bfloat16: bool) -> Cost:
        """An image's tokens, drawn one by one with a cache of keys and values.

        Each token goes through the blocks once, where the image is guided twice; it attends to those before it, on
        average to half of them. Guidance comes before the output layer, which has one product.
        """
        forward = self._once(
            f"features of {config}, {bfloat16}", lambda: _by_depth(config, partial(_features, bfloat16=bfloat16))
        )
        attention = 2 * config.depth * config.tokens**2 * config.width
        cached = forward.per_image.total - attention + attention * (config.tokens + 1) / (2 * config.tokens)
        output = config.tokens * config.width * config.vocabulary_size
        total = cached * (2 if guided else 1) + output
        return Cost(per_image=Work(bfloat16=total) if bfloat16 else Work(float32=total))

    def extract(self, parameters: Parameters) -> Cost:
        """Features of an image for the Fréchet distance."""
        extractor = parameters.train_extractor
        if isinstance(extractor, PublishedExtractor):
            return self._once("inception", _inception)
        config = ImageClassifierConfig(
            name=extractor.name, image_size=parameters.prepare_data.image_size, classes=10, width=extractor.width
        )
        return self._once(f"classifier {config}", lambda: _classifier(config))

    def measure(self, name: str, size: int) -> Cost:
        """A measure of reconstructions: LPIPS costs a network, the others nothing that counts."""
        if name not in LPIPS_TRUNKS:
            return Cost()
        trunk = LPIPS_TRUNKS[name][0]
        return self._once(f"{name} at {size}", lambda: _lpips(trunk, size))

    def _once(self, key: str, count: Callable[[], Cost]) -> Cost:
        if key not in self._known:
            self._known[key] = count()
        return self._known[key]

    def _quantizer(self, config: TokenizerConfig, *, bfloat16: bool) -> Cost:
        tokenizer = weightless(lambda: Tokenizer(config))
        dtype = torch.bfloat16 if bfloat16 else torch.float32

        def run(images: int) -> None:
            latents = torch.empty(
                images, config.architecture.latent_channels, *config.grid, dtype=dtype, requires_grad=True
            )
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                quantized = tokenizer.quantizer(tokenizer.to_codes(latents))
                output = tokenizer.from_codes(quantized.quantized)
            torch.autograd.backward(quantized.loss + output.float().sum())

        return self._trace_quantizer(run, tokenizer, training=True)

    def _search(self, config: TokenizerConfig) -> Cost:
        tokenizer = weightless(lambda: Tokenizer(config))

        @torch.no_grad()
        def run(images: int) -> None:
            latents = torch.empty(images, config.architecture.latent_channels, *config.grid)
            tokenizer.quantizer.quantize(tokenizer.to_codes(latents))

        return self._trace_quantizer(run, tokenizer, training=False)

    def _trace_quantizer(self, run: Callable[[int], None], tokenizer: Tokenizer, *, training: bool) -> Cost:
        """Nothing that depends on values, such as which codes to move, can run without them: the notes say so."""
        name = tokenizer.config.quantizer
        notes: frozenset[str] = frozenset()
        for mode in (True, False) if training else (False,):
            try:
                return replace(trace(run, [tokenizer.train(mode)]), notes=notes)
            except (DataDependentOutputException, DynamicOutputShapeException):
                notes = frozenset(
                    {f"what depends on values in the quantizer {name}, such as moving codes, is not counted"}
                )
        return Cost(notes=frozenset({f"the quantizer {name} is not counted: all that it does depends on values"}))


def perceptual_network(trunk: Trunk = "vgg") -> nn.Module:
    """LPIPS in evaluation mode, with random weights that take no gradient."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in fvq.evaluate.networks.lpips_network
        network: nn.Module = lpips.LPIPS(net=trunk, version="0.1", pretrained=False, pnet_rand=True, verbose=False)
    return network.eval().requires_grad_(False)


def build_step(config: TokenizerConfig, settings: TokenizerTraining, device: torch.device) -> TokenizerStep:
    """A step whose perceptual network has random weights: published ones cost the same."""
    tokenizer = Tokenizer(config).to(device).train()
    step = TokenizerStep(tokenizer, settings.model_copy(update={"perceptual_weight": 0.0}))
    step.settings = settings
    if settings.perceptual_weight:
        step.perceptual = perceptual_network().to(device)
    return step


def weightless_step(config: TokenizerConfig, settings: TokenizerTraining) -> TokenizerStep:
    """The same without memory; see ``fvq.plan.tracing``."""
    with torch.device("meta"):
        step = build_step(config, settings, torch.device("meta"))
    place(step.tokenizer)
    step.descent = _NoDescent(step.tokenizer, settings)
    if step.perceptual:
        place(step.perceptual)
    if step.adversary:
        place(step.adversary.module)
        Descent.__init__(step.adversary, step.adversary.module, settings)  # for the parameters that took their place
    return step


class _NoDescent(Descent):
    """Leaves out Adam, whose arithmetic is element-wise and takes a fourth of the time to trace."""

    def descend(self, rate: float) -> Tensor:
        self.optimizer.zero_grad()
        return torch.zeros(())


def plain(config: TokenizerConfig) -> TokenizerConfig:
    """The same networks around plain VQ of two codes of two dimensions."""
    # Not of one: a picture of one channel passes for channels last, and attention then takes another way.
    return config.model_copy(
        update={"quantizer": "vq", "codebook_size": 2, "code_dim": 2, "bridge": None, "options": {}}
    )


def _without_networks(config: TokenizerConfig) -> TokenizerConfig:
    """The same quantizer and projections, with the smallest of encoders and decoders."""
    smallest = Architecture(
        channels=2,
        multipliers=(1,),
        residual_blocks=1,
        attention=False,
        latent_channels=config.architecture.latent_channels,
        pixel_shuffle=config.architecture.ratio,
    )
    return config.model_copy(update={"architecture": smallest})


def _tokenizer_step(config: TokenizerConfig, settings: TokenizerTraining) -> Cost:
    one_part = settings.model_copy(update={"accumulate": 1, "adversarial_start": 0})
    step = weightless_step(config, one_part)
    modules: list[nn.Module] = [step.tokenizer]
    modules += [step.perceptual] if step.perceptual else []
    modules += [step.adversary.module] if step.adversary else []

    def run(images: int) -> None:
        step(0, torch.empty(images, 3, config.image_size, config.image_size, dtype=torch.uint8), 0.0, lambda _: None)

    return trace(run, modules)


def _discriminator(config: TokenizerConfig, settings: TokenizerTraining) -> Cost:
    """What the discriminator adds to a step, found with the smallest of tokenizers."""
    small = plain(_without_networks(config))
    alone = settings.model_copy(update={"perceptual_weight": 0.0})
    without = alone.model_copy(update={"adversarial_weight": 0.0})
    return _tokenizer_step(small, alone) - _tokenizer_step(small, without)


def _by_depth(config: LlamaGenConfig, count: Callable[[LlamaGenConfig], Cost]) -> Cost:
    """``count`` of the configuration, from two that are less deep: all blocks but the first are alike."""
    few, more = 2, 3
    if config.depth <= more:
        return count(config)
    small, larger = (count(config.model_copy(update={"depth": depth})) for depth in (few, more))
    block = larger - small
    for _ in range(config.depth - more):
        larger += block
    return larger


def _generator_step(config: LlamaGenConfig, *, bfloat16: bool) -> Cost:
    # Not GeneratorStep, whose autocast names the device that it is built on: what its _Loss computes.
    model = weightless(lambda: LlamaGen(config)).train()

    def run(images: int) -> None:
        labels, tokens = _sequences(config, images)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            features = model.features(labels, tokens)
            loss, _ = linear_cross_entropy(features.flatten(0, 1), model.output.weight, tokens.flatten())
        torch.autograd.backward(loss)

    return trace(run, [model])


def _features(config: LlamaGenConfig, *, bfloat16: bool) -> Cost:
    model = weightless(lambda: LlamaGen(config)).eval()

    @torch.no_grad()
    def run(images: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            model.features(*_sequences(config, images))

    return trace(run, [model])


def _sequences(config: LlamaGenConfig, images: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(images, dtype=torch.int64), torch.zeros(images, config.tokens, dtype=torch.int64)


def _encoder(config: TokenizerConfig) -> Cost:
    tokenizer = weightless(lambda: Tokenizer(config)).eval()

    @torch.no_grad()
    def run(images: int) -> None:
        tokenizer.encoder(torch.empty(images, 3, config.image_size, config.image_size))

    return trace(run, [tokenizer])


def _decoder(config: TokenizerConfig) -> Cost:
    tokenizer = weightless(lambda: Tokenizer(config)).eval()

    @torch.no_grad()
    def run(images: int) -> None:
        tokenizer.decoder(torch.empty(images, config.architecture.latent_channels, *config.grid))

    return trace(run, [tokenizer])


def _inception() -> Cost:
    """Of torchvision's Inception v3, whose convolutions have the shapes of the network of 2015 but need no weights."""
    import torchvision

    network = weightless(lambda: torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=False))
    network.eval()

    @torch.no_grad()
    def run(images: int) -> None:
        with torch.backends.cudnn.flags(allow_tf32=False):
            network(torch.empty(images, 3, 299, 299))

    return trace(run, [network])


def _classifier(config: ImageClassifierConfig) -> Cost:
    network = weightless(lambda: ImageClassifier(config)).eval()

    @torch.no_grad()
    def run(images: int) -> None:
        network(torch.empty(images, 3, config.image_size, config.image_size, dtype=torch.uint8))

    return trace(run, [network])


def _lpips(trunk: Trunk, size: int) -> Cost:
    network = weightless(lambda: perceptual_network(trunk))

    @torch.no_grad()
    def run(images: int) -> None:
        with torch.backends.cudnn.flags(allow_tf32=False):
            network(*torch.empty(2, images, 3, size, size))

    return trace(run, [network])
