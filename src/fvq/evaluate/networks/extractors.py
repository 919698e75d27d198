"""The networks whose features are compared, by their names or by a file of the study.

Other packages add theirs with an entry point of the group ``fvq.extractors``: its name is the extractor's, and it
leads to an ``ExtractorSpec``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import torch

from fvq.evaluate.figure_names import INCEPTION_2015
from fvq.evaluate.networks.classifier import ImageClassifier
from fvq.evaluate.networks.extractor import Extractor, Resize
from fvq.evaluate.networks.pretrained import PUBLISHED, PretrainedFile, require_pretrained
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file
from fvq.runtime.weights import load_weights, save_weights

ENTRY_POINTS = "fvq.extractors"


@dataclass(frozen=True)
class ExtractorSpec:
    """What is known of an extractor before its weights are loaded."""

    name: str
    """names the figures: ``vgg16`` gives ``fd_vgg16``"""
    files: tuple[PretrainedFile, ...]
    """its weights; of several files any one will do, and the first is the one to recommend"""
    feature_dimension: int
    """length of a feature"""
    load: Callable[[Path, torch.device | str], Extractor]
    """the extractor of a file whose hash is right, on a device"""


# Their modules are imported when one is loaded: torchvision alone takes seconds.
def _inception_2015(path: Path, device: torch.device | str, resize: Resize = "tensorflow") -> Extractor:
    from fvq.evaluate.networks.inception import Inception2015

    return Inception2015(path, resize).to(device)


def _vgg16(path: Path, device: torch.device | str) -> Extractor:
    from fvq.evaluate.networks.vgg16 import load_vgg16

    return load_vgg16(path).to(device)


def _dinov2(path: Path, device: torch.device | str) -> Extractor:
    from fvq.evaluate.networks.dinov2 import load_dinov2

    return load_dinov2(path).to(device)


def _squeezenet1_0(path: Path, device: torch.device | str) -> Extractor:
    from fvq.evaluate.networks.squeezenet import load_squeezenet1_0

    return load_squeezenet1_0(path).to(device)


EXTRACTORS = {
    name: ExtractorSpec(name, PUBLISHED[name], feature_dimension, load)
    for name, feature_dimension, load in (
        (INCEPTION_2015, 2048, _inception_2015),
        ("vgg16", 4096, _vgg16),
        ("dinov2-vit-l14", 1024, _dinov2),
        ("squeezenet1_0", 512, _squeezenet1_0),
    )
}
"""The project's own. They win over plug-ins of the same names."""


def plug_in_names() -> list[str]:
    """The names of the extractors that other installed packages bring, none of them loaded."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def find_extractor(name: str) -> ExtractorSpec | None:
    """The project's extractor of that name, or else another package's; None where there is neither.

    Raises:
        UserError: the package's cannot be loaded, is none, or bears a name that it may not.
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name]
    points = list(entry_points(group=ENTRY_POINTS, name=name))
    if not points:
        return None
    if len(points) > 1:
        raise UserError(f"extractor {name}: several packages bring one: {', '.join(map(_origin, points))}")
    return _load_plug_in(points[0])


def load_extractor(
    name_or_file: Path | str,
    weights: Path | str | None = None,
    device: torch.device | str = "cpu",
    *,
    resize: Resize = "tensorflow",
    parameter: str = "weights",
) -> Extractor:
    """The extractor of that name, or the one in a file of the study: a classifier, or a reference to Inception's.

    A name goes before a file that is called so; write ``./vgg16`` for that one.

    Args:
        name_or_file: one of ``EXTRACTORS``, a plug-in's name, or the path of a safetensors file.
        weights: of an extractor by name, the file or its folder; see ``find_pretrained`` for the other places. With
            the path of a file, a folder says nothing: it may hold other networks' weights.
        device: where it is to run.
        resize: how ``inception-2015`` resizes images; the others have one way.
        parameter: what errors call ``weights``.

    Raises:
        UserError: there is no such extractor, its weights are missing, damaged or others, or a plug-in fails.
    """
    spec = find_extractor(str(name_or_file))
    if spec is None:
        if not Path(name_or_file).is_file():
            known = ", ".join([*EXTRACTORS, *plug_in_names()])
            raise UserError(f"{name_or_file}: no such file, and no extractor of that name (known: {known})")
        if weights is not None and not Path(weights).is_dir():
            raise UserError(f"{parameter}: {name_or_file} is a file of weights already")
        return _load_file(Path(name_or_file), device, resize)
    found = require_pretrained(spec.files, weights, parameter)
    if spec.name == INCEPTION_2015:
        return _inception_2015(found, device, resize)
    if spec.name in EXTRACTORS:
        return spec.load(found, device)
    return _load_foreign(spec, found, device)


def save_reference(weights: Path, path: Path | str) -> None:
    """Write a file that ``load_extractor`` reads: Inception's published ``weights`` by place and hash, not copied."""
    config = {"name": INCEPTION_2015, "weights": str(weights), "sha256": sha256_file(weights)}
    save_weights(path, {}, kind="extractor", config=config)


def _load_file(path: Path, device: torch.device | str, resize: Resize) -> Extractor:
    _, config = load_weights(path, kind="extractor")
    if config.get("name") == INCEPTION_2015:
        found = require_pretrained(PUBLISHED[INCEPTION_2015], config["weights"], "train_extractor.weights")
        return _inception_2015(found, device, resize)
    return ImageClassifier.load(path).to(device)


def _load_plug_in(point: EntryPoint) -> ExtractorSpec:
    where = f"extractor {point.name} ({_origin(point)})"
    if point.name.startswith(("fid", "inception")) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", point.name):
        raise UserError(f"{where}: a plug-in's name is of a-z, 0-9, _ and -, and does not begin with fid or inception")
    try:
        spec = point.load()
    except Exception as error:  # it is somebody else's code
        raise UserError(f"{where}: the plug-in cannot be loaded ({_in_words(error)})") from None
    if not isinstance(spec, ExtractorSpec) or spec.name != point.name or not spec.files:
        raise UserError(f"{where}: the plug-in is no ExtractorSpec of this name with a file of weights")
    return spec


def _load_foreign(spec: ExtractorSpec, path: Path, device: torch.device | str) -> Extractor:
    where = f"extractor {spec.name}"
    try:
        extractor = spec.load(path, device)
        said = (extractor.name, extractor.feature_dimension)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: the plug-in fails on {path} ({_in_words(error)})") from None
    if said != (spec.name, spec.feature_dimension):
        raise UserError(
            f"{where}: the plug-in loads {said[0]} with features of {said[1]} values, and should {spec.name} with "
            f"{spec.feature_dimension}"
        )
    return extractor


def _origin(point: EntryPoint) -> str:
    """The package, as its users installed it, and the object in it."""
    return f"{point.dist.name} {point.dist.version}, {point.value}" if point.dist else point.value


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
