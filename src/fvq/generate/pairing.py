"""A generator with the tokenizer whose codes it learned.

Equal sizes prove nothing: freezing numbers a codebook's codes anew, so a study's tokenizer before and after it has the
same codes under other indices.
"""

from pathlib import Path

from fvq.generate.llamagen import LlamaGen
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file
from fvq.tokenizer.tokenizer import Tokenizer


def load_pair(generator_path: Path, tokenizer_path: Path) -> tuple[LlamaGen, Tokenizer]:
    """Both from their files, on the CPU.

    A generator that does not know its tokenizer's file, such as an imported one, is checked by grid and vocabulary.

    Raises:
        UserError: a file cannot be read; the tokenizer has another grid or codebook size than the generator's tokens,
            or its file is another than the one whose codes the generator learned.
    """
    model, tokenizer = LlamaGen.load(generator_path), Tokenizer.load(tokenizer_path)
    learned, config = model.config, tokenizer.config
    if (learned.grid, learned.vocabulary_size) != (config.index_shape, config.codebook_size):
        raise UserError(
            f"{generator_path}: was trained on {_shape(learned.grid)} tokens of {learned.vocabulary_size:,} codes, and "
            f"{tokenizer_path} has {_shape(config.index_shape)} of {config.codebook_size:,}"
        )
    if learned.tokenizer_sha256 is not None and (found := sha256_file(tokenizer_path)) != learned.tokenizer_sha256:
        raise UserError(
            f"{generator_path}: learned the codes of the tokenizer with SHA-256 {learned.tokenizer_sha256}, and "
            f"{tokenizer_path} has {found}; a study's generator goes with the file of its stage freeze_codebook"
        )
    return model, tokenizer


def _shape(sides: tuple[int, ...]) -> str:
    return "×".join(map(str, sides))
