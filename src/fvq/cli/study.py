"""What the study of the folder that a command runs in has trained."""

from pathlib import Path
from typing import NamedTuple

from fvq.runtime.errors import UserError


class Trained(NamedTuple):
    """A generator and the tokenizer of its tokens."""

    name: str
    study: str
    generator: Path
    tokenizer: Path
    others: tuple[str, ...]


def trained_generator(name: str | None) -> Trained:
    """The study's generator of that ``name``, by default the last one of ``params.yaml`` that is trained.

    Raises:
        UserError: no study here, no such generator in it, or it is not trained yet.
    """
    if not Path("params.yaml").is_file():
        raise UserError(
            "params.yaml: no such file, so no study has generators here; name the files GENERATOR and TOKENIZER"
        )
    from fvq.config import load_parameters  # its check of a study imports all of the library

    parameters = load_parameters()
    folder = Path("results", parameters.study)
    files = {
        each: (
            folder / "train_generator" / each / "generator.safetensors",
            folder / "freeze_codebook" / generator.tokenizer / "tokenizer.safetensors",
        )
        for each, generator in parameters.generators.items()
    }
    known = ", ".join(files) or "none"
    if name is not None and name not in files:
        raise UserError(f"--row: the study {parameters.study} has no generator {name}; there are {known}")
    trained = [each for each in files if all(path.is_file() for path in files[each])]
    if not trained:
        raise UserError(
            f"{folder}: no generator is trained yet (in the study: {known}); name the files GENERATOR and TOKENIZER"
        )
    if name is not None and name not in trained:
        raise UserError(f"--row: {name} is not trained yet in {folder}; there are {', '.join(trained)}")
    chosen = name or trained[-1]
    others = tuple(each for each in trained if each != chosen)
    return Trained(chosen, parameters.study, *files[chosen], others)
