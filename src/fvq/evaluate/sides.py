"""One side of a comparison: images, stored statistics of images, or, as in ADM's reference archives, both."""

from dataclasses import dataclass
from pathlib import Path

from fvq.evaluate.frechet import Gaussian
from fvq.evaluate.image_sets import ImageSet, open_image_set
from fvq.evaluate.images import check_enough_images
from fvq.evaluate.networks.extractor import Extractor
from fvq.evaluate.preparation import AS_STORED, Preparation
from fvq.evaluate.statistics_file import StoredStatistics, read_statistics
from fvq.evaluate.summary import Summary
from fvq.runtime.errors import UserError
from fvq.runtime.npz import array_names


@dataclass(frozen=True)
class Side:
    """Samples or reference. At least one of the two is there; where both are, distances are of the statistics."""

    images: ImageSet | None
    statistics: StoredStatistics | None = None

    @property
    def name(self) -> str:
        """As the user named it."""
        return self.statistics.name if self.images is None and self.statistics else self._images.name

    @property
    def digest(self) -> str:
        """SHA-256 of what the images follow from; without images, of the statistics' file."""
        return self.statistics.digest if self.images is None and self.statistics else self._images.digest

    @property
    def count(self) -> int | None:
        """The number of images that distances stand on; None where stored statistics do not tell it."""
        return len(self._images) if self.statistics is None else self.statistics.features.count

    @property
    def preparation(self) -> str:
        """In words, what was done to the images."""
        if self.images is None and self.statistics:
            return self.statistics.protocol.get("preparation", "not known")
        return self._images.preparation.describe()

    @property
    def _images(self) -> ImageSet:
        assert self.images is not None
        return self.images

    def features(self, summary: Summary | None) -> Gaussian:
        """The stored Gaussian, or else that of the pass over the images."""
        if self.statistics is not None:
            return self.statistics.features
        assert summary is not None
        return summary.features.gaussian

    def spatial(self, summary: Summary | None) -> Gaussian | None:
        """The same of the spatial features; None where there are none."""
        if self.statistics is not None:
            return self.statistics.spatial
        return None if summary is None or summary.spatial is None else summary.spatial.gaussian


def open_side(path: Path | str, preparation: Preparation = AS_STORED) -> Side:
    """What lies at ``path``: an npz with ``arr_0``, ``mu`` and ``sigma``, or both, or any other set of images.

    Images beside statistics are taken as stored: they have to have the size that ``preparation`` wants already.

    Raises:
        UserError: nothing that holds images or statistics, or damaged.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz" or not path.is_file():
        return Side(open_image_set(path, preparation))
    statistics = read_statistics(path)
    if statistics is None:
        return Side(open_image_set(path, preparation))
    if "arr_0" not in array_names(path):
        return Side(None, statistics)
    images = open_image_set(path)
    fits = preparation.size is None or images.width == images.height == preparation.size
    if preparation.jpeg_quality is not None or not fits:
        raise UserError(
            f"{path}: holds statistics of its images of {images.width}x{images.height} pixels, and they would be "
            f"measured as {preparation.describe()}; keep arr_0 alone to have them prepared"
        )
    return Side(images, statistics)


def check_sides(samples: Side, reference: Side) -> None:
    """UserError where the two cannot be compared: sizes, single images, or the one in the other's place."""
    if samples.statistics and samples.images and reference.images and not reference.statistics:
        raise UserError(
            f"{samples.name}: holds images with the statistics (mu, sigma) of a reference, and {reference.name} images "
            "alone; are SAMPLES and --reference swapped?"
        )
    for side in (samples, reference):
        if side.images is not None:
            check_enough_images(len(side.images), side.name)
    if samples.images is None or reference.images is None:
        return
    sizes = [(side.width, side.height) for side in (samples.images, reference.images)]
    if sizes[0] != sizes[1]:
        ours, theirs = ("x".join(map(str, size)) for size in sizes)
        raise UserError(
            f"{samples.name} and {reference.name}: images differ in size, {ours} and {theirs} pixels; --size scales "
            "and crops both to one size"
        )


def check_statistics(side: Side, extractor: Extractor) -> None:
    """UserError where stored statistics are of another network than ``extractor``, or of another resizing."""
    if side.statistics is None:
        return
    stored, dimension = side.statistics, len(side.statistics.features.mean)
    if dimension != extractor.feature_dimension:
        raise UserError(
            f"{stored.name}: statistics of {dimension} features, and those of {extractor.name} are "
            f"{extractor.feature_dimension}"
        )
    for field, value in (
        ("extractor", extractor.name),
        ("extractor_sha256", extractor.weights_sha256),
        ("resize", extractor.resize),
    ):
        if stored.protocol.get(field, value) != value:
            raise UserError(
                f"{stored.name}: its statistics are of another protocol: {field} is {stored.protocol[field]!r}, and "
                f"{value!r} here"
            )
