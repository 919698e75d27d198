"""Parameter counts of the published models, counted on FoundationVision/LlamaGen's own classes.

``VQ_16`` and ``VQ_8`` of tokenizer_image/vq_model.py, and ``NLayerDiscriminator`` of discriminator_patchgan.py.
"""

import pytest
import torch

from fvq.tokenizer import Tokenizer, TokenizerConfig
from fvq.tokenizer.discriminator import PatchDiscriminator

MULTIPLIERS = {"VQ-16": (1, 1, 2, 2, 4), "VQ-8": (1, 2, 2, 4)}
# yfChang-cv/FVQ, tokenizer_image/vq_model.py: more blocks, or more channels before the codes.
VARIANTS = {"VQ-16-res4": {"residual_blocks": 4}, "VQ-16-z512": {"latent_channels": 512}}


def published(model: str, code_dim: int = 8, **changes) -> Tokenizer:
    sizes = {"channels": 128, "residual_blocks": 2, "attention": True, "latent_channels": 256, "pixel_shuffle": 1}
    with torch.device("meta"):
        return Tokenizer(
            TokenizerConfig(
                image_size=256,
                architecture={**sizes, "multipliers": MULTIPLIERS[model], **changes},
                quantizer="vq-l2",
                codebook_size=16384,
                code_dim=code_dim,
                commitment_weight=0.25,
                bridge=None,
                frozen=False,
            )
        )


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("model", "encoder", "decoder", "ratio"),
    [("VQ-16", 29_298_176, 42_449_795, 16), ("VQ-8", 28_559_232, 41_415_171, 8)],
)
def test_encoder_and_decoder_have_the_published_parameters(model, encoder, decoder, ratio):
    ours = published(model)
    assert (count(ours.encoder), count(ours.decoder)) == (encoder, decoder)
    assert ours.config.architecture.ratio == ratio


@pytest.mark.parametrize(
    ("model", "code_dim", "with_codebook", "without"),
    [
        ("VQ-16", 4, 71_815_815, 71_750_279),
        ("VQ-16", 8, 71_883_403, 71_752_331),
        ("VQ-16", 256, 76_073_859, 71_879_555),
        ("VQ-16", 512, 80_399_491, 72_010_883),
        ("VQ-8", 4, 70_042_247, 69_976_711),
        ("VQ-8", 8, 70_109_835, 69_978_763),
        ("VQ-8", 256, 74_300_291, 70_105_987),
        ("VQ-8", 512, 78_625_923, 70_237_315),
    ],
)
def test_tokenizers_of_16384_codes_have_the_published_parameters(model, code_dim, with_codebook, without):
    ours = published(model, code_dim)
    assert count(ours) == with_codebook
    assert count(ours) - count(ours.quantizer) == without


@pytest.mark.parametrize(("model", "millions"), [("VQ-16", 72), ("VQ-8", 70)])
def test_the_counts_round_to_those_of_the_readme(model, millions):
    """LlamaGen's README: vq_ds16_c2i 72M, vq_ds8_c2i 70M."""
    assert round(count(published(model)) / 1e6) == millions


@pytest.mark.parametrize(("variant", "parameters"), [("VQ-16-res4", 110_982_019), ("VQ-16-z512", 78_564_739)])
def test_variants_of_fvq_have_their_parameters(variant, parameters):
    assert count(published("VQ-16", 256, **VARIANTS[variant])) == parameters


def test_the_discriminator_has_the_published_parameters():
    with torch.device("meta"):
        assert count(PatchDiscriminator(filters=64, layers=3)) == 2_765_633
