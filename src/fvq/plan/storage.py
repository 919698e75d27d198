"""What a study's rows take on disk."""

from dataclasses import dataclass

from fvq.generate.llamagen import LlamaGenConfig
from fvq.plan.memory import discriminator_weights, generator_weights, tokenizer_weights
from fvq.tokenizer.config import TokenizerConfig
from fvq.tokenizer.settings import TokenizerTraining

_STATES = 2  # resume states that are kept (fvq.runtime.checkpoint)


@dataclass(frozen=True)
class Storage:
    """Bytes.

    ``weights``: the safetensors files; of a tokenizer one with its projector and one frozen, and of each repeat one
    frozen. ``state``: two resume states with the optimizer, which are gone when the training is done and not in
    ``total``. ``tokens``: the token table at ⌈log2 K⌉ bits a token, within some percent what its files take.
    ``images``: uint8 archives, of a tokenizer the shown images with their reconstructions, of a generator its samples.
    ``features``: float32, of samples; those of reconstructions are not kept, and those of references belong to no row
    (``fvq.plan.features``). Left out are tables of figures, a few MB a row, and the sums of features, at most 70 MB a
    set of images.
    """

    weights: float = 0
    state: float = 0
    tokens: float = 0
    images: float = 0
    features: float = 0

    @property
    def total(self) -> float:
        """What stays."""
        return self.weights + self.tokens + self.images + self.features


def tokenizer_storage(
    config: TokenizerConfig, settings: TokenizerTraining, *, repeats: int, cached_views: int, shown: int
) -> Storage:
    """Of a tokenizer with so many repeats, views of images in its token table, and images shown beside originals."""
    trained, frozen = (
        tokenizer_weights(config.model_copy(update={"frozen": is_frozen})) for is_frozen in (False, True)
    )
    discriminator = discriminator_weights(settings)
    state = trained.all + 2 * trained.trained + discriminator.all + 2 * discriminator.trained
    if settings.ema_decay is not None:
        state += trained.all
    return Storage(
        weights=trained.all + (1 + repeats) * frozen.all,
        state=_STATES * state,
        tokens=cached_views * config.tokens * (config.codebook_size - 1).bit_length() / 8,
        images=2 * shown * 3 * config.image_size**2,
    )


def generator_storage(config: LlamaGenConfig, *, samples: int, image_size: int, kept: int) -> Storage:
    """Of a generator with so many samples, and values of features that stay of each."""
    weights = generator_weights(config)
    return Storage(
        weights=weights.all,
        state=_STATES * (weights.all + 2 * weights.trained),
        images=samples * 3 * image_size**2,
        features=4 * kept * samples,
    )
