"""What a study wants that its repository does not hold: images and published weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fvq.config import Parameters, PublishedExtractor
from fvq.data.originals.forms import recognise
from fvq.data.settings import ImageFolder, Originals
from fvq.evaluate.networks.pretrained import PUBLISHED, VGG16_FILE, PretrainedFile, find_pretrained
from fvq.evaluate.reconstruction import LPIPS_TRUNKS
from fvq.runtime.errors import UserError


class Missing(NamedTuple):
    """One of them that is not here."""

    kind: str
    """``images`` or ``weights``"""
    reason: str
    stops: bool
    """whether a stage stops without it; else a figure is left out"""


def missing_inputs(parameters: Parameters) -> list[Missing]:
    """What the study's stages will not find here. Reads no image."""
    return [*_images(parameters), *_weights(parameters)]


def _images(parameters: Parameters) -> Iterator[Missing]:
    wanted: dict[str, tuple[str, Callable[[str], object]]] = {}
    data = parameters.prepare_data
    if isinstance(data, ImageFolder):
        wanted["prepare_data.folder"] = data.folder, _check_folder
    if isinstance(data, Originals):
        wanted["prepare_data.train"] = data.train, recognise
        if data.validation is not None:
            wanted["prepare_data.validation"] = data.validation, recognise
    if parameters.evaluated_elsewhere:
        wanted |= {
            f"evaluation_sets.{name}.images": (chosen.images, recognise)
            for name, chosen in parameters.evaluation_sets.items()
        }
    for parameter, (path, check) in wanted.items():
        try:
            check(path)
        except (UserError, OSError) as error:
            yield Missing("images", f"{parameter}: {error}", stops=True)


def _check_folder(path: str) -> None:
    if not Path(path).expanduser().is_dir():
        raise UserError(f"{path}: no such folder")


def _weights(parameters: Parameters) -> Iterator[Missing]:
    extractor, training = parameters.train_extractor, parameters.train_tokenizer
    evaluation = parameters.evaluate_tokenizer
    if isinstance(extractor, PublishedExtractor):
        yield from _missing(PUBLISHED[extractor.name], extractor.weights, "train_extractor.weights")
    if training.perceptual_weight:
        yield from _missing((VGG16_FILE,), training.perceptual_weights, "train_tokenizer.perceptual_weights")
    for measure in (name for name in evaluation.measures if name in LPIPS_TRUNKS):
        path = evaluation.lpips_weights if measure == "lpips_alex" else None
        yield from _missing((LPIPS_TRUNKS[measure][1],), path, "evaluate_tokenizer.measures", left_out=measure)


def _missing(
    files: tuple[PretrainedFile, ...], path: str | None, parameter: str, *, left_out: str | None = None
) -> Iterator[Missing]:
    try:
        if find_pretrained(files, path, parameter) is None:
            consequence = f"; the study goes without {left_out}" if left_out else ""
            yield Missing("weights", f"{parameter}: no {files[0].name}{consequence}", stops=left_out is None)
    except UserError as error:
        yield Missing("weights", str(error), stops=True)
