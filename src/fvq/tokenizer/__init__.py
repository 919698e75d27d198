"""Encoder, decoder, discriminator, losses, training and freezing of image tokenizers."""

from fvq.tokenizer.config import Architecture, Bridge, TokenizerConfig
from fvq.tokenizer.tokenizer import Tokenizer

__all__ = ["Architecture", "Bridge", "Tokenizer", "TokenizerConfig"]
